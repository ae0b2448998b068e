"""The states of all global random generators: Python's, NumPy's, torch's on CPU and on CUDA.

The loop itself draws nothing from them (batches and first weights have generators of their own),
but a stage, a model part or a user's code may.
"""

import random
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import Tensor

State = tuple[dict[str, Tensor], dict[str, Any]]
"""Long states as tensors, the rest JSON-serialisable."""


def rng_state(device: torch.device) -> State:
    """Copy the states of all generators; of accelerators only that of `device`."""
    version, words, gauss = random.getstate()
    legacy: dict[str, Any] = np.random.get_state(legacy=False)
    tensors = {
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.from_numpy(legacy["state"]["key"].astype(np.int64)),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    values = {
        "python": {"version": version, "gauss": gauss},
        "numpy": {
            "kind": legacy["bit_generator"],
            "position": int(legacy["state"]["pos"]),
            "has_gauss": int(legacy["has_gauss"]),
            "gauss": float(legacy["gauss"]),
        },
    }
    return tensors, values


def set_rng_state(
    tensors: Mapping[str, Tensor], values: Mapping[str, Any], device: torch.device
) -> None:
    """Put all generators into the states that `rng_state` copied."""
    python, numpy = values["python"], values["numpy"]
    random.setstate((python["version"], tuple(tensors["python"].tolist()), python["gauss"]))
    np.random.set_state(
        {
            "bit_generator": numpy["kind"],
            "state": {
                "key": tensors["numpy"].numpy().astype(np.uint32),
                "pos": numpy["position"],
            },
            "has_gauss": numpy["has_gauss"],
            "gauss": numpy["gauss"],
        }
    )
    torch.set_rng_state(tensors["torch"])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)


def seed_generators(seed: int) -> None:
    """Begin all generators anew, those of accelerators too, so that a run hangs on its seed alone.

    NumPy's begins with 32 bits only: they are drawn from the seed.
    """
    random.seed(seed)
    np.random.seed(random.Random(seed).getrandbits(32))
    torch.manual_seed(seed)


class DrawWatch:
    """Tell whether anything was drawn from the global generators since the run began."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.earlier_starts_drew = False
        self._at_start = self._digest()

    def has_drawn(self) -> bool:
        """Compare the states of now with those of the start."""
        return self.earlier_starts_drew or self._digest() != self._at_start

    def go_on(self, earlier_starts_drew: bool) -> None:
        """Start anew after the states were set, knowing what happened before."""
        self.earlier_starts_drew = earlier_starts_drew
        self._at_start = self._digest()

    def _digest(self) -> bytes:
        tensors, values = rng_state(self.device)
        digest = sha256(repr(sorted(values.items())).encode())
        for name in sorted(tensors):
            digest.update(tensors[name].numpy().tobytes())
        return digest.digest()
