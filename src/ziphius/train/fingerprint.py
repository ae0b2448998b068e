"""What the numbers of a run hang on besides its state, and whether a resumed run goes on exactly.

A run goes on exactly if everything here is what it was when the checkpoint was written: settings,
data, model, software and the machine's arithmetic. Settings that only say when something is shown,
measured or written are left out.
"""

from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

import torch

import ziphius
from ziphius.dist.world import World
from ziphius.models.fingerprint import add_tensor
from ziphius.models.model import Model
from ziphius.ops import native
from ziphius.train.config import WITHOUT_EFFECT, TrainConfig
from ziphius.train.errors import TrainingError
from ziphius.train.seams import TrainState

Fingerprint = dict[str, Any]
"""JSON values by name."""

FIXED = ("stage", "frozen weights", "train.optimizer.name", "train.optimizer.moments")
"""What the stored tensors hang on: a run cannot go on with another value."""


def fingerprint(state: TrainState, config: TrainConfig, world: World, frozen: str) -> Fingerprint:
    """Collect what the numbers of a run hang on, by name; `frozen` is what `frozen_sum` says."""
    device = next(state.model.parameters()).device
    return {
        "stage": state.stage.name,
        "data": state.stage.fingerprint(),
        "ziphius": ziphius.__version__,
        "torch": torch.__version__,
        "device": _arithmetic(device),
        "frozen weights": frozen,
        "threads": torch.get_num_threads(),
        "processes": world.size,
        **dict(_flat("train", config.model_dump(mode="json"))),
        **dict(_flat("model", state.model.config.model_dump(mode="json"))),
    }


def frozen_sum(model: Model) -> str:
    """Return the SHA-256 of the weights that are not trained; costs as much as reading them."""
    digest = sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            add_tensor(digest, name, parameter)
    return digest.hexdigest()


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say what changed between two fingerprints, one phrase each; nothing if a run is exact.

    Raises:
        TrainingError: a run cannot go on with such a change at all.
    """
    changed = [
        name
        for name in (*now, *(name for name in saved if name not in now))
        if saved.get(name) != now.get(name) and name not in WITHOUT_EFFECT
    ]
    for name in FIXED:
        if name in changed:
            raise TrainingError(
                f"{_phrase(name, saved, now)}: a run cannot go on with this changed. Set it back, "
                "or start a new run in another folder from the weights of this one."
            )
    return [_phrase(name, saved, now) for name in changed]


def _phrase(name: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return f"{name} was {saved.get(name)!r} and is {now.get(name)!r}"


def _arithmetic(device: torch.device) -> str:
    """Name what decides the rounding of sums: the accelerator, or the CPU and its kernels."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        kernels = "native" if native.serves(torch.empty(0)) else "plain"
        return f"cpu with {torch.backends.cpu.get_cpu_capability()}, {kernels} kernels"
    return device.type


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, entry in value.items():
            yield from _flat(f"{prefix}.{name}", entry)
    else:
        yield prefix, value
