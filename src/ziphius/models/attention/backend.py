"""What one forward pass tells every attention layer: who sees whom, and where rows are kept.

Built once per pass, from the model's pattern and the batch. Attention computes groups of rows that
are padded to one size: the rows of a batch as they are; the runs of a row of branches; the
sequences of a flat batch, those of like size together.

Shapes: B rows, T queries of a row, S keys, M tokens of a flat batch, Z rows of a group, N heads,
H width of a query, X any width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ziphius.core.device import send
from ziphius.models.cache import PagedCache, Span
from ziphius.models.forward_batch import ForwardBatch, PagedTokens
from ziphius.models.patterns import Causal, Pattern, Tokens, visibility_mask
from ziphius.models.segments import split_branches

SMALL = 4_096
"""Scores of a head that are sooner computed in vain than by a call of their own."""


@dataclass(frozen=True)
class AttentionGroup:
    """Rows that attention computes in one call.

    With no mask, `is_causal` says whether the kernel's own causal flag is needed (T = S from the
    first token on) or every query sees every key (one new token after a full cache).
    """

    mask_ZTS: Tensor | None
    """Bool, true where a query sees a key."""
    is_causal: bool
    rows: int | None = None
    """Z, where the tokens of a flat batch are cut into equal rows."""
    queries_ZT: Tensor | None = None
    """Token of each query, where rows are gathered; padding repeats the first of its row, and its
    result is never read."""
    keys_ZS: Tensor | None = None
    """Token of each key, where there is no cache and rows are gathered."""
    slots: Tensor | Span | None = None
    """Where the keys lie in the cache, [Z, S]. Padding repeats the first of its row, so that what
    the mask hides are numbers of that sequence."""

    @property
    def is_cached(self) -> bool:
        """Tell whether keys come out of a cache."""
        return self.slots is not None

    def queries(self, heads_BNTH: Tensor) -> Tensor:
        """Arrange queries as attention wants them, [Z, N, T, H]."""
        if self.queries_ZT is not None:
            flat_MX = heads_BNTH[0].transpose(0, 1).flatten(1)
            # Embedding has the one gather whose gradient is quick on a CPU, and the same at every
            # call.
            spread_ZTX = F.embedding(self.queries_ZT, flat_MX)
            spread_ZTNH: Tensor = spread_ZTX.unflatten(-1, (heads_BNTH.shape[1], -1))
            return spread_ZTNH.transpose(1, 2)
        if self.rows is not None:
            cut_NZTH: Tensor = heads_BNTH[0].unflatten(1, (self.rows, -1))
            return cut_NZTH.transpose(0, 1)
        return heads_BNTH

    def keys(self, rows_BTX: Tensor) -> Tensor:
        """Arrange what keys or values of this pass are made of, [Z, S, X]."""
        return rows_BTX if self.keys_ZS is None else F.embedding(self.keys_ZS, rows_BTX[0])


@dataclass(frozen=True)
class AttentionMetadata:
    """All groups of one forward pass."""

    groups: tuple[AttentionGroup, ...]
    places_M: Tensor | None = None
    """Place of each token among the queries of all groups, one group behind the other; None where
    they are in order."""
    cache: PagedCache | None = None
    slot_mapping_M: Tensor | None = None
    """Where the cache gets the new rows."""

    def attend(
        self,
        layer_idx: int,
        query_BNTH: Tensor,
        rows: Sequence[Tensor],
        form: Callable[[Tensor, tuple[Tensor, ...], AttentionGroup], Tensor],
    ) -> Tensor:
        """Keep the new rows if there is a cache, and compute every group; returns [B, T, X].

        Args:
            layer_idx: whose part of the cache.
            query_BNTH: queries of the new tokens.
            rows: what their keys and values are made of, each [B, T, X].
            form: attention of one group: queries [Z, N, T, H], rows [Z, S, X] each and the group
                in, [Z, T, X] out.
        """
        if self.cache is not None:
            assert self.slot_mapping_M is not None
            self.cache.write(layer_idx, self.slot_mapping_M, *(row_BTX[0] for row_BTX in rows))
        outs = []
        for group in self.groups:
            if self.cache is None:
                keys = tuple(group.keys(row_BTX) for row_BTX in rows)
            else:
                assert group.slots is not None
                keys = self.cache.read(layer_idx, group.slots)
            outs.append(form(group.queries(query_BNTH), keys, group))
        return self._join(outs, query_BNTH.shape[0])

    def _join(self, outs: list[Tensor], rows: int) -> Tensor:
        """Bring the results of all groups back into the order of the tokens."""
        if self.places_M is not None:
            flat_MX = torch.cat([out_ZTX.flatten(0, 1) for out_ZTX in outs])
            return F.embedding(self.places_M, flat_MX).unsqueeze(0)
        [out_ZTX] = outs
        return out_ZTX if len(out_ZTX) == rows else out_ZTX.flatten(0, 1).unsqueeze(0)


def build_metadata(
    pattern: Pattern, batch: ForwardBatch, positions_BT: Tensor
) -> AttentionMetadata:
    """Choose the fastest exact form of what the tokens of a batch see.

    Args:
        pattern: the rule of the model.
        batch: the tokens.
        positions_BT: where they stand, on the device of the model; they rise along a row, anew in
            every document. Not read for a flat batch, whose lengths say it.
    """
    if batch.paged is not None:
        return _paged(pattern, batch.paged, positions_BT.device)
    if batch.branches_BT is not None:
        assert batch.documents_BT is not None
        segments = split_branches(pattern.sees, positions_BT, batch.documents_BT, batch.branches_BT)
        group = AttentionGroup(
            segments.mask_ZTS,
            is_causal=False,
            queries_ZT=segments.queries_ZT,
            keys_ZS=segments.keys_ZS,
        )
        return AttentionMetadata((group,), segments.places_M)
    if batch.documents_BT is None and isinstance(pattern, Causal):
        return AttentionMetadata((AttentionGroup(None, is_causal=True),))
    tokens = Tokens(positions_BT, batch.documents_BT)
    mask_BTS = visibility_mask(pattern, tokens, tokens)
    return AttentionMetadata((AttentionGroup(mask_BTS, is_causal=False),))


def _paged(pattern: Pattern, paged: PagedTokens, device: torch.device) -> AttentionMetadata:
    """Group the sequences of a flat batch."""
    new_Z = paged.cu_seqlens_Z1.diff()
    members = alike(new_Z.tolist(), paged.seq_lens_Z.tolist())
    groups = [_sequences(pattern, paged, torch.tensor(rows), device) for rows in members]
    slot_mapping_M = send(paged.slot_mapping_M, device)
    if len(groups) == 1 and groups[0].queries_ZT is None:
        return AttentionMetadata(tuple(groups), None, paged.cache, slot_mapping_M)
    places_M = torch.empty_like(paged.slot_mapping_M, device="cpu")
    before = 0
    for rows in members:
        width = max(int(new_Z[row]) for row in rows)
        for place, row in enumerate(rows):
            start, end = paged.cu_seqlens_Z1[row : row + 2].tolist()
            first = before + place * width
            places_M[start:end] = torch.arange(first, first + end - start)
        before += len(rows) * width
    return AttentionMetadata(tuple(groups), send(places_M, device), paged.cache, slot_mapping_M)


def alike(new: Sequence[int], total: Sequence[int]) -> list[list[int]]:
    """Divide sequences into groups in which at most half of the scores are padding.

    Args:
        new: new tokens of each sequence.
        total: all tokens of each.

    Returns:
        Rows of each group, rising.
    """
    order = sorted(range(len(new)), key=lambda row: (new[row], total[row]), reverse=True)
    groups: list[list[int]] = []
    queries = keys = least = 0
    for row in order:
        longest, smallest = max(keys, total[row]), min(least, new[row] * total[row])
        if groups and queries * longest <= max(SMALL, 2 * smallest):
            groups[-1].append(row)
            keys, least = longest, smallest
        else:
            groups.append([row])
            queries, keys, least = new[row], total[row], new[row] * total[row]
    return [sorted(group) for group in groups]


def _sequences(
    pattern: Pattern, paged: PagedTokens, rows_Z: Tensor, device: torch.device
) -> AttentionGroup:
    """Lay out some sequences of a flat batch; all but the results on the CPU."""
    starts_Z = paged.cu_seqlens_Z1[rows_Z]
    new_Z = paged.cu_seqlens_Z1[rows_Z + 1] - starts_Z
    total_Z = paged.seq_lens_Z[rows_Z]
    place_T = torch.arange(int(new_Z.max()))
    place_ZT = place_T * (place_T < new_Z[:, None])
    is_whole_row = len(rows_Z) == len(paged.seq_lens_Z) and bool((new_Z == new_Z[0]).all())
    queries_ZT = None if is_whole_row else send(starts_Z[:, None] + place_ZT, device)
    slots = _slots(paged, rows_Z, total_Z)
    is_even = bool((total_Z == total_Z[0]).all())
    is_fresh = torch.equal(total_Z, new_Z)
    mask_ZTS = None
    if not (isinstance(pattern, Causal) and (is_fresh or (is_even and len(place_T) == 1))):
        positions_ZT = (total_Z - new_Z)[:, None] + place_ZT
        # Padding has the positions behind a sequence's end: no pattern shows what is to come.
        place_S = torch.arange(int(total_Z.max()))
        mask_ZTS = send(pattern.sees(positions_ZT[:, :, None], place_S[None, None]), device)
    return AttentionGroup(
        mask_ZTS,
        is_causal=mask_ZTS is None and len(place_T) > 1,
        rows=len(rows_Z),
        queries_ZT=queries_ZT,
        slots=slots if isinstance(slots, Span) else send(slots, device),
    )


def _slots(paged: PagedTokens, rows_Z: Tensor, total_Z: Tensor) -> Tensor | Span:
    """Find the slot of every token of some sequences, [Z, S], as a span where they lie so."""
    size = paged.cache.block_size
    place_S = torch.arange(int(total_Z.max()))
    place_ZS = place_S * (place_S < total_Z[:, None])
    blocks_ZS = paged.block_tables_ZJ[rows_Z].gather(1, place_ZS // size)
    slots_ZS = blocks_ZS * size + place_ZS % size
    firsts_Z, lasts_Z = slots_ZS[:, 0], slots_ZS[:, -1]
    strides_Z = firsts_Z.diff()
    in_order = bool((lasts_Z - firsts_Z == len(place_S) - 1).all()) and bool(
        (slots_ZS.diff() == 1).all()
    )
    if in_order and bool((strides_Z == strides_Z[:1]).all()) and bool((strides_Z >= 0).all()):
        stride = int(strides_Z[0]) if len(strides_Z) else 0
        return Span(int(firsts_Z[0]), stride, len(rows_Z), len(place_S))
    return slots_ZS
