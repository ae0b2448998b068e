import pytest
import torch

from tests.tiny import V3_EXPERTS, build, latent_config, random_ids
from ziphius.models.losses import mtp_loss_mean, mtp_losses
from ziphius.models.sequences import Sequences

LENGTH = 10


@pytest.fixture
def model():
    return build(latent_config(num_nextn_predict_layers=2, **V3_EXPERTS))


@pytest.fixture
def ids_BT(model):
    return random_ids(1, LENGTH, model.config.vocab_size)


def is_mtp(name):
    return name.startswith(("model.layers.2.", "model.layers.3."))


@pytest.mark.parametrize("changed", range(LENGTH))
def test_depth_k_sees_token_t_plus_k_and_nothing_beyond(model, ids_BT, changed):
    other_BT = ids_BT.clone()
    other_BT[0, changed] = (other_BT[0, changed] + 1) % model.config.vocab_size
    with torch.no_grad():
        states, others = (model.predict_mtp(model(ids), ids) for ids in (ids_BT, other_BT))
    for depth, (state_BTD, other_BTD) in enumerate(zip(states, others, strict=True), 1):
        difference_T = (state_BTD - other_BTD).abs().amax(-1)[0]
        first = max(changed - depth, 0)
        # not 0: a token that goes to another expert shifts the rows of the others' products
        assert difference_T[:first].lt(1e-5).all()
        assert difference_T[first] > 1e-2


@pytest.mark.parametrize("detach_trunk", [False, True])
def test_gradient_reaches_the_trunk_unless_detached(model, ids_BT, detach_trunk):
    losses = mtp_losses(model, model(ids_BT), ids_BT, detach_trunk=detach_trunk)
    mtp_loss_mean(losses).backward()
    touched = {
        name for name, p in model.named_parameters() if p.grad is not None and p.grad.norm() > 0
    }
    names = {name for name, _ in model.named_parameters()}
    own = {name for name in names if is_mtp(name)}
    # the head is shared; with the trunk detached it still learns from the MTP losses
    expected = own | {"lm_head.weight"} if detach_trunk else names - {"model.norm.weight"}
    assert expected <= touched
    if detach_trunk:
        assert touched == expected


def test_the_last_depth_hands_gradient_to_the_first(model, ids_BT):
    second = mtp_losses(model, model(ids_BT), ids_BT, detach_trunk=True)[1]
    second.loss_sum.backward()
    assert model.model.layers[2].eh_proj.weight.grad.norm() > 0


def test_prediction_does_not_change_what_the_trunk_gave(model, ids_BT):
    output = model(ids_BT)
    before_BTD = output.hidden_BTD.clone()
    model.predict_mtp(output, ids_BT)
    assert torch.equal(output.hidden_BTD, before_BTD)


def test_a_model_without_further_layers_predicts_none(ids_BT):
    model = build(latent_config())
    assert model.predict_mtp(model(ids_BT), ids_BT) == []


def test_a_pass_with_a_cache_is_refused(model, ids_BT):
    output = model(Sequences(model, *ids_BT.shape).rows(ids_BT))
    with pytest.raises(AssertionError, match="drafting from a cache"):
        model.predict_mtp(output, ids_BT)


def test_the_projection_reads_embedding_then_hidden_state(model):
    layer = model.model.layers[2]
    D = model.config.hidden_size
    hidden_BTD, embedded_BTD = torch.randn(2, 1, 3, D, generator=torch.Generator().manual_seed(0))
    layer.enorm.weight.data.fill_(2.0)
    layer.hnorm.weight.data.fill_(3.0)
    seen = []
    layer.eh_proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    context = model(torch.zeros(1, 3, dtype=torch.long)).context
    layer.predict(hidden_BTD, embedded_BTD, context)
    scale = [(x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() for x in (embedded_BTD, hidden_BTD)]
    torch.testing.assert_close(seen[0][..., :D], 2.0 * embedded_BTD * scale[0])
    torch.testing.assert_close(seen[0][..., D:], 3.0 * hidden_BTD * scale[1])
