"""A pass over a flat batch gives what a pass over whole rows gives."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.examples import examples
from tests.figures import seen
from tests.tiny import V2_EXPERTS, V3_EXPERTS, build, grouped_config, latent_config, random_ids
from ziphius.models.cache import PagedCache
from ziphius.models.forward_batch import ForwardBatch, PagedTokens
from ziphius.models.model import Model

WINDOW = {"pattern": "sliding_window", "sliding_window": 4, "attention_sinks": 2}
V2 = V2_EXPERTS | {"model_type": "deepseek_v2"}
QWEN2 = {"model_type": "qwen2", "qkv_bias": True}
QWEN3 = {"model_type": "qwen3", "qk_norm": True}
CONFIGS = {
    "v3": latent_config(num_nextn_predict_layers=1, **V3_EXPERTS),
    "v3-window": latent_config(**V3_EXPERTS | WINDOW),
    "v2": latent_config(q_lora_rank=None, **V2),
    "v2-window": latent_config(**V2 | WINDOW),
    "llama": grouped_config(),
    "llama-window": grouped_config(**WINDOW),
    "qwen2": grouped_config(**QWEN2),
    "qwen3-window": grouped_config(**QWEN3 | WINDOW),
}
MODELS: dict[str, Model] = {}


@dataclass
class Held:
    """A sequence: its tokens, its blocks, and how many of its tokens the cache has."""

    ids_T: Tensor
    table: list[int]
    done: int = 0


def flat(cache: PagedCache, parts: list[tuple[Held, int]]) -> ForwardBatch:
    """The next tokens of some sequences, whose logits are wanted of the last one each."""
    size = cache.block_size
    new_Z = torch.tensor([new for _, new in parts])
    ends_Z = new_Z.cumsum(0)
    places = [torch.arange(held.done, held.done + new) for held, new in parts]
    slots = [
        torch.tensor(held.table)[place // size] * size + place % size
        for (held, _), place in zip(parts, places, strict=True)
    ]
    longest = max(len(held.table) for held, _ in parts)
    paged = PagedTokens(
        cache,
        torch.cat((ends_Z.new_zeros(1), ends_Z)),
        torch.tensor([held.done + new for held, new in parts]),
        torch.cat(slots),
        torch.tensor([held.table + [0] * (longest - len(held.table)) for held, _ in parts]),
    )
    ids = [held.ids_T[place] for (held, _), place in zip(parts, places, strict=True)]
    return ForwardBatch(torch.cat(ids)[None], paged=paged, logits_rows_L=ends_Z - 1)


def empty_cache(model: Model, blocks: int, size: int) -> PagedCache:
    """A cache full of NaN: whatever is read before it is written shows."""
    cache = model.new_cache(blocks, size)
    for parts in cache.parts:
        for part in parts:
            part.fill_(torch.nan)
    return cache


@pytest.mark.parametrize("name", CONFIGS)
@examples(8)
@given(data=st.data())
@torch.inference_mode()
def test_any_chunks_in_any_blocks_equal_whole_rows(name, data):
    """Sequences come and go, share their first blocks, and are fed in pieces of any size."""
    model = MODELS.setdefault(name, build(CONFIGS[name]).eval())
    size = data.draw(st.integers(1, 5), label="block size")
    shared = data.draw(st.integers(0, 3), label="shared blocks")
    lengths = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=4), label="lengths")
    prefix_T = random_ids(1, shared * size, 61)[0]
    blocks = [-(-length // size) for length in lengths]
    free = data.draw(st.permutations(range(shared + sum(blocks))), label="free blocks")
    first, free = list(free[:shared]), list(free[shared:])
    cache = empty_cache(model, shared + sum(blocks), size)
    sequences = []
    for row, (length, count) in enumerate(zip(lengths, blocks, strict=True)):
        own_T = random_ids(1, length, 61, seed=row + 1)[0]
        table = first + [free.pop() for _ in range(count)]
        sequences.append(Held(torch.cat((prefix_T, own_T)), table))
    if shared:
        model(flat(cache, [(sequences[0], shared * size)]))
        for sequence in sequences:
            sequence.done = shared * size
    chunks = st.lists(st.integers(0, 7), min_size=len(lengths), max_size=len(lengths)).filter(any)
    pieces: list[list[Tensor]] = [[] for _ in sequences]
    while any(each.done < len(each.ids_T) for each in sequences):
        wanted = data.draw(chunks, label="chunks")
        parts = [
            (row, min(new, len(each.ids_T) - each.done))
            for row, (each, new) in enumerate(zip(sequences, wanted, strict=True))
        ]
        parts = [(row, new) for row, new in parts if new]
        if parts:
            output = model(flat(cache, [(sequences[row], new) for row, new in parts]))
            new_BTD = output.hidden_BTD[0].split([new for _, new in parts])
            for (row, new), hidden_TD in zip(parts, new_BTD, strict=True):
                pieces[row].append(hidden_TD)
                sequences[row].done += new
    for sequence, parts_TD in zip(sequences, pieces, strict=True):
        whole_TD = model(sequence.ids_T[None]).hidden_BTD[0, shared * size :]
        difference = (torch.cat(parts_TD) - whole_TD).abs().max() / whole_TD.abs().max()
        assert seen("flat batch = whole rows, of the largest", difference, 1e-5)


@pytest.mark.parametrize("config", [CONFIGS["v3"], CONFIGS["llama"]], ids=["v3", "llama"])
@torch.inference_mode()
def test_hidden_states_are_wanted_where_the_batch_says(config):
    model = build(config)
    first, second = (Held(random_ids(1, 7, 61, seed)[0], [seed]) for seed in (0, 1))
    batch = flat(empty_cache(model, 2, 8), [(first, 7), (second, 3)])
    output = model(batch)
    assert torch.equal(output.wanted_LD, output.hidden_BTD[0, [6, 9]])
    every = model(first.ids_T[None])
    assert torch.equal(every.wanted_LD, every.hidden_BTD[0])


@torch.inference_mode()
def test_mtp_layers_draft_behind_a_cache_what_they_predict_in_whole_rows():
    model = build(latent_config(num_nextn_predict_layers=2, **V3_EXPERTS)).eval()
    ids_BT = random_ids(1, 12, 61)
    sequence = Held(ids_BT[0], [2, 0, 1])
    cache = empty_cache(model, 3, 4)
    whole = model.predict_mtp(model(ids_BT), ids_BT)
    for new in (5, 1, 4):
        output = model(flat(cache, [(sequence, new)]))
        hidden_BTD = output.hidden_BTD
        for depth, expected_BTD in enumerate(whole, 1):
            start = sequence.done + depth
            next_ids_BT = ids_BT[:, start : start + new]
            hidden_BTD = model.draft(depth, hidden_BTD, next_ids_BT, output)
            rows = slice(sequence.done, sequence.done + new)
            torch.testing.assert_close(hidden_BTD, expected_BTD[:, rows], atol=1e-5, rtol=0)
        sequence.done += new


def test_a_batch_that_contradicts_itself_is_refused():
    model = build(grouped_config())
    batch = flat(model.new_cache(1, 8), [(Held(torch.arange(5), [0]), 5)])
    zeros_BT = torch.zeros(1, 5, dtype=torch.int64)
    with pytest.raises(ValueError, match="documents beside a cache"):
        ForwardBatch(zeros_BT, documents_BT=zeros_BT, paged=batch.paged)
    with pytest.raises(ValueError, match="branches without documents"):
        ForwardBatch(zeros_BT, branches_BT=zeros_BT)
    for wrong_BT in (zeros_BT[:, :4], zeros_BT.expand(2, -1)):
        with pytest.raises(ValueError, match="5 tokens and 5 slots has ids"):
            ForwardBatch(wrong_BT, paged=batch.paged)
