"""Balance losses against the papers' formulas, written as loops."""

import pytest
import torch

from tests.tiny import V2_EXPERTS, V3_EXPERTS, build, latent_config, random_ids
from ziphius.models.balance import balance_loss, communication_loss, device_loss, expert_loss
from ziphius.models.gates import Routing

V2_ALPHAS = {
    "aux_loss_alpha": 0.003,
    "device_loss_alpha": 0.05,
    "communication_loss_alpha": 0.02,
}


def routing_of(preferred, probs):
    preferred_MK = torch.tensor(preferred)
    return Routing(preferred_MK, torch.ones(preferred_MK.shape), torch.tensor(probs), preferred_MK)


def random_routing(tokens=12, per_token=3, num_experts=8):
    generator = torch.Generator().manual_seed(0)
    probs_ME = torch.randn(tokens, num_experts, generator=generator).softmax(-1)
    preferred_MK = probs_ME.topk(per_token).indices
    return Routing(preferred_MK, torch.ones(tokens, per_token), probs_ME, preferred_MK)


def load(picks, expert, num_experts):
    """f_i = N_r / (K_r T) sum_t 1[token t picks i]."""
    count = sum(expert in chosen for chosen in picks)
    return num_experts / (len(picks[0]) * len(picks)) * count


def affinity(probs, expert):
    """P_i = 1 / T sum_t s_i,t."""
    return sum(row[expert] for row in probs) / len(probs)


def expert_reference(picks, probs):
    experts = range(len(probs[0]))
    return sum(load(picks, i, len(experts)) * affinity(probs, i) for i in experts)


def device_reference(picks, probs, groups):
    num_experts = len(probs[0])
    size = num_experts // groups
    total = 0.0
    for device in range(groups):
        own = range(device * size, (device + 1) * size)
        f = sum(load(picks, i, num_experts) for i in own) / size
        total += f * sum(affinity(probs, i) for i in own)
    return total


def communication_reference(picks, probs, groups, limit):
    size = len(probs[0]) // groups
    total = 0.0
    for device in range(groups):
        own = range(device * size, (device + 1) * size)
        sent = sum(any(expert in own for expert in chosen) for chosen in picks)
        f = groups / (limit * len(picks)) * sent
        total += f * sum(affinity(probs, i) for i in own)
    return total


def test_losses_equal_the_formulas():
    routing = random_routing()
    picks, probs = routing.preferred_MK.tolist(), routing.probs_ME.tolist()
    per_row = [expert_reference(picks[r : r + 4], probs[r : r + 4]) for r in (0, 4, 8)]
    assert expert_loss(routing, 1).item() == pytest.approx(expert_reference(picks, probs))
    assert expert_loss(routing, 3).item() == pytest.approx(sum(per_row) / 3)
    assert sum(per_row) / 3 != pytest.approx(expert_reference(picks, probs), rel=1e-3)
    assert device_loss(routing, 4).item() == pytest.approx(device_reference(picks, probs, 4))
    assert communication_loss(routing, 4, 3).item() == pytest.approx(
        communication_reference(picks, probs, 4, 3)
    )


def test_two_experts_by_hand():
    # both tokens pick expert 0: f = (2, 0), P = (0.7, 0.3)
    skewed = routing_of([[0], [0]], [[0.8, 0.2], [0.6, 0.4]])
    assert expert_loss(skewed, 1).item() == pytest.approx(1.4)
    # two devices of one expert: the same numbers
    assert device_loss(skewed, 2).item() == pytest.approx(1.4)
    # device 0 gets 2 of 2 tokens, limit 1: f'' = 2 / (1 * 2) * 2 = 2, device 1 gets none
    assert communication_loss(skewed, 2, 1).item() == pytest.approx(1.4)
    # per sequence of one token: f = (2, 0) in both, P = (0.8, 0.2) and (0.6, 0.4)
    assert expert_loss(skewed, 2).item() == pytest.approx((1.6 + 1.2) / 2)
    even = routing_of([[0], [1]], [[0.5, 0.5], [0.5, 0.5]])
    assert expert_loss(even, 1).item() == pytest.approx(1.0)


def test_each_loss_equals_its_alpha_when_the_load_is_even():
    even = routing_of([[0, 2], [1, 3], [2, 0], [3, 1]], [[0.25] * 4] * 4)
    experts = V2_EXPERTS | {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2}
    routings = {1: even, 3: even}
    for name in ("aux_loss_alpha", "device_loss_alpha", "communication_loss_alpha"):
        config = latent_config(**(experts | {name: 0.25}))
        # summed over the two layers
        assert balance_loss(config, routings, 2).item() == pytest.approx(0.5)
    assert balance_loss(latent_config(**experts), routings, 2).item() == 0.0


