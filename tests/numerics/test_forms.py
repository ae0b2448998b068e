"""Every faster form equals the plain one: absorbed, cached, packed, masked by a kernel's flag."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.figures import seen
from tests.numerics.oracles import CONFIGS, EXAMPLES, seeds
from tests.tiny import (
    V2_EXPERTS,
    V3_EXPERTS,
    assert_same_gradients,
    build,
    feed,
    gradients,
    grouped_config,
    latent_config,
    random_ids,
)
from ziphius.models.attention import latent
from ziphius.models.config import ModelConfig
from ziphius.models.forward_batch import ForwardBatch
from ziphius.models.losses import mtp_loss_mean, mtp_losses, next_token_loss
from ziphius.models.model import Model
from ziphius.models.sequences import Sequences

TOLERANCE = 2e-5
KINDS = pytest.mark.parametrize("make", [latent_config, grouped_config])
ANY_CONFIG = st.one_of(*CONFIGS.values())
WINDOW = {"pattern": "sliding_window", "sliding_window": 4, "attention_sinks": 2}


def logits_of(model: Model, ids_BT: Tensor, sequences: Sequences | None = None) -> Tensor:
    if sequences is None:
        return model.logits(model(ids_BT).hidden_BTD)
    return model.logits(feed(model, sequences, ids_BT))


def assert_close(actual: Tensor, expected: Tensor, figure: str) -> None:
    assert actual.shape == expected.shape
    difference = (actual - expected).abs().max()
    assert seen(f"{figure}, logits", difference, TOLERANCE)


def force_form(monkeypatch: pytest.MonkeyPatch, absorbed: bool) -> None:
    form = latent.LatentAttention.absorbed if absorbed else latent.LatentAttention.expanded
    monkeypatch.setattr(latent.LatentAttention, "absorbed", form)
    monkeypatch.setattr(latent.LatentAttention, "expanded", form)


@EXAMPLES
@given(
    config=st.one_of(CONFIGS["deepseek_v2"], CONFIGS["deepseek_v3"]),
    seed=seeds,
    rows=st.integers(1, 3),
    length=st.integers(1, 24),
)
def test_absorbed_equals_expanded(config, seed, rows, length):
    model = build(config, seed)
    ids_BT = random_ids(rows, length, config.vocab_size, seed)
    results = {}
    for absorbed in (False, True):
        with pytest.MonkeyPatch.context() as monkeypatch:
            force_form(monkeypatch, absorbed)
            logits_BTW = logits_of(model, ids_BT)
        logits_BTW.logsumexp(-1).sum().backward()
        results[absorbed] = logits_BTW, gradients(model)
    assert_close(results[True][0], results[False][0], "absorbed = expanded")
    assert_same_gradients(results[True][1], results[False][1], "absorbed = expanded, gradients")


def test_absorbed_is_chosen_with_a_cache_where_it_is_cheaper(monkeypatch):
    calls = []
    for name in ("absorbed", "expanded"):
        form = getattr(latent.LatentAttention, name)

        def spy(self, query_BNTH, row_BSX, group, name=name, form=form):
            calls.append((name, query_BNTH.shape[2]))
            return form(self, query_BNTH, row_BSX, group)

        monkeypatch.setattr(latent.LatentAttention, name, spy)
    # widths in V3's proportions: the latent is wider than a head
    config = latent_config(num_hidden_layers=1, kv_lora_rank=64)
    model = build(config)
    ids_BT = random_ids(1, 200, config.vocab_size)
    sequences = Sequences(model, 1, 201)
    with torch.no_grad():
        feed(model, sequences, ids_BT)
        feed(model, sequences, ids_BT[:, :1])
    assert calls == [("expanded", 200), ("absorbed", 1)]
    # A latent narrower than a head is cheaper absorbed at any length, but training stays expanded.
    build(latent_config(num_hidden_layers=1, kv_lora_rank=4))(ids_BT)
    assert calls[2:] == [("expanded", 200)]


@EXAMPLES
@given(
    config=ANY_CONFIG,
    seed=seeds,
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    data=st.data(),
)
def test_cached_in_ragged_chunks_equals_uncached(config, seed, lengths, data):
    """Right-padded prompts, cut to their lengths, then chunks of any size for all rows."""
    window = data.draw(st.sampled_from([{}, WINDOW]), label="pattern")
    config = ModelConfig(**(config.model_dump() | window))
    chunks = data.draw(st.lists(st.integers(1, 5), max_size=4), label="chunks")
    model = build(config, seed)
    rows, prompt, new = len(lengths), max(lengths), sum(chunks)
    ids_BT = random_ids(rows, prompt + new, config.vocab_size, seed)
    sequences = Sequences(model, rows, prompt + new)
    with torch.no_grad():
        whole = [logits_of(model, ids_BT[[row], : lengths[row] + new])[0] for row in range(rows)]
        first_BTW = logits_of(model, ids_BT[:, :prompt], sequences)
        sequences.lengths_R = torch.tensor(lengths)
        pieces = [[first_BTW[row, : lengths[row]]] for row in range(rows)]
        done = 0
        for chunk in chunks:
            starts = [length + done for length in lengths]
            fed_BT = torch.stack([ids_BT[row, s : s + chunk] for row, s in enumerate(starts)])
            next_BTW = logits_of(model, fed_BT, sequences)
            for row in range(rows):
                pieces[row].append(next_BTW[row])
            done += chunk
    for row in range(rows):
        assert_close(torch.cat(pieces[row]), whole[row], "cached = one pass")
    assert sequences.lengths_R.tolist() == [length + new for length in lengths]


@pytest.mark.parametrize(
    "config", [latent_config(**V3_EXPERTS), grouped_config()], ids=["latent", "grouped"]
)
def test_token_by_token_equals_uncached(config):
    model = build(config)
    ids_BT = random_ids(2, 20, config.vocab_size)
    sequences = Sequences(model, 2, 20)
    with torch.no_grad():
        steps = [logits_of(model, ids_BT[:, [t]], sequences) for t in range(20)]
        assert_close(torch.cat(steps, dim=1), logits_of(model, ids_BT), "cached = one pass")


@KINDS
def test_rows_go_on_alone_after_others_left(make):
    config = make()
    model = build(config)
    ids_BT = random_ids(3, 12, config.vocab_size)
    sequences = Sequences(model, 3, 12)
    with torch.no_grad():
        feed(model, sequences, ids_BT[:, :8])
        sequences.lengths_R = torch.tensor([8, 5, 3])
        fed_M = torch.cat([ids_BT[2, 3:7], ids_BT[0, 8:]])
        next_BTW = model(sequences.extend([2, 0], [4, 4], fed_M)).hidden_BTD.view(2, 4, -1)
        next_BTW = model.logits(next_BTW)
        assert_close(next_BTW[0], logits_of(model, ids_BT[[2], :7])[0, 3:], "cached = one pass")
        assert_close(next_BTW[1], logits_of(model, ids_BT[[0]])[0, 8:], "cached = one pass")


@EXAMPLES
@given(
    config=ANY_CONFIG,
    seed=seeds,
    lengths=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    window=st.sampled_from([{}, WINDOW]),
)
def test_packed_documents_equal_documents_alone(config, seed, lengths, window):
    config = ModelConfig(**(config.model_dump() | window))
    model = build(config, seed)
    ids_BT = random_ids(1, sum(lengths), config.vocab_size, seed)
    documents_BT = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    packed = model(ForwardBatch(ids_BT, documents_BT=documents_BT))
    packed_loss = next_token_loss(model, packed, ids_BT, documents_BT=documents_BT)
    alone, loss_sum, tokens = [], 0.0, 0
    for document_BT in ids_BT.split(lengths, dim=1):
        output = model(document_BT)
        loss = next_token_loss(model, output, document_BT)
        alone.append(model.logits(output.hidden_BTD))
        loss_sum, tokens = loss_sum + loss.loss_sum, tokens + int(loss.tokens)
    assert_close(model.logits(packed.hidden_BTD), torch.cat(alone, dim=1), "packed = alone")
    torch.testing.assert_close(packed_loss.loss_sum, loss_sum, rtol=1e-5, atol=1e-5)
    assert int(packed_loss.tokens) == tokens == sum(lengths) - len(lengths)


@KINDS
def test_window_with_sinks_equals_plain_softmax_over_what_it_names(make, monkeypatch):
    """The kernels are replaced by a softmax over exactly the keys that the rule allows."""
    config = make(**WINDOW)
    model = build(config)
    ids_BT = random_ids(2, 15, config.vocab_size)
    with torch.no_grad():
        actual_BTW = logits_of(model, ids_BT)
        everything_BTW = logits_of(build(make()), ids_BT)

    def plain(query_BNTH, key_BGSH, value_BGSV, *, mask_BTS, is_causal, scale):
        shared_by = query_BNTH.shape[1] // key_BGSH.shape[1]
        key_BNSH = key_BGSH.repeat_interleave(shared_by, 1)
        value_BNSV = value_BGSV.repeat_interleave(shared_by, 1)
        out_BNTV = query_BNTH.new_zeros(*query_BNTH.shape[:3], value_BNSV.shape[-1])
        for t in range(15):
            seen = [s for s in range(t + 1) if s > t - 4 or s < 2]
            scores_BNS = torch.einsum("bnh,bnsh->bns", query_BNTH[:, :, t], key_BNSH[:, :, seen])
            weights_BNS = (scores_BNS * scale).softmax(-1)
            out_BNTV[:, :, t] = torch.einsum("bns,bnsv->bnv", weights_BNS, value_BNSV[:, :, seen])
        return out_BNTV

    for module in ("latent", "grouped"):
        monkeypatch.setattr(f"ziphius.models.attention.{module}.attend", plain)
    with torch.no_grad():
        assert_close(actual_BTW, logits_of(model, ids_BT), "kernel = plain attention")
    assert (actual_BTW - everything_BTW).abs().max() > 0.1


LOW_PRECISION = pytest.mark.parametrize(
    "config",
    [
        latent_config(num_nextn_predict_layers=1, **V3_EXPERTS),
        latent_config(**V2_EXPERTS),
        grouped_config(model_type="qwen3", qk_norm=True),
    ],
    ids=["v3", "v2", "grouped"],
)


def assert_near(actual_BTW: Tensor, expected_BTW: Tensor) -> None:
    """Compare the median token (measured: 1.0 to 1.6 %): one whose experts tip is far off."""
    error_BT = (actual_BTW.float() - expected_BTW).norm(dim=-1) / expected_BTW.norm(dim=-1)
    assert error_BT.median() < 0.03


@LOW_PRECISION
def test_bfloat16_stays_near_float32(config):
    model = build(config)
    ids_BT = random_ids(2, 24, config.vocab_size)
    with torch.no_grad():
        exact_BTW = logits_of(model, ids_BT)
        close_BTW = logits_of(model.to(torch.bfloat16), ids_BT)
    assert close_BTW.dtype == torch.bfloat16
    assert_near(close_BTW, exact_BTW)


@LOW_PRECISION
def test_autocast_trains_float32_weights_near_float32(config):
    model = build(config)
    ids_BT = random_ids(2, 24, config.vocab_size)
    exact_BTW = logits_of(model, ids_BT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(ids_BT)
        assert_near(model.logits(output.hidden_BTD), exact_BTW)
        losses = mtp_losses(model, output, ids_BT)
        losses.append(next_token_loss(model, output, ids_BT))
        mtp_loss_mean(losses).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32, name
        assert parameter.grad.norm() > 0, name


@LOW_PRECISION
def test_bfloat16_cached_stays_near_float32(config):
    model = build(config)
    ids_BT = random_ids(2, 24, config.vocab_size)
    with torch.no_grad():
        exact_BTW = logits_of(model, ids_BT)
        model.to(torch.bfloat16)
        sequences = Sequences(model, 2, 24)
        pieces = [logits_of(model, part_BT, sequences) for part_BT in ids_BT.split([9, 1, 14], 1)]
    assert_near(torch.cat(pieces, dim=1), exact_BTW)
