"""Adapters of low rank that requests name: where they are, those in memory, and their runner.

An adapter is known by a name and found by its content: its id is the SHA-256 of its files, which
also salts the prefix cache, so that another adapter under an old name finds nothing of the old one.
Of those that are known, the ones used last are in memory, within a limit; a batch that needs more
at once is computed in parts.

Shapes: Z sequences, M tokens, L rows whose logits are wanted, X of any of them in a part.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ziphius.core.errors import CheckpointError, ConfigError
from ziphius.engine.runner import Runner, RunnerOutput, TorchRunner
from ziphius.models.forward_batch import ForwardBatch, PagedTokens
from ziphius.models.lora_mixed import Adapter, with_mixed_adapters
from ziphius.models.model import Model
from ziphius.models.weights.adapters import adapter_digest, read_adapters


class AdapterStore:
    """All adapters that requests may name.

    Args:
        model: that they are for.
        max_bytes: of those in memory.
    """

    def __init__(self, model: Model, max_bytes: int) -> None:
        self.hits = self.reads = 0
        self._model, self.max_bytes = model, max_bytes
        self._ids: dict[str, str] = {}
        self._folders: dict[str, Path] = {}
        self._sizes: dict[str, int] = {}
        self._resident: OrderedDict[str, Adapter] = OrderedDict()

    @property
    def names(self) -> list[str]:
        """Names that requests may give."""
        return list(self._ids)

    def add(self, name: str, folder: Path) -> None:
        """Make an adapter known, or put another one in the place of that name.

        What runs goes on with the one that it began with.

        Raises:
            CheckpointError: it cannot be read, or is for another model.
            ConfigError: the name is empty, or it alone is larger than the limit.
        """
        if not name:
            raise ConfigError("an adapter needs a name: the empty one stands for the model alone.")
        adapter_id = adapter_digest(folder)
        adapter = self._read(folder)
        self._folders[adapter_id], self._sizes[adapter_id] = folder, _size_bytes(adapter)
        self._ids[name] = adapter_id
        self._keep(adapter_id, adapter)

    def remove(self, name: str) -> None:
        """Refuse requests for an adapter from now on; those that run go on.

        Raises:
            ConfigError: there is none of that name.
        """
        self.id_of(name)
        del self._ids[name]

    def id_of(self, name: str) -> str:
        """Return the id of an adapter; the empty name has the empty id.

        Raises:
            ConfigError: there is none of that name.
        """
        if not name:
            return ""
        if name not in self._ids:
            known = ", ".join(self._ids) or "none"
            raise ConfigError(f"adapter = {name!r} is not known; known are: {known}.")
        return self._ids[name]

    def size(self, adapter_id: str) -> int:
        """Return the bytes that an adapter takes in memory."""
        return self._sizes[adapter_id]

    def get(self, adapter_id: str) -> Adapter:
        """Return an adapter, from its files if it is not in memory; others may have to go.

        Raises:
            CheckpointError: its files are gone, or others than those that were made known.
        """
        adapter = self._resident.get(adapter_id)
        if adapter is None:
            folder = self._folders[adapter_id]
            if adapter_digest(folder) != adapter_id:
                raise CheckpointError(f"{folder} holds another adapter than before: add it anew.")
            self._keep(adapter_id, adapter := self._read(folder))
        else:
            self.hits += 1
            self._resident.move_to_end(adapter_id)
        return adapter

    @property
    def resident(self) -> Mapping[str, Adapter]:
        """Those in memory, by id."""
        return self._resident

    def _read(self, folder: Path) -> Adapter:
        self.reads += 1
        adapter = read_adapters(self._model, folder)
        size = _size_bytes(adapter)
        if size > self.max_bytes:
            raise ConfigError(
                f"max_adapter_bytes is {self.max_bytes:,}, but the adapter in {folder} has "
                f"{size:,}: allow more."
            )
        return adapter

    def _keep(self, adapter_id: str, adapter: Adapter) -> None:
        self._resident[adapter_id] = adapter
        self._resident.move_to_end(adapter_id)
        while sum(map(_size_bytes, self._resident.values())) > self.max_bytes:
            self._resident.popitem(last=False)

    def metrics(self) -> dict[str, int]:
        """Return how many are known and in memory, their bytes, and how often one was read."""
        return {
            "adapters_known": len(self._ids),
            "adapters_resident": len(self._resident),
            "adapters_resident_bytes": sum(map(_size_bytes, self._resident.values())),
            "adapters_hits": self.hits,
            "adapters_reads": self.reads,
        }


def _size_bytes(adapter: Adapter) -> int:
    return sum(own.size_bytes for own in adapter.values())


class MixedRunner(Protocol):
    """Computes a step of sequences that have adapters."""

    def __call__(self, batch: ForwardBatch, adapters: Mapping[str, Adapter]) -> RunnerOutput:
        """Run one step; `adapters` has those of the batch, by id, and may have more."""
        ...


class MixedTorchRunner:
    """Runs the module tree with adapters.

    Args:
        model: shared.
        record_routes: return the experts of every token.
    """

    def __init__(self, model: Model, *, record_routes: bool = False) -> None:
        self._twin, self._rows = with_mixed_adapters(model)
        self._mixed = TorchRunner(self._twin, record_routes=record_routes)

    def __call__(self, batch: ForwardBatch, adapters: Mapping[str, Adapter]) -> RunnerOutput:
        """Run one step."""
        assert batch.paged is not None
        assert batch.adapters_Z is not None
        self._rows.begin(adapters, batch.adapters_Z, batch.paged.cu_seqlens_Z1)
        return self._mixed(replace(batch, adapter_rows=self._rows))


class AdapterRunner:
    """Runs batches with adapters on one runner, in parts if memory wants it, others on another.

    Args:
        plain: for batches without adapters.
        mixed: of the same model; may be the same.
        store: of the adapters.
    """

    def __init__(self, plain: Runner, mixed: MixedRunner, store: AdapterStore) -> None:
        self._plain, self._mixed, self._store = plain, mixed, store

    def __call__(self, batch: ForwardBatch) -> RunnerOutput:
        """Run one step."""
        if batch.adapters_Z is None:
            return self._plain(batch)
        parts = self._parts(batch.adapters_Z)
        if len(parts) == 1:
            return self._run(batch, parts[0])
        outputs = []
        for ids in parts:
            members = [place for place, own in enumerate(batch.adapters_Z) if own in ids]
            part, tokens_X, wanted_X = sub_batch(batch, members)
            output = self._run(part, ids)
            # The next part's logits may be written where these are.
            own = output._replace(logits_LW=output.logits_LW.clone())
            outputs.append((own, tokens_X, wanted_X))
        return _joined(batch, outputs)

    def _parts(self, ids_Z: Sequence[str]) -> list[list[str]]:
        """Divide adapters into lists that are in memory together."""
        parts: list[list[str]] = [[]]
        room = self._store.max_bytes
        for adapter_id in dict.fromkeys(ids_Z):
            size = self._store.size(adapter_id) if adapter_id else 0
            if size > room:
                parts.append([])
                room = self._store.max_bytes
            parts[-1].append(adapter_id)
            room -= size
        return parts

    def _run(self, batch: ForwardBatch, ids: Sequence[str]) -> RunnerOutput:
        for adapter_id in filter(None, ids):
            self._store.get(adapter_id)
        return self._mixed(batch, self._store.resident)


def sub_batch(batch: ForwardBatch, members: Sequence[int]) -> tuple[ForwardBatch, Tensor, Tensor]:
    """Take some sequences of a flat batch; all tensors of it must lie on the CPU.

    Returns:
        Their batch; their tokens among those of the whole one; and the places of their wanted
        logits among all that are wanted.
    """
    paged, ids = batch.paged, batch.adapters_Z
    assert paged is not None
    assert ids is not None
    positions_BT = batch.positions_BT
    bounds = paged.cu_seqlens_Z1.tolist()
    tokens_X = torch.cat([torch.arange(bounds[z], bounds[z + 1]) for z in members])
    place_M = torch.full((bounds[-1],), -1)
    place_M[tokens_X] = torch.arange(len(tokens_X))
    wanted_L = torch.arange(bounds[-1]) if batch.logits_rows_L is None else batch.logits_rows_L
    wanted_X = (place_M[wanted_L] >= 0).nonzero().flatten()
    lengths_Z = paged.cu_seqlens_Z1.diff()[list(members)]
    own = PagedTokens(
        paged.cache,
        torch.cat((torch.zeros(1, dtype=torch.int64), lengths_Z.cumsum(0))),
        paged.seq_lens_Z[list(members)],
        paged.slot_mapping_M[tokens_X],
        paged.block_tables_ZJ[list(members)],
    )
    part = ForwardBatch(
        batch.input_ids_BT[:, tokens_X],
        None if positions_BT is None else positions_BT[:, tokens_X],
        paged=own,
        logits_rows_L=place_M[wanted_L[wanted_X]],
        adapters_Z=tuple(ids[z] for z in members),
    )
    return part, tokens_X, wanted_X


def _joined(
    batch: ForwardBatch, outputs: Sequence[tuple[RunnerOutput, Tensor, Tensor]]
) -> RunnerOutput:
    """Put the results of the parts of a batch where they belong."""
    first = outputs[0][0]
    count = sum(len(wanted_X) for _, _, wanted_X in outputs)
    logits_LW = first.logits_LW.new_empty(count, first.logits_LW.shape[1])
    routes_MYK = None
    if first.routes_MYK is not None:
        tokens = batch.input_ids_BT.shape[1]
        routes_MYK = first.routes_MYK.new_empty(tokens, *first.routes_MYK.shape[1:])
    for output, tokens_X, wanted_X in outputs:
        logits_LW[wanted_X] = output.logits_LW
        if routes_MYK is not None and output.routes_MYK is not None:
            routes_MYK[tokens_X] = output.routes_MYK
    return RunnerOutput(logits_LW, routes_MYK)
