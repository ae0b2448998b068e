"""Each gate against its rule, written once more as a loop over tokens."""

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch

from tests.tiny import V2_EXPERTS, V3_EXPERTS, latent_config
from ziphius.models.config import GATE_SETTINGS, ModelConfig
from ziphius.models.gates import GATES, Gate

EXPERTS, GROUPS, TOP_GROUPS, TOP_K = 12, 4, 2, 3
HIDDEN = latent_config().hidden_size
BIASES = {
    "zero": [0.0] * EXPERTS,
    "mixed": [0.4, -0.3, 0.0, 0.2, -0.1, 0.9, -0.8, 0.1, 0.0, 0.3, -0.5, 0.0],
    # every biased score is negative: a group masked with 0 instead of -inf would win
    "negative": [-3.0 + 0.1 * expert for expert in range(EXPERTS)],
}


def gate_config(method, **changes):
    base = V3_EXPERTS if method == "noaux_tc" else V2_EXPERTS
    fields = base | {
        "n_routed_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "topk_method": method,
        "routed_scaling_factor": 2.5,
    }
    grouped = method in ("noaux_tc", "group_limited_greedy")
    fields |= {"n_group": GROUPS if grouped else 1, "topk_group": TOP_GROUPS if grouped else 1}
    return latent_config(**(fields | changes))


def build_gate(method, bias="zero", **changes):
    config = gate_config(method, **changes)
    gate = GATES[method](config)
    torch.nn.init.normal_(gate.weight, generator=torch.Generator().manual_seed(0))
    if method == "noaux_tc":
        gate.e_score_correction_bias.copy_(torch.tensor(BIASES[bias]))
    return gate


def tokens(count=40):
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(1))


def logits_of(gate, x_D):
    return [sum(w * x for w, x in zip(row, x_D, strict=True)) for row in gate.weight.tolist()]


def softmax(logits):
    top = max(logits)
    powers = [math.exp(logit - top) for logit in logits]
    return [power / sum(powers) for power in powers]


def best(scores, count, among=None):
    among = range(len(scores)) if among is None else among
    return sorted(among, key=lambda index: -scores[index])[:count]


def members(groups):
    size = EXPERTS // GROUPS
    return [group * size + k for group in groups for k in range(size)]


def group_score(scores, group, count):
    return sum(sorted((scores[expert] for expert in members([group])), reverse=True)[:count])


def greedy(logits, bias):
    probs = softmax(logits)
    return best(probs, TOP_K), probs, probs


def group_limited(logits, bias):
    probs = softmax(logits)
    groups = best([group_score(probs, group, 1) for group in range(GROUPS)], TOP_GROUPS)
    return best(probs, TOP_K, members(groups)), probs, probs


def sigmoid(logits, bias):
    scores = [1 / (1 + math.exp(-logit)) for logit in logits]
    biased = [score + b for score, b in zip(scores, bias, strict=True)]
    groups = best([group_score(biased, group, 2) for group in range(GROUPS)], TOP_GROUPS)
    probs = [score / sum(scores) for score in scores]
    return best(biased, TOP_K, members(groups)), scores, probs


def top_k(logits, bias):
    chosen = best(logits, TOP_K)
    within = softmax([logits[expert] for expert in chosen])
    weights = [0.0] * EXPERTS
    for expert, weight in zip(chosen, within, strict=True):
        weights[expert] = weight
    return chosen, weights, softmax(logits)


REFERENCES = {
    "greedy": greedy,
    "group_limited_greedy": group_limited,
    "noaux_tc": sigmoid,
    "topk": top_k,
}
CASES = [
    ("greedy", "zero", False),
    ("greedy", "zero", True),
    ("group_limited_greedy", "zero", False),
    ("group_limited_greedy", "zero", True),
    ("topk", "zero", False),
    *[("noaux_tc", bias, norm) for bias in BIASES for norm in (False, True)],
]


