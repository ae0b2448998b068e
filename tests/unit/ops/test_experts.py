import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.examples import examples
from ziphius.ops import experts, native

HIDDEN, WIDTH = 7, 5


def dense(x_MD, experts_MK, weights_MK, gate_up_E2FD, down_EDF) -> Tensor:
    """Every token through every expert, kept where it was chosen."""
    out_MD = torch.zeros_like(x_MD)
    for expert in range(gate_up_E2FD.shape[0]):
        gate_MF, up_MF = (
            x_MD @ gate_up_E2FD[expert, :WIDTH].T,
            x_MD @ gate_up_E2FD[expert, WIDTH:].T,
        )
        weight_M = (weights_MK * (experts_MK == expert)).sum(-1)
        out_MD = out_MD + weight_M[:, None] * ((F.silu(gate_MF) * up_MF) @ down_EDF[expert].T)
    return out_MD


def random_inputs(tokens: int, per_token: int, num_experts: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [
        (tokens, HIDDEN),
        (tokens, per_token),
        (num_experts, 2 * WIDTH, HIDDEN),
        (num_experts, HIDDEN, WIDTH),
    ]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def assert_equals_dense(experts_MK: Tensor, num_experts: int, seed: int = 0) -> None:
    x_MD, weights_MK, gate_up_E2FD, down_EDF = random_inputs(*experts_MK.shape, num_experts, seed)
    grad_MD = torch.randn(x_MD.shape, generator=torch.Generator().manual_seed(seed))
    results = []
    for function in (experts.routed_experts, dense):
        leaves = [t.clone().requires_grad_() for t in (x_MD, weights_MK, gate_up_E2FD, down_EDF)]
        out_MD = function(leaves[0], experts_MK, *leaves[1:])
        out_MD.backward(grad_MD)
        grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in leaves]
        results.append((out_MD.detach(), *grads))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(params=["native", "grouped"])
def either(request, monkeypatch):
    """The kernels of the CPU, and what runs on every other device."""
    if request.param == "grouped":
        monkeypatch.setattr(native, "serves", lambda *tensors: False)


@pytest.mark.parametrize("is_native", [True, False])
@examples(60)
@given(
    tokens=st.integers(1, 30),
    num_experts=st.integers(1, 9),
    data=st.data(),
    seed=st.integers(0, 1000),
)
def test_dispatch_equals_dense_experts(is_native, tokens, num_experts, data, seed):
    """Random picks, among them dropped pairs (the value E) and experts without a token."""
    per_token = data.draw(st.integers(1, num_experts))
    picks = st.permutations(range(num_experts)).map(lambda order: order[:per_token])
    experts_MK = torch.tensor(data.draw(st.lists(picks, min_size=tokens, max_size=tokens)))
    share_dropped = data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    dropped_MK = torch.rand(experts_MK.shape, generator=torch.Generator().manual_seed(seed))
    experts_MK = torch.where(dropped_MK < share_dropped, num_experts, experts_MK)
    with pytest.MonkeyPatch.context() as monkeypatch:
        if not is_native:
            monkeypatch.setattr(native, "serves", lambda *tensors: False)
        assert_equals_dense(experts_MK, num_experts, seed)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("tokens", [1, 200])
def test_all_tokens_on_one_expert(tokens):
    assert_equals_dense(torch.full((tokens, 1), 3), num_experts=5)


@pytest.mark.usefixtures("either")
def test_no_tokens():
    x_MD, weights_MK, gate_up_E2FD, down_EDF = random_inputs(0, 2, 4, seed=0)
    experts_MK = torch.zeros(0, 2, dtype=torch.int64)
    with torch.no_grad():
        out_MD = experts.routed_experts(x_MD, experts_MK, weights_MK, gate_up_E2FD, down_EDF)
    assert out_MD.shape == (0, HIDDEN)


@pytest.mark.parametrize("alignment", [1, 8])
def test_every_pair_has_a_row_of_its_own_among_those_of_its_expert(alignment):
    generator = torch.Generator().manual_seed(0)
    experts_MK = torch.rand(400, 6, generator=generator).topk(2).indices
    experts_MK[::7, 0] = 6
    plan = experts._plan(experts_MK, 6, alignment)
    rows = len(plan.source_J)
    assert rows == experts._plan(torch.zeros_like(experts_MK), 6, alignment).source_J.numel()
    assert plan.ends_E.dtype == torch.int32
    assert plan.ends_E[-1] == rows
    assert (plan.ends_E % alignment == 0).all()
    assert plan.slot_MK.unique().numel() == experts_MK.numel()
    assert int(plan.slot_MK.max()) < rows
    token_M1 = torch.arange(400)[:, None]
    assert torch.equal(plan.source_J[plan.slot_MK], token_M1.expand(-1, 2))
    owner_MK = torch.searchsorted(plan.ends_E, plan.slot_MK, right=True)
    assert torch.equal(owner_MK, experts_MK.clamp(max=5))


