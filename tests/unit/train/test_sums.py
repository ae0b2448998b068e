import itertools

import pytest
import torch

from ziphius.dist.world import ALONE
from ziphius.models.gates import Routing
from ziphius.train.stage import LossOutput, Term
from ziphius.train.sums import Sums

CPU = torch.device("cpu")


def output(loss: float, *, padding: int = 0) -> LossOutput:
    """One micro-batch of four tokens, two experts each of four, even affinities."""
    experts_MK = torch.tensor([[0, 1], [0, 2], [0, 3], [1, 2]])
    probs_ME = torch.full((4, 4), 0.25)
    routing = Routing(experts_MK, torch.ones(4, 2), probs_ME, experts_MK)
    if padding:
        routing = routing.without_padding(torch.arange(4) < 4 - padding)
    return LossOutput(
        {
            "next": Term(torch.tensor(loss, requires_grad=True), "tokens"),
            "z": Term(torch.ones(()), "tokens"),
        },
        {"kl_sum": torch.tensor(loss), "length_sum": 0.1, "ratio_max": loss},
        {1: routing},
    )


def test_micro_batches_are_put_together() -> None:
    sums = Sums()
    for loss, padding in ((3.0, 0), (5.0, 1)):
        sums.add(output(loss, padding=padding))
    totals = sums.totals(ALONE, CPU)
    assert totals.terms == {"next": 8.0, "z": 2.0}
    assert list(totals.terms) == ["next", "z"]
    assert totals.metrics == {"kl_sum": 8.0, "length_sum": 0.2, "ratio_max": 5.0}
    assert totals.counts == {1: [6, 3, 3, 2]}
    assert totals.entropies[1] == pytest.approx(torch.tensor(4.0).log().item())
    assert [float(loss) for loss in sums.losses] == [3.0, 5.0]
    assert sums.weight_keys == {"next": "tokens", "z": "tokens"}


def test_the_order_of_micro_batches_does_not_show() -> None:
    losses = [1e8, 1.0, -1e8, 3e-8]
    found = set()
    for order in itertools.permutations(losses):
        sums = Sums()
        for loss in order:
            sums.add(output(loss))
        found.add(sums.totals(ALONE, CPU).terms["next"])
    assert len(found) == 1


@pytest.mark.parametrize("losses", [(1.0, torch.inf), (torch.inf, -torch.inf), (torch.nan, 1.0)])
def test_what_is_not_finite_stays_so(losses: tuple[float, float]) -> None:
    sums = Sums()
    for loss in losses:
        sums.add(output(loss))
    total = sums.totals(ALONE, CPU).terms["next"]
    assert not torch.tensor(total).isfinite()


def test_nothing_is_float64_before_it_has_left_the_device() -> None:
    sums = Sums()
    for dtype in (torch.float32, torch.bfloat16):
        number = torch.ones((), dtype=dtype, device="meta")
        sums.add(LossOutput({"next": Term(number, "tokens")}, {"kl_sum": number}))
    kept = [*sums.losses, *sums._terms["next"], *sums._metrics["kl_sum"]]
    assert all(isinstance(value, torch.Tensor) and value.is_meta for value in kept)
    assert {value.dtype for value in kept} == {torch.float32, torch.bfloat16}