def test_alphas_add_up_and_seq_aux_chooses_rows():
    routing = random_routing()
    for seq_aux in (True, False):
        config = latent_config(**V2_EXPERTS, **V2_ALPHAS, seq_aux=seq_aux)
        expected = (
            0.003 * expert_loss(routing, 3 if seq_aux else 1)
            + 0.05 * device_loss(routing, 4)
            + 0.02 * communication_loss(routing, 4, 2)
        )
        assert balance_loss(config, {1: routing}, 3).item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    "loss",
    [
        lambda routing: expert_loss(routing, 3),
        lambda routing: device_loss(routing, 4),
        lambda routing: communication_loss(routing, 4, 2),
    ],
    ids=["expert", "device", "communication"],
)
def test_the_gradient_lowers_the_affinity_of_what_is_overloaded(loss):
    routing = random_routing()
    probs_ME = routing.probs_ME.clone().requires_grad_()
    loss(Routing(routing.experts_MK, routing.weights_MK, probs_ME, routing.preferred_MK)).backward()
    # the loss is linear in P with the load as its factor
    load_E = torch.bincount(routing.preferred_MK.flatten(), minlength=8)
    grad_E = probs_ME.grad.sum(0)
    assert grad_E[load_E.argmax()] > grad_E[load_E.argmin()]


@pytest.mark.parametrize(
    "experts", [V3_EXPERTS | {"aux_loss_alpha": 1e-4}, V2_EXPERTS | V2_ALPHAS], ids=["v3", "v2"]
)
def test_gradient_reaches_router_and_trunk_through_the_model(experts):
    config = latent_config(**experts)
    model = build(config)
    output = model(random_ids(3, 8, config.vocab_size))
    balance_loss(config, output.routings, 3).backward()
    assert model.model.layers[1].mlp.gate.weight.grad.norm() > 0
    assert model.model.embed_tokens.weight.grad.norm() > 0
    assert model.model.layers[1].mlp.experts.down_proj.grad is None


def test_v3_counts_raw_scores_and_not_the_bias():
    config = latent_config(**V3_EXPERTS, aux_loss_alpha=1e-4)
    model = build(config)
    ids_BT = random_ids(3, 8, config.vocab_size)
    gate = model.model.layers[1].mlp.gate
    gate.e_score_correction_bias.zero_()
    before = balance_loss(config, model(ids_BT).routings, 3)
    gate.e_score_correction_bias[0] = 5.0
    assert torch.equal(balance_loss(config, model(ids_BT).routings, 3), before)


def test_a_dense_model_has_nothing_to_balance():
    with pytest.raises(AssertionError, match="nothing to balance"):
        balance_loss(latent_config(), {}, 1)


@pytest.mark.parametrize("rows", [1, 3])
def test_padding_changes_no_balance_loss(rows):
    """Rows of 4 tokens padded to 6, and a row of nothing but padding, are the rows of 4."""
    text = random_routing(tokens=4 * rows)
    text_BT = (torch.arange(6) < 4).repeat(rows + 1, 1)
    text_BT[rows] = False
    noise = random_routing(tokens=text_BT.numel())
    parts = []
    for real, other in (
        (text.experts_MK, noise.experts_MK),
        (text.weights_MK, noise.weights_MK),
        (text.probs_ME, noise.probs_ME),
        (text.preferred_MK, noise.preferred_MK),
    ):
        mixed = other.clone()
        mixed[text_BT.flatten()] = real
        parts.append(mixed)
    padded = Routing(*parts).without_padding(text_BT.flatten())
    for loss, options in (
        (expert_loss, [(rows, rows + 1), (1, 1)]),
        (device_loss, [(4, 4)]),
    ):
        for expected, actual in options:
            torch.testing.assert_close(loss(padded, actual), loss(text, expected))
    torch.testing.assert_close(communication_loss(padded, 4, 2), communication_loss(text, 4, 2))
    assert torch.equal(padded.counts(), text.counts())


def test_a_batch_of_padding_alone_has_no_balance_loss():
    routing = random_routing(tokens=6).without_padding(torch.zeros(6, dtype=torch.bool))
    assert expert_loss(routing, 2) == device_loss(routing, 4) == 0.0
    assert communication_loss(routing, 4, 2) == 0.0
    assert routing.counts().sum() == 0
