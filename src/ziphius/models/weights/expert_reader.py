"""Experts of a checkpoint folder that are left there, and read one by one when they are needed."""

import weakref
from collections import defaultdict
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ziphius.core.errors import ConfigError
from ziphius.models.int8 import has_int8
from ziphius.models.model import Model
from ziphius.models.moe import RoutedExperts
from ziphius.models.offload import ExpertCache, OffloadedExperts
from ziphius.models.weights.assembly import check_finite
from ziphius.models.weights.matching import Plan
from ziphius.models.weights.names import Slot
from ziphius.models.weights.tensor_reader import TensorReader


def offload_experts(
    model: Model, folder: Path, plan: Plan, dtype: torch.dtype, limit_bytes: int, *, finite: bool
) -> Plan:
    """Leave the routed experts of an empty model in its folder; return what else is to be read.

    Args:
        model: its layers of experts are replaced.
        folder: of the model.
        plan: of all that is to be read.
        dtype: of the experts in memory.
        limit_bytes: of memory for experts.
        finite: look through every expert for NaN and infinity when it is read.

    Raises:
        ConfigError: the model has no experts, or INT8 ones, or the limit is too low.
    """
    if has_int8(model):
        raise ConfigError(
            f"expert_cache: {folder} is quantized to INT8, and only experts in floating point are "
            "read as they are needed. Load it without, or the model it was made from."
        )
    layers = [name for name, module in model.named_modules() if isinstance(module, RoutedExperts)]
    if not layers:
        raise ConfigError(f"expert_cache has no effect: the model in {folder} has no experts.")
    reader = ExpertReader(plan, finite=finite)
    cache = ExpertCache(reader, model.config, layers, dtype, limit_bytes)
    for name in layers:
        model.set_submodule(name, OffloadedExperts(name, cache))
    kept = {name: slot for name, slot in plan.slots.items() if slot.expert is None}
    return replace(plan, slots=kept)


class ExpertReader:
    """Reads single experts; the file last read stays open.

    Args:
        plan: the folder, checked.
        finite: look through what is read for NaN and infinity.
    """

    def __init__(self, plan: Plan, *, finite: bool) -> None:
        self._plan, self._finite = plan, finite
        files = ExitStack()
        self._reader = TensorReader(plan.stored, files)
        weakref.finalize(self, files.close)
        self._parts: dict[tuple[str, int], list[tuple[str, Slot]]] = defaultdict(list)
        for name, slot in plan.slots.items():
            if slot.expert is not None:
                layer = slot.name.rpartition(".")[0]
                self._parts[layer, slot.expert].append((name, slot))

    def read(self, layer: str, expert: int, gate_up_2FD: Tensor, down_DF: Tensor) -> None:
        """Fill both tensors with the weights of one expert of a layer.

        Raises:
            CheckpointError: a file is gone, or was changed since it was checked.
        """
        for name, slot in self._parts[layer, expert]:
            place = down_DF if slot.rows is None else gate_up_2FD[slice(*slot.rows)]
            self._reader.fill(name, place)
            if self._finite:
                check_finite(name, place, self._plan.stored[name].file)

    def announce(self, layer: str, experts: Collection[int]) -> None:
        """Have the system fetch what of these experts is not in its memory, in the background."""
        for expert in experts:
            for name, _ in self._parts[layer, expert]:
                self._reader.announce(name)

    def identity(self) -> str:
        """Name the files with their sizes and the times of their last changes.

        Of contents and of entries: programs that copy files may keep the first as it was.
        """
        files = sorted(
            {self._plan.stored[name].file for parts in self._parts.values() for name, _ in parts}
        )
        status = [(file, file.stat()) for file in files]
        return repr([(file.name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for file, s in status])
