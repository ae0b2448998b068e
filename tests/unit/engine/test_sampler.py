"""`engine/sampler.py`: rows that come and go, each as if it were alone."""

import random
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from ziphius.core.errors import ConfigError
from ziphius.engine.processors import LogitsProcessor, ProcessorError
from ziphius.engine.sampler import NOT_FINITE, NOTHING_LEFT, BatchSampler
from ziphius.ops import native
from ziphius.ops.logprobs import token_logprobs
from ziphius.ops.sampling import Sampler
from ziphius.ops.sampling_config import SamplingConfig

CONFIGS = [
    SamplingConfig(temperature=0.0),
    SamplingConfig(),
    SamplingConfig(seed=3),
    SamplingConfig(temperature=0.7, seed=1),
    SamplingConfig(top_k=5),
    SamplingConfig(temperature=0.6, top_p=0.95),
    SamplingConfig(min_p=0.1, temperature=1.7),
    SamplingConfig(temperature=1.3, top_k=40, top_p=0.8, min_p=0.02, seed=9),
    SamplingConfig(presence_penalty=0.5, frequency_penalty=-0.3, repetition_penalty=1.2),
    SamplingConfig(temperature=0.0, logit_bias={3: 100.0}),
]


@pytest.fixture(params=["native", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run a test on the kernels and on their twin, on two threads."""
    if request.param == "torch":
        monkeypatch.setattr(native, "serves", lambda *tensors: False)
    elif not native.serves():
        pytest.skip(f"native kernels {native.status()}")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield request.param
    torch.set_num_threads(before)


def logits(rows: int, width: int, scale: float = 3.0, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * scale


def sampler_of(rows: Sequence[int], limit: int | None = None, top: int = 0) -> BatchSampler:
    """Give each row the config, the sequence id and the past that go with its number."""
    sampler = BatchSampler(limit)
    for row in rows:
        config = CONFIGS[row % len(CONFIGS)]
        past = [row % 7, 3, 5, 3]
        sampler.add(
            row, config, row * 11, (1, 2, row % 9), token_ids=past, logprobs=top * (row % 3)
        )
    return sampler


@pytest.mark.parametrize("width", [70, 2000, 40_000])
def test_a_row_is_the_same_in_any_company(way: str, width: int) -> None:
    """Also alone, where torch would share the sum of a wide row among threads."""
    rows, chooser = list(range(20)), random.Random(width)
    row_logits = logits(20, width)
    alone = {}
    for row in rows:
        sampled = sampler_of([row], width - 3, top=2)(row_logits[[row]], [row], [row + 4])
        alone[row] = (sampled.ids_L[0], sampled.logprobs_L[0], sampled.top.get(0))
    sampler = sampler_of(rows, width - 3, top=2)
    for _ in range(4 if width == 40_000 else 12):
        some = chooser.sample(rows, chooser.randint(1, 20))
        sampled = sampler(row_logits[some], some, [row + 4 for row in some])
        assert not sampled.failures
        for place, row in enumerate(some):
            own = (sampled.ids_L[place], sampled.logprobs_L[place], sampled.top.get(place))
            assert own == alone[row]
            assert (own[2] is not None) == (row % 3 > 0)


def test_rows_come_and_go(way: str) -> None:
    row_logits, chooser = logits(30, 300), random.Random(0)
    expected = {row: sampler_of([row])(row_logits[[row]], [row], [9]) for row in range(30)}
    sampler, present = BatchSampler(), set[int]()
    for _ in range(60):
        row = chooser.randrange(30)
        if row in present:
            sampler.remove(row)
            present.remove(row)
        else:
            config, past = CONFIGS[row % len(CONFIGS)], [row % 7, 3, 5, 3]
            sampler.add(row, config, row * 11, (1, 2, row % 9), token_ids=past)
            present.add(row)
        some = sorted(present)
        sampled = sampler(row_logits[some], some, [9] * len(some))
        for place, one in enumerate(some):
            assert sampled.ids_L[place] == expected[one].ids_L[0]
            assert sampled.logprobs_L[place] == expected[one].logprobs_L[0]


def test_draws_are_those_of_the_plain_sampler(way: str) -> None:
    """What earlier versions drew for a seed, an id and a position is still drawn."""
    plain = [config for config in CONFIGS if not (config.penalties or config.logit_bias)] * 8
    row_logits = logits(len(plain), 1500)
    numbers, positions = list(range(5, 5 + len(plain))), list(range(len(plain)))
    sampler = BatchSampler()
    for row, config in enumerate(plain):
        sampler.add(row, config, numbers[row])
    sampled = sampler(row_logits, list(range(len(plain))), positions)
    before = Sampler(plain, numbers)
    assert torch.equal(sampled.ids_L, before(row_logits, positions))
    logprobs = token_logprobs(row_logits, sampled.ids_L, temperature=before.temperatures_B)
    torch.testing.assert_close(sampled.logprobs_L, logprobs, rtol=0, atol=2e-6)


def test_tokens_past_the_limit_count_but_do_not_come(way: str) -> None:
    row_logits = logits(len(CONFIGS), 200)
    row_logits[:, 150:] += 20
    sampled = sampler_of(range(len(CONFIGS)), 150)(row_logits, range(len(CONFIGS)), [0] * 10)
    assert (sampled.ids_L < 150).all()
    assert (sampled.logprobs_L < -5).all()


def test_logprobs_are_the_model_s_own(way: str) -> None:
    """Before processors and filters, at the row's temperature."""
    row_logits = logits(10, 400)
    sampled = sampler_of(range(10), top=1)(row_logits, range(10), [2] * 10)
    temperatures = torch.tensor([config.temperature or 1.0 for config in CONFIGS])
    expected = token_logprobs(row_logits, sampled.ids_L, temperature=temperatures)
    torch.testing.assert_close(sampled.logprobs_L, expected, rtol=0, atol=2e-6)
    assert sampled.ids_L[9] == 3  # biased by 100
    for place, top in sampled.top.items():
        values = (row_logits[place] / temperatures[place]).log_softmax(-1).topk(len(top.ids))
        assert list(top.ids) == values.indices.tolist()
        torch.testing.assert_close(torch.tensor(top.logprobs), values.values, rtol=0, atol=2e-6)


def test_the_largest_logprob_is_equal_exactly_where_it_is_the_chosen_one(way: str) -> None:
    """lm-eval's `is_greedy`: logits one bit apart must not become equal log-probabilities."""
    row_logits = torch.full((2, 4000), 5.0)
    row_logits[:, 17], row_logits[:, 40] = 0.25, 0.25
    row_logits[:, 100:3000] = -1.0
    row_logits[:, :17] = row_logits[:, 18:40] = row_logits[:, 41:] = 0.0
    row_logits[:, 17] = torch.tensor(0.25).nextafter(torch.tensor(1.0))
    assert row_logits[0, 17] > row_logits[0, 40]
    assert (token_logprobs(row_logits, torch.tensor([17, 40])).unique().numel()) == 1
    sampler = BatchSampler()
    sampler.add(0, SamplingConfig(temperature=0.0), 0, logprobs=1)
    sampler.add(1, SamplingConfig(temperature=0.0), 1, (), [Only(40)], logprobs=1)
    sampled = sampler(row_logits, [0, 1], [0, 0])
    assert sampled.ids_L.tolist() == [17, 40]
    assert [sampled.top[row].ids for row in (0, 1)] == [(17,), (17,)]
    assert sampled.top[0].logprobs[0] == sampled.logprobs_L[0]
    assert sampled.top[1].logprobs[0] > sampled.logprobs_L[1]


class Only(LogitsProcessor):
    """Lets one token through, then the next number; what it is told is written down."""

    def __init__(self, first: int, last: int = 10**9) -> None:
        self.first, self.last, self.calls = first, last, list[list[int]]()
        self.taken: list[int] = []

    def __call__(self, logits_W: Tensor, token_ids: Sequence[int]) -> None:
        self.calls.append(list(token_ids))
        assert list(token_ids) == self.taken
        wanted = self.first + len(self.taken)
        if wanted > self.last:
            raise ProcessorError("it is over")
        kept = logits_W[wanted].clone()
        logits_W.fill_(-torch.inf)
        logits_W[wanted] = kept

    def accept(self, token_id: int) -> str | None:
        self.taken.append(token_id)
        return "last" if token_id == self.last else None

    def rollback(self, count: int) -> None:
        del self.taken[len(self.taken) - count :]


def test_a_processor_changes_its_own_row_and_hears_its_tokens(way: str) -> None:
    row_logits = logits(3, 64)
    before = row_logits.clone()
    sampler, only = BatchSampler(), Only(7, last=8)
    sampler.add(4, SamplingConfig(), 0)
    sampler.add(2, SamplingConfig(), 1, (), [only])
    sampler.add(9, SamplingConfig(), 2)
    sampled = sampler(row_logits, [4, 2, 9], [0, 0, 0])
    assert sampled.ids_L[1] == 7
    assert torch.equal(row_logits, before)
    assert sampler.accept(2, 7) is None
    assert sampler.accept(2, 8) == "last"
    failed = sampler(row_logits, [4, 2, 9], [1, 2, 1])
    assert failed.failures == {1: "it is over"}
    sampler.rollback(2, 2)
    again = sampler(row_logits, [4, 2, 9], [0, 0, 0])
    assert torch.equal(again.ids_L, sampled.ids_L)
    assert only.calls == [[], [7, 8], []]


def test_drafts_are_followed_and_taken_back(way: str) -> None:
    """Several positions of a row at once are what one after the other would be."""
    row_logits = logits(6, 64)
    sampler, only = BatchSampler(), Only(7)
    sampler.add(0, SamplingConfig(seed=1), 0)
    sampler.add(1, SamplingConfig(seed=2), 1, (), [only])
    rows, positions = [1, 0, 1, 0, 1, 1], [5, 3, 6, 4, 7, 8]
    sampled = sampler(row_logits, rows, positions, drafts={1: [7, 8, 30], 0: [1]})
    # 30 is not what comes behind 7 and 8, so what is drawn behind it does not matter.
    assert [sampled.ids_L[place].item() for place in (0, 2, 4)] == [7, 8, 9]
    assert only.taken == []
    assert only.calls == [[], [7], [7, 8]]
    for place in (1, 3):
        alone = BatchSampler()
        alone.add(0, SamplingConfig(seed=1), 0)
        one = alone(row_logits[[place]], [0], [positions[place]])
        assert one.ids_L[0] == sampled.ids_L[place]


def test_a_row_that_cannot_go_on_fails_alone(way: str) -> None:
    row_logits = logits(4, 64)
    row_logits[0, 5] = torch.nan
    row_logits[1, 60] = torch.inf
    sampler = BatchSampler(limit=60)
    for row in range(3):
        sampler.add(row, SamplingConfig(temperature=0.8 * row), row)
    sampler.add(3, SamplingConfig(), 3, (), [Only(63)])
    sampled = sampler(row_logits, range(4), [0] * 4)
    assert sampled.failures == {0: NOT_FINITE, 1: NOT_FINITE, 3: NOTHING_LEFT}
    alone = BatchSampler(limit=60)
    alone.add(2, SamplingConfig(temperature=1.6), 2)
    assert alone(row_logits[[2]], [2], [0]).ids_L[0] == sampled.ids_L[2]


def test_a_bias_of_an_unknown_token_is_refused() -> None:
    sampler = BatchSampler(limit=100)
    with pytest.raises(ConfigError, match=r"logit_bias names token 100, .* 0 to 99"):
        sampler.add(0, SamplingConfig(logit_bias={100: 1.0}), 0)
    sampler.add(0, SamplingConfig(logit_bias={99: 1.0}), 0)


class Deaf(Only):
    def accept(self, token_id: int) -> str | None:
        raise RuntimeError("it hears nothing")


def test_a_row_that_could_not_be_taken_in_is_free() -> None:
    sampler = BatchSampler()
    with pytest.raises(RuntimeError, match="hears nothing"):
        sampler.add(9, SamplingConfig(), 0, (), [Deaf(3)], token_ids=[3])
    with pytest.raises(OverflowError):
        sampler.add(9, SamplingConfig(), -5)
    assert not sampler.rows
    sampler.add(9, SamplingConfig(temperature=0.0), 0, (), [Only(3)], token_ids=[3])
    assert sampler.rows == {9}
    assert sampler(logits(1, 64), [9], [1]).ids_L.tolist() == [4]
