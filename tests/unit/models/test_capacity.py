import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from ziphius.models.capacity import EXEMPT_EVERY, drop_overflow
from ziphius.models.gates import Routing


def routing_of(experts_MK, probs_ME):
    return Routing(experts_MK, probs_ME.gather(1, experts_MK), probs_ME, preferred_MK=experts_MK)


def random_routing(tokens, per_token, num_experts, seed):
    generator = torch.Generator().manual_seed(seed)
    logits_ME = torch.randn(tokens, num_experts, generator=generator)
    logits_ME[:, 0] += 1.5  # the first device overflows
    probs_ME = logits_ME.softmax(-1)
    return routing_of(probs_ME.topk(per_token).indices, probs_ME)


def kept_pairs(routing, num_groups, factor, length):
    """The rule as a loop: fill each device by falling affinity, exempt sequences first."""
    num_experts = routing.probs_ME.shape[1]
    pairs = [
        (token, expert, routing.probs_ME[token, expert].item())
        for token, experts in enumerate(routing.experts_MK.tolist())
        for expert in experts
    ]
    capacity = int(factor * len(pairs) / num_groups)
    kept = set()
    for device in range(num_groups):
        own = [pair for pair in pairs if pair[1] // (num_experts // num_groups) == device]
        exempt = [pair for pair in own if (pair[0] // length) % EXEMPT_EVERY == 0]
        others = sorted((pair for pair in own if pair not in exempt), key=lambda pair: -pair[2])
        kept.update(pair[:2] for pair in exempt)
        kept.update(pair[:2] for pair in others[: max(capacity - len(exempt), 0)])
    return kept


@examples(60)
@given(
    rows=st.integers(1, 14),
    length=st.integers(1, 5),
    groups=st.integers(1, 4),
    per_group=st.integers(1, 3),
    factor=st.sampled_from([0.1, 0.5, 1.0, 1.3, 10.0]),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_a_device_over_capacity_keeps_its_pairs_of_highest_affinity(
    rows, length, groups, per_group, factor, seed, data
):
    num_experts = groups * per_group
    per_token = data.draw(st.integers(1, num_experts))
    routing = random_routing(rows * length, per_token, num_experts, seed)
    dropped = drop_overflow(routing, groups, factor, length)
    kept = kept_pairs(routing, groups, factor, length)
    for token, experts in enumerate(routing.experts_MK.tolist()):
        for k, expert in enumerate(experts):
            keep = (token, expert) in kept
            assert dropped.experts_MK[token, k] == (expert if keep else num_experts)
            assert dropped.weights_MK[token, k] == (routing.weights_MK[token, k] if keep else 0.0)
    assert torch.equal(dropped.probs_ME, routing.probs_ME)
    assert torch.equal(dropped.preferred_MK, routing.preferred_MK)


def test_hand_computed_case():
    # sequences of one token; the first is exempt. 4 pairs on 2 devices: each may take 2.
    probs_ME = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    routing = routing_of(torch.tensor([[0], [0], [0], [1]]), probs_ME)
    dropped = drop_overflow(routing, num_groups=2, capacity_factor=1.0, sequence_length=1)
    assert dropped.experts_MK.tolist() == [[0], [0], [2], [1]]
    torch.testing.assert_close(dropped.weights_MK, torch.tensor([[0.6], [0.9], [0.0], [0.7]]))
    assert dropped.counts().tolist() == [2, 1]


@pytest.mark.parametrize("rows", [1, 10, 25])
def test_every_tenth_sequence_keeps_all_its_pairs(rows):
    length = 6
    routing = random_routing(rows * length, 2, 4, seed=0)
    dropped = drop_overflow(routing, 2, 0.01, length)
    kept_BX = (dropped.experts_MK < 4).view(rows, -1)
    assert kept_BX[::EXEMPT_EVERY].all()
    others = [row for row in range(rows) if row % EXEMPT_EVERY]
    assert not kept_BX[others].any()


@pytest.mark.parametrize("at_once", [1, 2, 5, 20])
def test_the_same_sequences_of_a_step_are_exempt_in_any_micro_batches(at_once):
    length, exempt = 6, []
    for first in range(0, 20, at_once):
        routing = random_routing(at_once * length, 2, 4, seed=first)
        dropped = drop_overflow(routing, 2, 0.01, length, first)
        kept_BX = (dropped.experts_MK < 4).view(at_once, -1)
        exempt += [first + row for row in range(at_once) if kept_BX[row].all()]
    assert exempt == [0, 10]


@pytest.mark.parametrize("factor", [0.3, 0.7, 1.0])
def test_padding_takes_no_capacity(factor):
    rows, length = 4, 6
    routing = random_routing(rows * length, 2, 4, seed=0)
    text_M = torch.arange(rows * length) % length < 4
    padded = drop_overflow(routing.without_padding(text_M), 2, factor, length, 1)
    cut = Routing(*(part[text_M] for part in parts_of(routing)))
    alone = drop_overflow(cut, 2, factor, 4, 1)
    assert 0 < (alone.experts_MK == 4).sum() < alone.experts_MK.numel()
    assert torch.equal(padded.experts_MK[text_M], alone.experts_MK)
    assert torch.equal(padded.weights_MK[text_M], alone.weights_MK)
    assert (padded.experts_MK[~text_M] == 4).all()


def parts_of(routing):
    return routing.experts_MK, routing.weights_MK, routing.probs_ME, routing.preferred_MK


def test_gradient_flows_through_what_is_kept_alone():
    routing = random_routing(40, 2, 4, seed=0)
    probs_ME = routing.probs_ME.clone().requires_grad_()
    dropped = drop_overflow(routing_of(routing.experts_MK, probs_ME), 2, 0.5, 4)
    dropped.weights_MK.sum().backward()
    kept_MK = dropped.experts_MK < 4
    assert 0 < kept_MK.sum() < kept_MK.numel()
    assert torch.equal(probs_ME.grad.gather(1, routing.experts_MK), kept_MK.float())
