"""`rl/objective.py`: hand values, the formulas in loops, numeric gradients."""

import math
import statistics

import pytest
import torch

from tests.unit.rl.toys import tensor
from ziphius.rl.objective import clipped_losses, group_advantages, k3_penalties


def test_advantages_by_hand() -> None:
    rewards_GA = tensor([[1, 0, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    advantages_GA, differs_G = group_advantages(rewards_GA, "std")
    third = 1 / math.sqrt(3)
    expected = tensor([[1, -1, -1, 1], [3 * third, -third, -third, -third], [0] * 4, [0] * 4])
    torch.testing.assert_close(advantages_GA, expected)
    assert differs_G.tolist() == [True, True, False, False]
    centred_GA, _ = group_advantages(rewards_GA, "mean")
    torch.testing.assert_close(centred_GA[1], tensor([[0.75, -0.25, -0.25, -0.25]])[0])


@pytest.mark.parametrize("kind", ["std", "mean"])
def test_advantages_are_the_formula_in_loops(kind: str) -> None:
    rewards_GA = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)).double()
    actual_GA, _ = group_advantages(rewards_GA, kind)
    for row, rewards in enumerate(rewards_GA.tolist()):
        mean, spread = statistics.fmean(rewards), statistics.pstdev(rewards)
        for place, reward in enumerate(rewards):
            expected = (reward - mean) / (spread if kind == "std" else 1)
            assert actual_GA[row, place].item() == pytest.approx(expected)


def test_equal_rewards_that_no_float_holds_teach_nothing() -> None:
    rewards_GA = torch.full((1, 11), 1.1)
    assert rewards_GA.mean(dim=1) != rewards_GA[0, 0], "else this test shows nothing"
    advantages_GA, differs_G = group_advantages(rewards_GA, "std")
    assert advantages_GA.tolist() == [[0.0] * 11]
    assert differs_G.tolist() == [False]


def test_the_clip_by_hand() -> None:
    ratios = [1.0, 1.5, 1.5, 0.5, 0.5, 1.3, 0.9]
    advantages = [2.0, 2.0, -2.0, 2.0, -2.0, 1.0, -1.0]
    # min(ratio A, clip(ratio, 0.8, 1.28) A), worked out one by one.
    wins = [2.0, 2.56, -3.0, 1.0, -1.6, 1.28, -0.9]
    losses_X, clipped_X = clipped_losses(
        torch.tensor(ratios).log(), torch.zeros(7), torch.tensor(advantages), 0.2, 0.28
    )
    torch.testing.assert_close(losses_X, -torch.tensor(wins))
    assert clipped_X.tolist() == [False, True, False, False, True, True, False]


def test_the_clip_is_the_formula_in_loops_with_its_numeric_gradient() -> None:
    generator = torch.Generator().manual_seed(1)
    logprobs_X, old_logprobs_X, advantages_X = (
        torch.randn(40, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    losses_X, clipped_X = clipped_losses(logprobs_X, old_logprobs_X, advantages_X, 0.1, 0.3)
    for place in range(40):
        ratio = math.exp(logprobs_X[place] - old_logprobs_X[place])
        free = ratio * advantages_X[place].item()
        held = min(max(ratio, 0.9), 1.3) * advantages_X[place].item()
        assert losses_X[place].item() == pytest.approx(-min(free, held))
        assert clipped_X[place].item() == (held < free)
    assert 5 < clipped_X.sum() < 35
    logprobs_X.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: clipped_losses(x, old_logprobs_X, advantages_X, 0.1, 0.3)[0], logprobs_X
    )
    clipped_losses(logprobs_X, old_logprobs_X, advantages_X, 0.1, 0.3)[0].sum().backward()
    assert torch.equal(logprobs_X.grad == 0, clipped_X)


def test_k3_by_hand_and_with_its_numeric_gradient() -> None:
    logprobs_X = torch.tensor([-1.0, -1.0, -2.0, -2.0], dtype=torch.float64, requires_grad=True)
    old_logprobs_X = torch.tensor([-1.0, -1.0, -2.0, -1.0], dtype=torch.float64)
    ref_logprobs_X = torch.tensor([-1.0, -2.0, -1.0, -1.0], dtype=torch.float64)
    penalties_X = k3_penalties(logprobs_X, old_logprobs_X, ref_logprobs_X)
    expected = [0.0, math.exp(-1) + 1 - 1, math.exp(1) - 1 - 1, math.exp(-1) * (math.exp(1) - 2)]
    torch.testing.assert_close(penalties_X.detach(), torch.tensor(expected, dtype=torch.float64))
    assert torch.autograd.gradcheck(
        lambda x: k3_penalties(x, old_logprobs_X, ref_logprobs_X), logprobs_X
    )
    penalties_X.sum().backward()
    # ratio ln (model / reference): nothing where model and reference agree.
    torch.testing.assert_close(
        logprobs_X.grad, torch.tensor([0.0, 1.0, -1.0, -math.exp(-1)], dtype=torch.float64)
    )


def test_k3_of_a_small_step_is_not_rounded_away() -> None:
    model_X = torch.tensor([-2.0])
    penalty = k3_penalties(model_X, model_X, model_X + 1e-3)
    assert penalty.item() == pytest.approx(0.5e-6, rel=1e-3)


@pytest.mark.parametrize("sampler", [[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]])
def test_k3_and_its_gradient_are_those_of_the_divergence_over_all_tokens(
    sampler: list[float],
) -> None:
    """Every token weighed by its chance to be sampled, by the model itself or by an older one.

    Without the ratio the gradient is that of KL(reference || model), the other divergence.
    """
    logits_W = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log().requires_grad_()
    reference_W = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    sampled_W = torch.tensor(sampler, dtype=torch.float64).log()
    model_W = logits_W.log_softmax(0)
    divergence = (model_W.exp() * (model_W - reference_W)).sum()
    averaged = (sampled_W.exp() * k3_penalties(model_W, sampled_W, reference_W)).sum()
    torch.testing.assert_close(averaged, divergence)
    expected_W, actual_W = (
        torch.autograd.grad(each, logits_W, retain_graph=True)[0] for each in (divergence, averaged)
    )
    torch.testing.assert_close(actual_W, expected_W)
