"""Adapters of several requests in one flat batch: base output plus, by rows, scaling * B(A x).

Every projection computes its frozen product for all tokens together, and then for each adapter the
product of low rank of the tokens that have it (the idea of Punica, arXiv 2310.18547, and S-LoRA,
arXiv 2311.03285). Attention keeps the sequences of different adapters in groups of their own, so
that what it makes of cached latents (`kv_b_proj`) is made with one adapter at a time.

Shapes: Z sequences, M tokens, X tokens of one adapter, I inputs and O outputs of a projection,
r rank.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ziphius.models.layers import Linear
from ziphius.models.lora import projections
from ziphius.models.model import Model
from ziphius.models.moe import MixtureOfExperts
from ziphius.ops.linear import linear


class LowRank(NamedTuple):
    """The adapter of one projection."""

    down_rI: Tensor
    up_Or: Tensor
    scaling: float

    @property
    def size_bytes(self) -> int:
        """Memory of both matrices."""
        return self.down_rI.nbytes + self.up_Or.nbytes


Adapter = Mapping[str, LowRank]
"""By the name of the projection."""


class AdapterRows:
    """Which tokens of the batch that is computed have which adapter; one for all layers of a model.

    `select` narrows it to one adapter for all rows, for the length of a group of attention.
    """

    def __init__(self) -> None:
        self._by_rows: list[tuple[Adapter, Tensor | None]] = []
        self._adapters: Mapping[str, Adapter] = {}
        self.current: list[tuple[Adapter, Tensor | None]] = []
        """Adapters and their rows; None is all rows."""

    def begin(
        self, adapters: Mapping[str, Adapter], ids_Z: Sequence[str], cu_seqlens_Z1: Tensor
    ) -> None:
        """Take a batch on.

        Args:
            adapters: by their id.
            ids_Z: adapter of each sequence; those that are not among `adapters` have none.
            cu_seqlens_Z1: where the tokens of each sequence begin.
        """
        rows: dict[str, list[Tensor]] = {}
        for place, adapter_id in enumerate(ids_Z):
            if adapter_id in adapters:
                start, end = cu_seqlens_Z1[place : place + 2].tolist()
                rows.setdefault(adapter_id, []).append(torch.arange(start, end))
        self._adapters = adapters
        is_single = len(rows) == 1 and all(adapter_id in rows for adapter_id in ids_Z)
        self._by_rows = [
            (adapters[adapter_id], None if is_single else torch.cat(own))
            for adapter_id, own in rows.items()
        ]
        self.current = self._by_rows

    def select(self, adapter_id: str | None) -> None:
        """Let all rows have this adapter, or none if nothing has that id; None: as begun."""
        if adapter_id is None:
            self.current = self._by_rows
        else:
            own = self._adapters.get(adapter_id)
            self.current = [] if own is None else [(own, None)]


class MixedLoraLinear(Linear):
    """A projection whose rows may have adapters; made from a plain one, never built."""

    adapter_name: str
    adapter_rows: AdapterRows

    def forward(self, x_I: Tensor) -> Tensor:
        """Project the last dimension."""
        out_O = linear(x_I, self._parameters["weight"], self.bias)  # type: ignore[arg-type]
        for adapter, rows_X in self.adapter_rows.current:
            own = adapter.get(self.adapter_name)
            if own is None:
                continue
            down, up = own.down_rI.to(x_I.dtype), own.up_Or.to(x_I.dtype)
            if rows_X is None:
                out_O = out_O + own.scaling * F.linear(F.linear(x_I, down), up)
            else:
                update_XO = F.linear(F.linear(x_I.flatten(0, -2)[rows_X], down), up)
                out_O.view(-1, len(up))[rows_X] += own.scaling * update_XO
        return out_O

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """Return the weight, merged where one adapter is selected for all rows."""
        frozen = self._parameters["weight"]
        assert frozen is not None
        for adapter, rows_X in self.adapter_rows.current:
            if (own := adapter.get(self.adapter_name)) is not None:
                assert rows_X is None, "a weight for rows of different adapters"
                product = own.scaling * (own.up_Or @ own.down_rI)
                return (frozen + product).to(frozen.dtype)
        return frozen


def with_mixed_adapters(model: Model) -> tuple[Model, AdapterRows]:
    """Return a second tree of modules over the same weights, whose projections take adapters.

    The model itself stays as it is, and what is done to its weights is done to both.
    """
    shared: Iterable[object] = (
        *model.parameters(),
        *model.buffers(),
        *(part.experts for part in model.modules() if isinstance(part, MixtureOfExperts)),
    )
    twin = copy.deepcopy(model, {id(part): part for part in shared})
    rows = AdapterRows()
    for name, layer in projections(twin):
        _mix(layer, name, rows)
    return twin, rows


def _mix(layer: nn.Module, name: str, rows: AdapterRows) -> None:
    layer.__class__ = MixedLoraLinear
    assert isinstance(layer, MixedLoraLinear)
    layer.adapter_name, layer.adapter_rows = name, rows
