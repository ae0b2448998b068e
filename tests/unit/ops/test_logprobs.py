"""`ops/logprobs.py` against torch's log_softmax, values and gradients."""

import pytest
import torch

from ziphius.ops import native
from ziphius.ops.logprobs import (
    cross_entropy_and_squares,
    head_logprobs,
    score_rows,
    token_logprobs,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7,), (3, 5, 11)])
def test_equals_log_softmax_in_fp32(dtype, shape):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator).mul(20).to(dtype)
    ids = torch.randint(shape[-1], shape[:-1], generator=generator)
    expected = logits.float().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    actual = token_logprobs(logits, ids)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_temperature_divides_the_logits_one_for_all_or_one_per_row():
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([0, 3, 8, 3])
    expected = (logits / 0.5).log_softmax(-1)[torch.arange(4), ids]
    torch.testing.assert_close(token_logprobs(logits, ids, temperature=0.5), expected)
    rows = torch.tensor([0.5, 1.0, 2.0, 0.7])
    expected = (logits / rows[:, None]).log_softmax(-1)[torch.arange(4), ids]
    torch.testing.assert_close(token_logprobs(logits, ids, temperature=rows), expected)


def test_gradient_equals_that_of_log_softmax():
    logits = torch.randn(3, 6, dtype=torch.float32, generator=torch.Generator().manual_seed(2))
    ids = torch.tensor([5, 0, 2])
    weights = torch.tensor([1.0, -2.0, 0.5])
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    (token_logprobs(ours, ids, temperature=0.7) * weights).sum().backward()
    log_probs = (theirs / 0.7).log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    (log_probs * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kernels", [True, False])
def test_squares_of_the_normalizers_against_autograd_in_float64(monkeypatch, kernels):
    if not kernels:
        monkeypatch.setattr(native, "serves", lambda *tensors: False)
    monkeypatch.setattr("ziphius.ops.logprobs.LOGITS_BLOCK", 4 * 11)
    generator = torch.Generator().manual_seed(4)
    hidden_XD, weight_WD = (torch.randn(n, 6, generator=generator) for n in (9, 11))
    targets_X = torch.randint(11, (9,), generator=generator)
    found = [x.clone().requires_grad_() for x in (hidden_XD, weight_WD)]
    losses = cross_entropy_and_squares(*found, targets_X)
    (0.7 * losses[0] + 0.3 * losses[1]).backward()
    exact = [x.double().requires_grad_() for x in (hidden_XD, weight_WD)]
    logits_XW = exact[0] @ exact[1].T
    expected = (
        -logits_XW.log_softmax(-1)[torch.arange(9), targets_X].sum(),
        logits_XW.logsumexp(-1).square().sum(),
    )
    (0.7 * expected[0] + 0.3 * expected[1]).backward()
    for ours, theirs in zip(losses, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=0)
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=0, atol=1e-5)


def test_huge_and_masked_logits_stay_finite():
    logits = torch.tensor([[1e30, 0.0, -torch.inf], [3.0, 3.0, -torch.inf]])
    actual = token_logprobs(logits, torch.tensor([0, 1]))
    torch.testing.assert_close(actual, torch.tensor([0.0, -0.6931472]))


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_refuses_a_temperature_without_meaning(temperature):
    with pytest.raises(ValueError, match="temperature is"):
        token_logprobs(torch.zeros(1, 2), torch.tensor([0]), temperature=temperature)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("rows", [9, 0])
def test_scores_of_a_head_block_by_block_are_those_of_all_logits(monkeypatch, temperature, rows):
    monkeypatch.setattr("ziphius.ops.logprobs.LOGITS_BLOCK", 4 * 11)
    generator = torch.Generator().manual_seed(4)
    hidden_XD, weight_WD = (torch.randn(n, 6, generator=generator) for n in (rows, 11))
    ids_X = torch.randint(11, (rows,), generator=generator)
    share_X = torch.randn(rows, generator=generator)
    found = [x.clone().requires_grad_() for x in (hidden_XD, weight_WD)]
    logprobs_X = head_logprobs(*found, ids_X, temperature=temperature)
    (logprobs_X * share_X).sum().backward()
    exact = [x.double().requires_grad_() for x in (hidden_XD, weight_WD)]
    logits_XW = exact[0] @ exact[1].T / temperature
    expected_X = logits_XW.log_softmax(-1)[torch.arange(rows), ids_X]
    (expected_X * share_X).sum().backward()
    torch.testing.assert_close(logprobs_X.double(), expected_X, rtol=0, atol=1e-5)
    for ours, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=0, atol=1e-5)


def test_scores_of_a_head_follow_autocast():
    generator = torch.Generator().manual_seed(4)
    hidden_XD, weight_WD = (torch.randn(n, 64, generator=generator) for n in (9, 11))
    ids_X = torch.randint(11, (9,), generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        expected_X = token_logprobs(torch.nn.functional.linear(hidden_XD, weight_WD), ids_X)
        actual_X = head_logprobs(hidden_XD, weight_WD, ids_X)
    assert actual_X.dtype == torch.float32
    torch.testing.assert_close(actual_X, expected_X)
    assert not torch.equal(actual_X, head_logprobs(hidden_XD, weight_WD, ids_X))


def test_no_tokens_have_gradients_of_zeros() -> None:
    hidden_XD, weight_WD = (
        torch.zeros(0, 4, requires_grad=True),
        torch.ones(7, 4, requires_grad=True),
    )
    loss, squares = cross_entropy_and_squares(
        hidden_XD, weight_WD, torch.zeros(0, dtype=torch.long)
    )
    for part in (loss, squares):
        assert part == 0
        _, grad_WD = torch.autograd.grad(part, (hidden_XD, weight_WD), retain_graph=True)
        assert not grad_WD.any()


@pytest.mark.parametrize("native_serves", [True, False])
@pytest.mark.parametrize("width", [5, 64, 1000, 40_000])
def test_scores_are_the_same_alone_and_together(
    native_serves: bool, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads would share the sum of a lone row of the twin's."""
    if not native_serves:
        monkeypatch.setattr(native, "serves", lambda *tensors: False)
    generator = torch.Generator().manual_seed(0)
    logits_LW = torch.randn(7, width, generator=generator) * 3
    ids_L = torch.randint(width, (7,), generator=generator)
    temperatures_L = torch.tensor([0.0, 1.0, 0.5, 1.0, 2.0, 0.0, 0.7])
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    logprobs_L, normalizers_L = score_rows(logits_LW, ids_L, temperatures_L)
    for row in range(7):
        own = slice(row, row + 1)
        alone = score_rows(logits_LW[own], ids_L[own], temperatures_L[own])
        assert alone == (logprobs_L[own], normalizers_L[own])
    torch.set_num_threads(before)
    divisors_L = temperatures_L.masked_fill(temperatures_L == 0, 1)
    expected = token_logprobs(logits_LW.double(), ids_L, temperature=divisors_L)
    torch.testing.assert_close(logprobs_L, expected.float(), rtol=0, atol=3e-6)


def test_rows_of_wider_ones_are_scored_where_they_lie() -> None:
    wide = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    ids_L, temperatures_L = torch.tensor([0, 5, 89, 3]), torch.ones(4)
    together = score_rows(wide[:, :90], ids_L, temperatures_L)
    apart = score_rows(wide[:, :90].contiguous(), ids_L, temperatures_L)
    assert torch.equal(together[0], apart[0])