@pytest.mark.parametrize(("method", "bias", "norm"), CASES)
def test_routing_equals_the_rule_token_by_token(method, bias, norm):
    # V2's gates divide by the sum or scale, never both
    divides_only = norm and method != "noaux_tc"
    scaling = 1.0 if divides_only else 2.5
    gate = build_gate(method, bias, norm_topk_prob=norm, routed_scaling_factor=scaling)
    x_MD = tokens()
    routing = gate(x_MD)
    for token, x_D in enumerate(x_MD.tolist()):
        logits = logits_of(gate, x_D)
        chosen, scores, probs = REFERENCES[method](logits, BIASES[bias])
        total = sum(scores[expert] for expert in chosen) if norm else 1.0
        expected = {expert: scores[expert] / total * scaling for expert in chosen}
        experts = routing.experts_MK[token].tolist()
        assert set(experts) == set(chosen)
        for expert, weight in zip(experts, routing.weights_MK[token].tolist(), strict=True):
            assert weight == pytest.approx(expected[expert], rel=1e-5)
        assert routing.probs_ME[token].tolist() == pytest.approx(probs, rel=1e-5)
        preferred = best(scores, TOP_K) if method == "noaux_tc" else chosen
        assert set(routing.preferred_MK[token].tolist()) == set(preferred)


def test_a_table_entry_for_every_reference():
    assert GATES.keys() == REFERENCES.keys()


