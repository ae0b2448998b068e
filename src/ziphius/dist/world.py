"""The processes of a run: who they are, and sums over all of them.

`torchrun` starts the processes and says through the environment who is who; without it a run is a
world of one, in which every collective does nothing. Transport is torch.distributed alone (gloo on
CPUs, NCCL on CUDA); objects never travel, only tensors, because objects would be pickled.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed
from torch import Tensor

from ziphius.core.device import float64_device
from ziphius.core.errors import ConfigError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
TIMEOUT_S = 1_800.0
"""Long enough for the first rank to prepare text while the others wait."""

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The place of this process among all processes of a run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Number of this process on its machine, which is also the number of its accelerator."""

    @property
    def is_first(self) -> bool:
        """Tell whether this is the process that writes files and talks to the user."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over all ranks, and return it."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.SUM)
        return tensor

    def max_(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its largest values over all ranks, and return it."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
        return tensor

    def sum_numbers(self, values: Mapping[str, float], device: torch.device) -> dict[str, float]:
        """Add up numbers by name; every rank gives the same names."""
        names = sorted(values)
        if self.size == 1:
            return {name: float(values[name]) for name in names}
        sums = _exact([values[name] for name in names], device)
        return dict(zip(names, self.sum_(sums).tolist(), strict=True))

    def of_first(self, value: float, device: torch.device) -> float:
        """Return the number that rank 0 gave: decisions that hang on a clock are made there."""
        if self.size == 1:
            return value
        [number] = self.sum_(_exact([value if self.is_first else 0.0], device)).tolist()
        return float(number)

    def sum_flat_(self, tensors: Sequence[Tensor]) -> None:
        """Add tensors up over all ranks in place, as one flat bucket for each dtype.

        One large transfer costs a fraction of hundreds of small ones.
        """
        if self.size == 1:
            return
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            bucket = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = self.sum_(torch.cat([tensor.reshape(-1) for tensor in bucket]))
            parts = flat.split([tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))


ALONE = World()


def _exact(values: Sequence[float], device: torch.device) -> Tensor:
    """Put numbers where a collective takes them in float64: NCCL on CUDA, gloo on the CPU."""
    return torch.tensor(values, dtype=torch.float64, device=float64_device(device))


@contextmanager
def join_world(device: torch.device, timeout_s: float = TIMEOUT_S) -> Iterator[World]:
    """Join the processes that torchrun started, and leave them at the end; alone without torchrun.

    Args:
        device: where the tensors of collectives live.
        timeout_s: after this long without an answer from another rank a collective fails.
    """
    missing = [name for name in VARIABLES if name not in os.environ]
    if len(missing) == len(VARIABLES):
        yield ALONE
        return
    if missing:
        raise ConfigError(
            f"{', '.join(missing)}: not set, though other variables of torchrun are. Start "
            "several processes with torchrun, or unset RANK, WORLD_SIZE and LOCAL_RANK."
        )
    rank, size, local_rank = (_number(name) for name in VARIABLES)
    if size == 1:
        yield ALONE
        return
    if device.type == "cuda":
        torch.cuda.set_device(local_rank)
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout_s)
    )
    try:
        yield World(rank, size, local_rank)
    finally:
        torch.distributed.destroy_process_group()


def first_before_others(world: World, device: torch.device, work: Callable[[], T]) -> T:
    """Do work that leaves files on the first rank, then on all others, which find them there."""
    if world.is_first:
        done = work()
        world.of_first(0.0, device)
        return done
    world.of_first(0.0, device)
    return work()


def local_device(device: torch.device) -> torch.device:
    """Give each process of a machine its own accelerator; the CPU is shared."""
    if device.type == "cpu" or "LOCAL_RANK" not in os.environ:
        return device
    return torch.device(device.type, _number("LOCAL_RANK"))


def _number(name: str) -> int:
    text = os.environ[name]
    if not text.isdecimal():
        raise ConfigError(f"{name} = {text!r}: torchrun sets it to a number.")
    return int(text)
