import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from ziphius.models.attention import backend
from ziphius.models.attention.backend import AttentionMetadata, alike, build_metadata
from ziphius.models.attention_spec import CacheSpec
from ziphius.models.cache import PagedCache, Span
from ziphius.models.forward_batch import ForwardBatch, PagedTokens
from ziphius.models.patterns import Causal, SlidingWindow, Tokens, visibility_mask

PATTERNS = st.one_of(
    st.just(Causal()), st.builds(SlidingWindow, st.integers(1, 6), st.integers(0, 3))
)
SEQUENCES = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 6)), min_size=1, max_size=4)
"""Tokens held, and new ones."""


def sees(pattern, query, key):
    """The rule, said once more: positions within one sequence."""
    if key > query:
        return False
    if isinstance(pattern, Causal):
        return True
    return query - key < pattern.window or key < pattern.sinks


def flat_batch(sequences, block_size=2, tables=None):
    """A batch whose cache holds in every slot the slot's number."""
    new_Z = torch.tensor([new for _, new in sequences])
    seq_lens_Z = torch.tensor([held + new for held, new in sequences])
    blocks = -(-int(seq_lens_Z.max()) // block_size)
    if tables is None:
        tables = torch.arange(len(sequences) * blocks).view(len(sequences), blocks)
    cache = PagedCache([CacheSpec((1,))], int(tables.max()) + 1, block_size)
    every_slot_M = torch.arange(cache.num_blocks * block_size)
    cache.write(0, every_slot_M, every_slot_M[:, None].float())
    slots_M = torch.cat(
        [
            tables[row, place // block_size] * block_size + place % block_size
            for row, (held, new) in enumerate(sequences)
            for place in [torch.arange(held, held + new)]
        ]
    )
    cu_seqlens_Z1 = torch.cat((torch.zeros(1, dtype=torch.int64), new_Z.cumsum(0)))
    paged = PagedTokens(cache, cu_seqlens_Z1, seq_lens_Z, slots_M, tables)
    return ForwardBatch(torch.zeros(1, len(slots_M), dtype=torch.int64), paged=paged)


def metadata_of(batch, pattern=None):
    positions_BT = torch.arange(batch.input_ids_BT.shape[1]).expand_as(batch.input_ids_BT)
    return build_metadata(pattern or Causal(), batch, positions_BT)


def seen_slots(metadata: AttentionMetadata, batch: ForwardBatch) -> list[list[int]]:
    """The slots that each token of a flat batch sees, in the order of its keys."""
    tokens = batch.input_ids_BT.shape[1]
    query_BNTH = torch.arange(1.0, tokens + 1).view(1, 1, tokens, 1)
    found: dict[int, list[int]] = {}

    def form(query_ZNTH, rows, group):
        [row_ZSX] = rows
        mask_ZTS = group.mask_ZTS
        if mask_ZTS is None:
            mask_ZTS = torch.ones(len(row_ZSX), query_ZNTH.shape[2], row_ZSX.shape[1]).bool()
            mask_ZTS = mask_ZTS.tril() if group.is_causal else mask_ZTS
        for z, queries in enumerate(query_ZNTH[:, 0, :, 0].long().tolist()):
            for t, query in enumerate(queries):
                slots = row_ZSX[z, mask_ZTS[z, t], 0].long().tolist()
                # Padding repeats a query of its row, whose first place says what it sees.
                found.setdefault(query - 1, slots)
        return query_ZNTH[:, 0]

    kept = batch.paged.slot_mapping_M[None, :, None].float()
    joined_BTX = metadata.attend(0, query_BNTH, (kept,), form)
    assert torch.equal(joined_BTX.flatten(), query_BNTH.flatten())
    return [found[token] for token in range(tokens)]


@pytest.mark.parametrize("small", [0, backend.SMALL])
@examples(60)
@given(pattern=PATTERNS, sequences=SEQUENCES, block_size=st.integers(1, 4), data=st.data())
def test_a_token_of_a_flat_batch_sees_what_the_rule_says(
    small, pattern, sequences, block_size, data
):
    blocks = -(-max(held + new for held, new in sequences) // block_size)
    count = len(sequences) * blocks
    order = data.draw(st.permutations(range(count)) | st.just(list(range(count))), label="blocks")
    tables = torch.tensor(order).view(len(sequences), blocks)
    batch = flat_batch(sequences, block_size, tables)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "SMALL", small)
        metadata = metadata_of(batch, pattern)
    expected = [
        [
            int(tables[row, key // block_size]) * block_size + key % block_size
            for key in range(held + new)
            if sees(pattern, query, key)
        ]
        for row, (held, new) in enumerate(sequences)
        for query in range(held, held + new)
    ]
    assert seen_slots(metadata, batch) == expected


@examples(60)
@given(pattern=PATTERNS, lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_rows_and_packed_documents_are_seen_as_the_mask_says(pattern, lengths):
    documents_BT = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    positions_BT = torch.cat([torch.arange(length) for length in lengths])[None]
    rows_BT = torch.arange(sum(lengths))[None]
    for documents, positions in ((documents_BT, positions_BT), (None, rows_BT)):
        batch = ForwardBatch(torch.zeros_like(rows_BT), documents_BT=documents)
        [group] = build_metadata(pattern, batch, positions).groups
        mask_BTS = group.mask_ZTS
        if mask_BTS is None:
            assert group.is_causal
            mask_BTS = torch.ones(1, len(positions[0]), len(positions[0])).tril().bool()
        tokens = Tokens(positions, documents)
        assert torch.equal(mask_BTS, visibility_mask(pattern, tokens, tokens))


def test_the_kernels_own_forms_are_used_where_they_are_exact():
    def form(*sequences, pattern=None):
        [group] = metadata_of(flat_batch(sequences), pattern).groups
        return "mask" if group.mask_ZTS is not None else group.is_causal

    assert form((0, 5), (0, 3)) is True
    assert form((7, 1), (7, 1)) is False
    assert form((0, 1)) is False
    assert form((7, 2), (7, 2)) == "mask"
    assert form((7, 1), (6, 1)) == "mask"
    assert form((0, 5), pattern=SlidingWindow(3)) == "mask"
    bare = ForwardBatch(torch.zeros(2, 5, dtype=torch.int64))
    assert metadata_of(bare).groups[0].is_causal
    assert metadata_of(bare, SlidingWindow(3)).groups[0].mask_ZTS is not None


def test_slots_that_lie_behind_each_other_are_read_in_place():
    def slots(sequences, tables=None):
        [group] = metadata_of(flat_batch(sequences, 2, tables)).groups
        return group.slots

    assert slots([(4, 1)], torch.tensor([[3, 4, 5]])) == Span(6, 0, 1, 5)
    assert slots([(4, 1), (4, 1)]) == Span(0, 6, 2, 5)
    assert isinstance(slots([(4, 1)], torch.tensor([[3, 5, 4]])), torch.Tensor)
    # What lies behind a shorter sequence may be anybody's.
    assert isinstance(slots([(4, 1), (3, 1)]), torch.Tensor)
    # Two that share their beginning, and one in the wrong order.
    assert isinstance(slots([(4, 1)] * 2, torch.tensor([[0, 1, 2], [0, 1, 3]])), torch.Tensor)
    assert isinstance(slots([(1, 1)] * 2, torch.tensor([[1], [0]])), torch.Tensor)


def test_padding_of_a_group_reads_numbers_of_its_own_sequence():
    batch = flat_batch([(5, 1), (1, 3)])
    [group] = metadata_of(batch).groups
    assert group.slots.tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 6, 6]]
    assert group.queries_ZT.tolist() == [[0, 0, 0], [1, 2, 3]]


@examples(200)
@given(st.lists(st.tuples(st.integers(1, 600), st.integers(0, 9_000)), min_size=1, max_size=40))
def test_a_group_is_at_most_half_padding(sequences):
    new, total = [new for new, _ in sequences], [held + new for new, held in sequences]
    groups = alike(new, total)
    assert sorted(row for group in groups for row in group) == list(range(len(sequences)))
    for group in groups:
        assert group == sorted(group)
        padded = max(new[row] for row in group) * max(total[row] for row in group)
        assert padded <= max(backend.SMALL, 2 * min(new[row] * total[row] for row in group))


def test_decoding_beside_a_prompt_is_two_groups():
    assert alike([1, 512, 1, 1], [700, 512, 650, 800]) == [[1], [0, 2, 3]]