@pytest.mark.parametrize("method", ["noaux_tc", "topk"])
def test_normalised_weights_sum_to_the_scaling_factor(method):
    norm = {"norm_topk_prob": True} if method == "noaux_tc" else {}
    weights_MK = build_gate(method, **norm)(tokens()).weights_MK
    torch.testing.assert_close(weights_MK.sum(-1), torch.full((40,), 2.5))


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("method", ["group_limited_greedy", "noaux_tc"])
def test_a_token_reaches_at_most_topk_group_groups(method, bias):
    routing = build_gate(method, bias, num_experts_per_tok=6)(tokens())
    for experts in routing.experts_MK.tolist():
        assert len(set(experts)) == 6
        assert len({expert // (EXPERTS // GROUPS) for expert in experts}) <= TOP_GROUPS


def test_the_bias_decides_who_is_chosen_but_not_the_weight():
    plain, biased = build_gate("noaux_tc"), build_gate("noaux_tc")
    biased.e_score_correction_bias[5] = 10.0
    x_MD = tokens()
    routing = biased(x_MD)
    assert (routing.experts_MK == 5).any(dim=1).all()
    assert not (plain(x_MD).experts_MK == 5).any(dim=1).all()
    assert (routing.weights_MK <= 2.5).all()


@pytest.mark.parametrize("method", GATES)
def test_gradient_reaches_the_router_and_the_token_but_not_the_bias(method):
    gate = build_gate(method)
    x_MD = tokens().requires_grad_()
    routing = gate(x_MD)
    (routing.weights_MK * torch.arange(1.0, TOP_K + 1)).sum().backward()
    assert gate.weight.grad.norm() > 0
    assert x_MD.grad.norm() > 0
    assert [name for name, _ in gate.named_parameters()] == ["weight"]
    assert not any(buffer.requires_grad for buffer in gate.buffers())


def test_bias_update_of_a_hand_computed_case():
    gate = build_gate("noaux_tc")
    counts_E = torch.tensor([10, 2, 6, 6, 7, 5, 6, 6, 6, 6, 0, 12])  # mean 6
    gate.update_bias(counts_E, rate=0.25)
    expected = [-0.25, 0.25, 0, 0, -0.25, 0.25, 0, 0, 0, 0, 0.25, -0.25]
    assert gate.e_score_correction_bias.tolist() == expected
    gate.update_bias(counts_E, rate=0.25)
    assert gate.e_score_correction_bias.tolist() == [2 * step for step in expected]
    gate.update_bias(counts_E, rate=0.0)
    assert gate.e_score_correction_bias.tolist() == [2 * step for step in expected]


def test_updates_even_out_a_skewed_load():
    gate = build_gate("noaux_tc", "mixed")
    x_MD = tokens(400)
    before_E = gate(x_MD).counts()
    for _ in range(300):
        gate.update_bias(gate(x_MD).counts(), rate=0.01)
    after_E = gate(x_MD).counts()
    assert after_E.sum() == before_E.sum() == 400 * TOP_K
    assert (after_E - 100).abs().max() < 30 < (before_E - 100).abs().max()


def test_counts_leave_out_dropped_pairs():
    routing = build_gate("greedy")(tokens(2))
    dropped = replace(routing, experts_MK=torch.tensor([[0, 3, EXPERTS], [EXPERTS, 3, 11]]))
    assert dropped.counts().tolist() == [1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("method", GATES)
def test_bfloat16_and_autocast_route_in_float32(method):
    gate = build_gate(method, "mixed").bfloat16()
    exact = build_gate(method, "mixed")
    exact.weight.data = gate.weight.float()
    x_MD = tokens(400).bfloat16()
    expected = exact(x_MD.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = exact(x_MD)
    for routing in (gate(x_MD), under_autocast):
        assert routing.weights_MK.dtype == routing.probs_ME.dtype == torch.float32
        assert torch.equal(routing.experts_MK, expected.experts_MK)
        assert torch.equal(routing.weights_MK, expected.weights_MK)


@pytest.mark.parametrize(
    "cast", [Gate.bfloat16, Gate.half, Gate.double, lambda gate: gate.to(torch.bfloat16)]
)
def test_the_bias_stays_exact_when_the_model_is_cast(cast):
    gate = build_gate("noaux_tc", "mixed")
    before_E = gate.e_score_correction_bias.clone()
    cast(gate)
    assert gate.weight.dtype != torch.float32
    assert gate.e_score_correction_bias.dtype == torch.float32
    assert torch.equal(gate.e_score_correction_bias, before_E)
    assert "e_score_correction_bias" in gate.state_dict()
    gate.update_bias(torch.arange(EXPERTS), rate=0.001)
    assert not torch.equal(gate.e_score_correction_bias, before_E)


OTHER_VALUES = {"norm_topk_prob": True, "routed_scaling_factor": 7.0, "n_group": 3, "topk_group": 3}
"""Of each setting that some gate reads: one that is neither its default nor the test's."""


def test_every_gate_says_what_it_reads():
    chosen = ModelConfig.model_fields["topk_method"].annotation
    assert set(GATE_SETTINGS) == set(GATES) == set(get_args(chosen))
    assert {name for names in GATE_SETTINGS.values() for name in names} == set(OTHER_VALUES)


@pytest.mark.parametrize("setting", OTHER_VALUES)
@pytest.mark.parametrize("method", GATES)
def test_a_setting_is_read_or_refused(method, setting):
    """A gate that lists a setting without reading it, or reads one that it does not list, fails."""
    changes = {"norm_topk_prob": False, "n_group": 1, "topk_group": 1}
    if "n_group" in GATE_SETTINGS[method]:
        changes |= {"n_group": GROUPS, "topk_group": TOP_GROUPS}
    plain = gate_config(method, **changes)
    # Not validated, so that what a gate ignores can be shown to it.
    changed = plain.model_copy(update={setting: OTHER_VALUES[setting]})
    routings = []
    for config in (plain, changed):
        gate = GATES[method](config)
        torch.nn.init.normal_(gate.weight, generator=torch.Generator().manual_seed(0))
        routings.append(gate(tokens()))
    first, second = routings
    is_same = torch.equal(first.experts_MK, second.experts_MK) and torch.equal(
        first.weights_MK, second.weights_MK
    )
    assert is_same == (setting not in GATE_SETTINGS[method])
    if is_same:
        fields = plain.model_dump() | {setting: OTHER_VALUES[setting]}
        with pytest.raises(ValueError, match=rf"{setting} = .*: has no effect with topk_method"):
            ModelConfig.model_validate(fields)
