"""INT8 weights and activations (W8A8) for a model that is loaded already, on a CPU.

Weights by output channel, once; activations by token, as they come; products of INT8 numbers,
summed in int32 (`ops/int8.py`, with sources). Nothing is calibrated, so no data are needed.

What stays float, and why:
    1. embedding: it is looked up, not multiplied; and with it a head that shares its weight;
    2. norms, biases and the router with its bias: few numbers, and near-ties decide routes;
    3. `kv_b_proj` of latent attention: its absorbed form multiplies queries with the matrix from
       the other side, where a scale per output channel cannot be taken out of the sum; and the
       absorbed and the expanded form must stay the same function;
    4. attention itself, between activations.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ziphius.core.errors import CheckpointError, ConfigError, DeviceError

STAYS_FLOAT = ("kv_b_proj",)
"""Last parts of names of projections that are never quantized."""


@runtime_checkable
class HasInt8(Protocol):
    """A layer that can make its INT8 counterpart."""

    def to_int8(self) -> nn.Module:
        """Return it, without changing this layer."""
        ...


@dataclass(frozen=True)
class Int8Sizes:
    """Bytes of a model's weights in memory, before and after; copies and tied weights once."""

    before_bytes: int
    after_bytes: int
    layers: tuple[str, ...]
    """Names of the layers that are INT8 now."""

    @property
    def share(self) -> float:
        """Return what is left of the size, 0 to 1."""
        return self.after_bytes / self.before_bytes


def quantize(model: nn.Module, *, head: bool = True) -> Int8Sizes:
    """Turn a model's projections and routed experts into INT8, in place, for inference.

    Memory beside the model is that of one layer. The model is frozen and in evaluation mode after
    it; `models.weights.save` writes it, and `load` reads it back.

    Args:
        model: on a CPU, float weights.
        head: also the layer that makes logits, if it has a weight of its own.

    Raises:
        CheckpointError: a weight holds NaN or infinity; the model is as it was.
        ConfigError: there is nothing to quantize.
        DeviceError: the model is not on a CPU.
    """
    places = {tensor.device.type for tensor in model.parameters()}
    if places != {"cpu"}:
        raise DeviceError(
            f"INT8 runs on a CPU, and the model is on {', '.join(sorted(places))}: move it first."
        )
    names = list(int8_layers(model))
    if not head:
        names = [name for name in names if "." in name]
    if not names:
        raise ConfigError("The model has no projection to quantize: is it INT8 already?")
    _refuse_broken(model, names)
    before = size_bytes(model)
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, HasInt8)
        model.set_submodule(name, layer.to_int8())
    model.requires_grad_(False).eval()
    return Int8Sizes(before, size_bytes(model), tuple(names))


def int8_layers(model: nn.Module) -> Iterator[str]:
    """Name the layers of a float model that `quantize` takes; the head's name has no dot."""
    modules = dict(model.named_modules())
    owners = Counter(id(weight) for module in modules.values() for weight in _own(module))
    for name, module in modules.items():
        is_shared = any(owners[id(weight)] > 1 for weight in _own(module))
        if isinstance(module, HasInt8) and not is_shared and not name.endswith(STAYS_FLOAT):
            yield name


def size_bytes(model: nn.Module) -> int:
    """Add up the bytes of all weights, scales and router biases; tied ones once."""
    return sum(
        tensor.nbytes for tensors in (model.parameters(), model.buffers()) for tensor in tensors
    )


def _refuse_broken(model: nn.Module, names: Sequence[str]) -> None:
    for name in names:
        for kind, weight in model.get_submodule(name).named_parameters():
            if not torch.stack(torch.aminmax(weight)).isfinite().all():
                raise CheckpointError(
                    f"{name}.{kind} holds NaN or infinity, which INT8 cannot store."
                )


def _own(module: nn.Module) -> Iterator[Tensor]:
    return module.parameters(recurse=False)