def test_rows_of_no_pair_add_nothing_to_a_gradient():
    """Padding repeats token 0, whose gradient is large here."""
    x_MD, weights_MK, gate_up_E2FD, down_EDF = random_inputs(9, 1, 4, seed=0)
    experts_MK = torch.tensor([[0], [4], *[[expert] for expert in (1, 1, 2, 2, 2, 4, 3)]])
    down_EDF.requires_grad_()
    for is_native in (True, False):
        with pytest.MonkeyPatch.context() as monkeypatch:
            if not is_native:
                monkeypatch.setattr(native, "serves", lambda *tensors: False)
            out_MD = experts.routed_experts(x_MD, experts_MK, weights_MK, gate_up_E2FD, down_EDF)
        grads = torch.autograd.grad(out_MD, down_EDF, 1e4 * torch.eye(9)[:, :1].expand_as(out_MD))
        torch.testing.assert_close(grads[0][1:], torch.zeros_like(grads[0][1:]))


def test_the_host_reads_nothing_of_where_tokens_go(monkeypatch):
    """A device is not made to wait: tensors without numbers are enough."""
    monkeypatch.setattr(experts, "compute_dtype", lambda x: x.dtype)  # autocast knows no meta
    inputs = [t.to("meta", torch.bfloat16) for t in random_inputs(9, 2, 4, seed=0)]
    x_MD, weights_MK, gate_up_E2FD, down_EDF = inputs
    experts_MK = torch.zeros(9, 2, dtype=torch.int64, device="meta")
    leaves = [t.requires_grad_() for t in (x_MD, weights_MK, gate_up_E2FD, down_EDF)]
    out_MD = experts.routed_experts(leaves[0], experts_MK, *leaves[1:])
    out_MD.sum().backward()
    assert out_MD.shape == x_MD.shape
    assert all(t.grad.shape == t.shape for t in leaves)


@pytest.mark.usefixtures("either")
def test_a_dropped_pair_adds_nothing_whatever_its_weight():
    x_MD, weights_MK, gate_up_E2FD, down_EDF = random_inputs(3, 2, 4, seed=0)
    experts_MK = torch.tensor([[0, 4], [4, 4], [1, 2]])
    with_drops = experts.routed_experts(x_MD, experts_MK, weights_MK, gate_up_E2FD, down_EDF)
    alone = experts.routed_experts(
        x_MD[:1], experts_MK[:1, :1], weights_MK[:1, :1], gate_up_E2FD, down_EDF
    )
    torch.testing.assert_close(with_drops[:1], alone)
    assert with_drops[1].eq(0).all()


@pytest.mark.usefixtures("either")
def test_the_result_keeps_the_dtype_of_the_tokens():
    x_MD, weights_MK, gate_up_E2FD, down_EDF = random_inputs(3, 2, 4, seed=0)
    experts_MK = torch.tensor([[0, 1], [2, 3], [1, 2]])
    out_MD = experts.routed_experts(
        x_MD.bfloat16(), experts_MK, weights_MK, gate_up_E2FD.bfloat16(), down_EDF.bfloat16()
    )
    assert out_MD.dtype == torch.bfloat16


def test_large_experts_are_packed_a_few_at_a_time():
    """One of these fills more than half of what is held packed; nothing is kept for a gradient."""
    generator = torch.Generator().manual_seed(0)
    num_experts, hidden, width = 3, 2048, 1408
    x_MD = torch.randn(9, hidden, generator=generator)
    experts_MK = torch.rand(9, num_experts, generator=generator).topk(2).indices
    weights_MK = torch.rand(9, 2, generator=generator)
    gate_up_E2FD = 0.02 * torch.randn(num_experts, 2 * width, hidden, generator=generator)
    down_EDF = 0.02 * torch.randn(num_experts, hidden, width, generator=generator)
    with torch.no_grad():
        actual_MD = experts.routed_experts(x_MD, experts_MK, weights_MK, gate_up_E2FD, down_EDF)
    expected_MD = torch.zeros_like(x_MD)
    for expert in range(num_experts):
        gate_MF, up_MF = (x_MD @ gate_up_E2FD[expert].T).chunk(2, dim=-1)
        weight_M = (weights_MK * (experts_MK == expert)).sum(-1)
        expected_MD += weight_M[:, None] * ((F.silu(gate_MF) * up_MF) @ down_EDF[expert].T)
    torch.testing.assert_close(actual_MD, expected_MD, rtol=1e-4, atol=1e-4)
