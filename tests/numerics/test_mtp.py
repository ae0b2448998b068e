"""Multi-token prediction against transformers' `MtpModel` with the same weights.

Their loader knows MTP layers only at index 61, so the weights are put in by name; the forward pass
is theirs, unchanged. It draws one token per depth and feeds it to the next, from position 1 on,
where ours keeps the trunk's positions: RoPE sees differences alone.
"""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.figures import seen
from tests.numerics.oracles import EXAMPLES, seeds, twin, v3_configs
from tests.tiny import V3_EXPERTS, build, latent_config, random_ids
from ziphius.models.forward_batch import ForwardBatch
from ziphius.models.losses import mtp_losses
from ziphius.models.model import Model

TOLERANCE = 2e-5


def mtp_twin(model: Model, theirs: torch.nn.Module) -> torch.nn.Module:
    """Build transformers' MTP model on their main model, with our MTP layers' weights."""
    from transformers.modeling_layers import MtpModel

    layers, depths = model.config.num_hidden_layers, model.config.num_nextn_predict_layers
    state = {f"embed_tokens.{k}": v for k, v in model.model.embed_tokens.state_dict().items()}
    state |= {f"shared_head.{k}": v for k, v in model.lm_head.state_dict().items()}
    for depth in range(depths):
        for name, tensor in model.model.layers[layers + depth].state_dict().items():
            name = name.replace("shared_head.norm", "post_norm")
            block = "" if re.match("enorm|hnorm|eh_proj|post_norm", name) else "mtp_block."
            state[f"layers.{depth}.{block}{name}"] = tensor
    mtp = MtpModel(theirs, depths)
    mtp.load_state_dict(state, strict=True)
    return mtp.eval()


@pytest.mark.parametrize("depths", [1, 2])
@EXAMPLES
@given(data=st.data(), seed=seeds, length=st.integers(2, 16))
@torch.no_grad()
def test_logits_equal_transformers_at_every_position(depths, data, seed, length):
    config = data.draw(v3_configs(depths=depths), label="config")
    length += depths
    ours = build(config, seed)
    theirs = twin(ours)
    mtp = mtp_twin(ours, theirs)
    ids_BT = random_ids(1, length, config.vocab_size, seed)
    states = ours.predict_mtp(ours(ids_BT), ids_BT)
    assert len(states) == depths

    hidden_BTD = theirs.model(ids_BT).last_hidden_state
    for depth, state_BTD in enumerate(states, 1):
        ahead_BT = ids_BT[:, depth:]
        positions_BT = torch.arange(depth, length)[None]
        hidden_BTD = mtp.forward_layer(
            depth - 1, hidden_BTD[:, : length - depth], positions_BT, None, input_ids=ahead_BT
        )
        expected_BTW = mtp.shared_head(hidden_BTD)
        actual_BTW = ours.logits(state_BTD[:, : length - depth])
        difference = (actual_BTW - expected_BTW).abs().max()
        assert seen("MTP logits against transformers", difference, TOLERANCE)


@torch.no_grad()
def test_drafts_equal_those_of_transformers():
    """Their whole drafting pass, alignment included, against ours over the drafted text."""
    config = latent_config(num_nextn_predict_layers=3, **V3_EXPERTS)
    ours = build(config)
    theirs = twin(ours)
    ids_BT = random_ids(1, 11, config.vocab_size)
    hidden_BTD = theirs.model(ids_BT[:, :-1]).last_hidden_state
    drafts_BK, expected_BKW, _ = mtp_twin(ours, theirs)(
        ids_BT[:, 1:], hidden_BTD, None, torch.arange(1, 11)[None], None
    )
    text_BT = torch.cat((ids_BT, drafts_BK), dim=1)
    states = ours.predict_mtp(ours(text_BT), text_BT)
    # depth k at position 9 sees the tokens up to 9 + k and predicts token 10 + k
    actual_BKW = torch.stack([ours.logits(state_BTD[:, 9]) for state_BTD in states], dim=1)
    difference = (actual_BKW - expected_BKW).abs().max()
    assert seen("MTP logits against transformers", difference, TOLERANCE)
    assert torch.equal(actual_BKW.argmax(-1), drafts_BK)


@pytest.mark.parametrize("lengths", [[5, 1, 7], [2, 3, 4, 2], [9]])
def test_losses_of_packed_documents_are_those_of_documents_alone(lengths):
    config = latent_config(num_nextn_predict_layers=2, **V3_EXPERTS)
    model = build(config)
    ids_BT = random_ids(1, sum(lengths), config.vocab_size)
    documents_BT = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    packed = mtp_losses(
        model,
        model(ForwardBatch(ids_BT, documents_BT=documents_BT)),
        ids_BT,
        documents_BT=documents_BT,
    )
    parts = ids_BT.split(lengths, dim=1)
    alone = [mtp_losses(model, model(part_BT), part_BT) for part_BT in parts]
    for depth, loss in enumerate(packed):
        assert int(loss.tokens) == sum(max(length - depth - 2, 0) for length in lengths)
        loss_sum = sum(losses[depth].loss_sum for losses in alone)
        torch.testing.assert_close(loss.loss_sum, loss_sum, rtol=1e-5, atol=1e-5)
