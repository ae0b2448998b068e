"""What a model computes, as one number: equal fingerprints mean equal weights and config."""

import json
from hashlib import sha256
from typing import Protocol

import torch
from torch import Tensor

from ziphius.models.model import Model
from ziphius.models.offload import expert_cache
from ziphius.ops.digest import tensor_digest


class Digest(Protocol):
    """What of `hashlib` is used."""

    def update(self, data: memoryview | bytes, /) -> None:
        """Add bytes."""


def add_tensor(digest: Digest, name: str, tensor: Tensor) -> None:
    """Add a tensor's name and numbers to a digest; costs as much as reading them."""
    digest.update(name.encode())
    digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)


def model_fingerprint(model: Model) -> str:
    """Return the SHA-256 of a model's config, parameters and buffers.

    Experts that stay in their files are told by the files' names, sizes and times alone.
    """
    digest = sha256(json.dumps(model.config.model_dump(mode="json"), sort_keys=True).encode())
    for named in (model.named_parameters(), model.named_buffers()):
        for name, tensor in named:
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
            add_tensor(digest, name, tensor)
    experts = expert_cache(model)
    if experts is not None:
        digest.update(experts.source.identity().encode())
    return digest.hexdigest()


WeightDigest = tuple[tuple[str, torch.dtype, torch.Size, int], ...]


def weight_digest(model: Model) -> WeightDigest:
    """Return what changes with any bit of a model's parameters and buffers, however it is changed.

    For comparison within a process: it costs a look at all weights. PyTorch's counters of versions
    would not do: writes through `.data`, NumPy or a kernel leave them as they are.
    Experts that stay in their files are left out.
    """
    return tuple(
        (name, tensor.dtype, tensor.shape, tensor_digest(tensor))
        for named in (model.named_parameters(), model.named_buffers())
        for name, tensor in named
    )
