"""What a model computes, as one number: equal fingerprints mean equal weights and config."""

import json
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Protocol

import torch
from torch import Tensor

from ziphius.models.model import Model
from ziphius.models.offload import expert_cache
from ziphius.ops.digest import tensor_digest

PIECE_BYTES = 2**24
"""Hashed by one thread; what a fingerprint is hangs on it."""


class Digest(Protocol):
    """What of `hashlib` is used."""

    def update(self, data: memoryview | bytes, /) -> None:
        """Add bytes."""


def add_tensor(digest: Digest, name: str, tensor: Tensor) -> None:
    """Add a tensor's name and numbers to a digest; costs as much as reading them."""
    digest.update(name.encode())
    digest.update(_bytes(tensor).numpy().data)


def model_fingerprint(model: Model) -> str:
    """Return the SHA-256 of a model's config, parameters and buffers.

    All numbers are read, in memory: files and their times do not know what was trained, cast or
    merged since they were loaded, and a sample of the numbers may miss the layer that was. As many
    threads as torch has share the work, some 1.7 GB/s each on a CPU with SHA instructions. Experts
    that stay in their files are told by the files' names, sizes and times alone.
    """
    digest = sha256(json.dumps(model.config.model_dump(mode="json"), sort_keys=True).encode())
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for named in (model.named_parameters(), model.named_buffers()):
            for name, tensor in named:
                digest.update(f"{tensor.dtype} {tuple(tensor.shape)} {name}".encode())
                # A tensor at a time, so that at most one is copied from another device.
                for part in threads.map(_digest_of, _bytes(tensor).split(PIECE_BYTES)):
                    digest.update(part)
    experts = expert_cache(model)
    if experts is not None:
        digest.update(experts.source.identity().encode())
    return digest.hexdigest()


def _digest_of(piece: Tensor) -> bytes:
    return sha256(piece.numpy().data).digest()


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)


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
