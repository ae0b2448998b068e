"""`engine/engine.py`: whatever runs beside it, a sequence is told what it would be told alone."""

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.examples import examples
from tests.mock_engine import BOMB, POISON, VOCAB, Log, mock_engine, oracle
from ziphius.core.errors import ConfigError, QueueFullError
from ziphius.engine.sequence import Request
from ziphius.ops.sampling_config import SamplingConfig

SAMPLED = SamplingConfig(seed=3)
GREEDY = SamplingConfig(temperature=0)

SHARED = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 5, 5], [9] * 17, []]
PROMPTS = st.builds(
    lambda start, rest: [*start, *rest] or [0],
    st.sampled_from(SHARED),
    st.lists(st.integers(0, VOCAB - 3), max_size=14),
)
REQUESTS = st.builds(
    Request,
    prompt_ids=PROMPTS,
    max_new_tokens=st.integers(1, 12),
    sequence_id=st.integers(0, 5),
    sampling=st.sampled_from([SAMPLED, GREEDY, SamplingConfig(temperature=0.7, top_p=0.9)]),
    stop_ids=st.sampled_from([(), (3,), (4, 5, 6)]),
    n=st.sampled_from([1, 1, 2, 3, 11]),
    priority=st.integers(-1, 1),
    cache_salt=st.sampled_from(["", "", "tenant"]),
)


class EngineMachine(RuleBasedStateMachine):
    """Adds, cancels, ends and steps at random, in a pool so small that sequences are preempted."""

    def __init__(self) -> None:
        super().__init__()
        self.log = Log(mock_engine(num_blocks=14, max_num_batched_tokens=11, max_queue=12))
        self.requests: dict[int, Request] = {}
        self.ended: set[tuple[int, int]] = set()

    @rule(request=REQUESTS)
    def add(self, request: Request) -> None:
        try:
            self.requests[self.log.engine.add(request)] = request
        except QueueFullError:
            assert self.log.engine.num_waiting == 12

    @rule(request=REQUESTS, token=st.sampled_from([POISON, BOMB]), at=st.integers(0, 30))
    def add_a_bad_one(self, request: Request, token: int, at: int) -> None:
        ids = list(request.prompt_ids)
        self.add(replace(request, prompt_ids=[*ids[:at], token, *ids[at:]]))

    @rule(steps=st.integers(1, 6))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.log.step()

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.requests)))
        self.log.engine.cancel(number)
        self.ended |= {(number, sample) for sample in range(self.requests[number].n)}

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def end_one(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.requests)))
        sample = data.draw(st.integers(0, self.requests[number].n - 1))
        self.log.engine.end(number, sample)
        self.ended.add((number, sample))

    @invariant()
    def books_are_right(self) -> None:
        self.log.engine.check()

    def teardown(self) -> None:
        for _ in range(3000):
            if not self.log.engine.has_work:
                break
            self.log.step()
        assert not self.log.engine.has_work
        assert self.log.engine.metrics()["kv_cache_usage_perc"] == 0
        for number, request in self.requests.items():
            for sample in range(request.n):
                self._compare(number, sample, request)

    def _compare(self, number: int, sample: int, request: Request) -> None:
        expected = oracle(request, sample)
        told = self.log.told.get((number, sample))
        if (number, sample) in self.ended and (told is None or told.finish_reason is None):
            ids = [] if told is None else told.token_ids
            assert ids == expected.token_ids[: len(ids)]
        else:
            assert told == expected


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(examples(20), stateful_step_count=30)

MIXED = [
    Request([1, 2, 3, 4, 5, 6, 7, 8, 9], 12, 0, SAMPLED, n=3),
    Request([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 9, 4, GREEDY),
    Request([7] * 40, 5, 5, SAMPLED, (3,)),
    Request([8], 20, 6, SAMPLED, n=2),
    Request([1, 2, 3, 4], 20, 8, SAMPLED),
    Request(list(range(20)), 7, 9, SamplingConfig(temperature=0.7, top_k=4)),
]


def all_told(requests: list[Request], **settings) -> Log:
    log = Log(mock_engine(**settings))
    for request in requests:
        log.engine.add(request)
    log.run()
    return log


def expected(requests: list[Request]) -> dict:
    return {
        (number, sample): oracle(request, sample)
        for number, request in enumerate(requests)
        for sample in range(request.n)
    }


@pytest.mark.parametrize("prefix_caching", [True, False])
@pytest.mark.parametrize("chunk", [1, 7, 16, 64, None])
def test_tokens_do_not_hang_on_chunks_or_the_prefix_cache(chunk, prefix_caching):
    log = all_told(MIXED, max_prefill_chunk=chunk, prefix_caching=prefix_caching)
    assert log.told == expected(MIXED)
    longest = max(max(call) for call in log.engine.runner.calls)
    assert longest <= (chunk or 32)
    hits = log.engine.metrics()["prefix_cache_hits"]
    assert (hits > 0) == prefix_caching


@pytest.mark.parametrize("block_size", [1, 3, 16])
@pytest.mark.parametrize("seats", [1, 2, 8])
def test_tokens_do_not_hang_on_seats_or_blocks(block_size, seats):
    log = all_told(MIXED, block_size=block_size, max_num_seqs=seats, num_blocks=100)
    assert log.told == expected(MIXED)
    assert max(map(len, log.engine.runner.calls)) == min(seats, 8)


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_sequences_without_blocks_are_preempted_and_resume_with_the_same_tokens(prefix_caching):
    requests = [Request([number] * 6, 30, number, SAMPLED) for number in range(6)]
    log = all_told(requests, num_blocks=16, prefix_caching=prefix_caching)
    assert log.told == expected(requests)
    assert log.engine.metrics()["num_preemptions"] > 0


def test_the_latest_of_the_lowest_priority_is_preempted():
    requests = [Request([n], 36, n, GREEDY, priority=p) for n, p in enumerate((0, 1, 1, -1))]
    log = Log(mock_engine(num_blocks=16))
    for request in requests:
        log.engine.add(request)
    log.run()
    order = list(dict.fromkeys(log.finished))
    assert order == [(3, 0), (0, 0), (1, 0), (2, 0)]


def test_a_prompt_of_many_samples_is_computed_once():
    log = all_told([Request([1, 2, 3, 4, 5, 6], 3, 0, SAMPLED, n=8)], prefix_caching=False)
    assert log.engine.runner.calls == [[6], [1] * 8, [1] * 8]


def test_requests_that_begin_alike_wait_for_the_one_that_computes_it():
    requests = [Request([*range(16), n], 2, n, GREEDY) for n in range(4)]
    log = all_told(requests, max_num_batched_tokens=8)
    assert log.engine.runner.calls[:3] == [[8], [8], [1, 1, 1, 1]]
    assert log.engine.metrics()["prefix_cache_hits"] == 3 * 16
    salted = [replace(request, cache_salt=str(n)) for n, request in enumerate(requests)]
    assert all_told(salted).engine.metrics()["prefix_cache_hits"] == 0


def test_a_second_turn_computes_only_what_is_new():
    log = Log(mock_engine())
    number = log.engine.add(Request(list(range(10)), 8, 0, GREEDY))
    log.run()
    turn = [*range(10), *log.told[number, 0].token_ids, 5, 6]
    log.engine.add(Request(turn, 1, 0, GREEDY))
    del log.engine.runner.calls[:]
    log.run()
    assert log.engine.runner.calls == [[20 - 16]]


def test_a_long_prompt_starves_neither_those_that_decode_nor_short_prompts():
    log = Log(mock_engine(num_blocks=100))
    log.engine.add(Request([1], 50, 0, GREEDY))
    log.step()
    log.engine.add(Request([2] * 200, 1, 0, GREEDY))
    log.step()
    log.engine.add(Request([3] * 8, 1, 0, GREEDY))
    log.step()
    assert log.engine.runner.calls[1:] == [[1, 31], [1, 23, 8]]
    assert log.told[2, 0].finish_reason is not None
    for number in range(30):  # short ones without end do not keep the long one waiting
        log.engine.add(Request([number] * 30, 1, 0, GREEDY))
    for _ in range(11):
        log.step()
    assert log.told[1, 0].finish_reason is not None


def test_a_higher_priority_is_admitted_first():
    log = Log(mock_engine(max_num_seqs=1))
    for priority in (1, 0, -1):
        log.engine.add(Request([1, 2], 2, 0, GREEDY, priority=priority))
    log.run()
    assert log.finished == [(2, 0), (1, 0), (0, 0)]


@pytest.mark.parametrize("token", [POISON, BOMB])
def test_a_bad_prompt_ends_alone_and_cannot_be_found(token):
    bad = Request([1, 2, 3, 4, 5, 6, 7, 8, token, 9, 9, 9], 5, 0, GREEDY, n=2)
    requests = [*MIXED, bad, replace(bad, n=1)]
    log = all_told(requests)
    assert log.told == expected(requests)
    why = {POISON: "not finite", BOMB: "RuntimeError: the kernel gave up"}
    for key, number in {(6, 0): 0, (6, 1): 1, (7, 0): 0}.items():
        assert why[token] in log.errors[key]
        assert f"at position 12 of sequence {number}" in log.errors[key]


def test_steps_that_raise_are_counted_and_told():
    log = all_told([Request([1, 2, 3, POISON, 5], 5, 0, GREEDY)])
    assert log.engine.metrics()["num_steps_apart"] == 0
    log = all_told([Request([1, 2, 3, BOMB, 5], 5, 0, GREEDY)])
    assert log.engine.metrics()["num_steps_apart"] == 1
    assert log.engine.metrics()["step_error"] == "RuntimeError: the kernel gave up"


def test_nothing_of_a_bad_prompt_is_published():
    log = all_told([Request([1, 2, 3, 4, POISON, 6, 7, 8, 9], 5, 0, GREEDY)])
    del log.engine.runner.calls[:]
    log.engine.add(Request([1, 2, 3, 4, 5], 1, 0, GREEDY))
    log.run()
    assert log.engine.runner.calls == [[5]]


def test_a_sampler_that_raises_ends_its_sequence_alone():
    log = Log(mock_engine())
    for request in MIXED:
        log.engine.add(request)
    log.step()
    sampler = log.engine._sampler
    sampler.broken = {row for row, number in sampler.sequence_ids.items() if number == 1}
    log.run()
    told, whole = log.told, expected(MIXED)
    assert told.pop((0, 1)) == (whole[0, 1].token_ids[:1], whole[0, 1].logprobs[:1], "error")
    del whole[0, 1]
    assert told == whole


def test_cancelling_works_at_every_point():
    whole = len(all_told(MIXED, max_num_batched_tokens=8).engine.runner.calls)
    for after in range(whole):
        log = Log(mock_engine(max_num_batched_tokens=8))
        for request in MIXED:
            log.engine.add(request)
        for _ in range(after):
            log.step()
        for number, request in enumerate(MIXED):
            ended = {sample for asked, sample in log.finished if asked == number}
            assert log.engine.cancel(number) == (len(ended) < request.n)
            assert not log.engine.cancel(number)
            log.engine.check()
        assert not log.engine.has_work
        assert log.engine.metrics()["kv_cache_usage_perc"] == 0
        assert not log.engine.cancel(len(MIXED))


def test_requests_that_cannot_work_say_why():
    engine = mock_engine(num_blocks=10, max_queue=1)
    cases = [
        (Request([], 1), ["prompt is empty"]),
        (Request([1], 0), ["max_new_tokens of the prompt is 0"]),
        (Request([1, VOCAB], 1), [f"token {VOCAB}", f"0 to {VOCAB - 1}", "tokenizer"]),
        (Request([-1], 1), ["token -1"]),
        (Request([1], 1, n=0), ["n of the prompt is 0"]),
        (Request([1], 1.5), ["max_new_tokens of the prompt is 1.5", "whole number"]),
        (Request([1], 1, n="2"), ["n of the prompt is '2'", "whole number"]),
        (Request([1], 1, priority="high"), ["priority of the prompt is 'high'", "whole number"]),
        (Request([1], 1, logprobs=-1), ["logprobs of the prompt is -1", "at least 0"]),
        (Request([1], 1, logprobs=VOCAB + 1), ["logprobs", f"at most {VOCAB}"]),
        (Request([1], 1, logprobs=True), ["logprobs of the prompt is True", "whole number"]),
        (Request([1], 1, prompt_logprobs=-1), ["prompt_logprobs", "at least 0"]),
        (Request([1], 1, prompt_logprobs=VOCAB + 1), ["prompt_logprobs", f"at most {VOCAB}"]),
        (Request([1], 1, sequence_id=-5), ["sequence_id of the prompt is -5", "at least 0"]),
        (Request([1], 1, sequence_id=2**63), ["sequence_id", f"at most {2**63 - 1}"]),
        (Request([1], 1, sequence_id=2**63 - 2, n=3), ["3 samples", f"at most {2**63 - 1}"]),
        (Request([1, 2], 255), ["has 2 tokens", "is 256 tokens", "at most 254"]),
        (Request([1] * 256, 1), ["shorten the prompt"]),
        (Request([1] * 40, 2), ["the cache holds 40", "num_blocks"]),
    ]
    for request, words in cases:
        with pytest.raises(ConfigError) as error:
            engine.add(request)
        assert all(word in str(error.value) for word in words)
    engine.add(Request([1] * 40, 1))
    with pytest.raises(QueueFullError, match="max_queue"):
        engine.add(Request([1], 1))
    assert engine.metrics()["admission_rejections"] == {
        "invalid": len(cases),
        "queue_full": 1,
    }
    engine.check()


def test_prompt_scores_come_once_and_with_the_first_output():
    engine = mock_engine(num_blocks=16)
    requests = [
        Request([number] * 6, 30, number, SAMPLED, n=n, prompt_logprobs=1)
        for number, n in enumerate((1, 1, 3))
    ]
    for request in requests:
        engine.add(request)
    scored = {}
    while engine.has_work:
        for output in engine.step():
            told = output.prompt_scores is not None and len(output.prompt_scores)
            scored.setdefault((output.request_id, output.sample), []).append(told)
        engine.check()
    assert engine.metrics()["num_preemptions"] > 0
    for told in scored.values():
        assert told[0] == 5
        assert not any(told[1:])


class DeafToItsPast:
    """A processor that hears one token and no second one, as when it is made anew in between."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        self.is_deaf = type(self).made > 1

    def __call__(self, logits_W, token_ids) -> None:
        pass

    def accept(self, token_id: int) -> str | None:
        if self.is_deaf:
            raise RuntimeError("what is past is past")
        return None

    def rollback(self, count: int) -> None:
        pass


def test_a_sequence_that_cannot_resume_leaves_its_seat_to_others():
    DeafToItsPast.made = 0
    bad = Request([7] * 6, 30, 9, SAMPLED, processors=lambda: [DeafToItsPast()])
    requests = [Request([number] * 6, 30, number, SAMPLED) for number in range(5)]
    log = Log(mock_engine(num_blocks=16, max_num_seqs=4))
    for request in [*requests[:2], bad, *requests[2:]]:
        log.engine.add(request)
    log.run()
    assert "what is past is past" in log.errors.pop((2, 0))
    assert not log.errors
    log.engine.check()
    number = log.engine.add(Request([1, 2], 4, 0, GREEDY, n=4))
    log.run()
    assert [log.told[number, sample] for sample in range(4)] == [
        oracle(Request([1, 2], 4, 0, GREEDY), sample) for sample in range(4)
    ]


def test_the_books_tell_of_a_row_without_a_sequence():
    engine = mock_engine()
    engine.check()
    engine._sampler.add(3, SAMPLED, 0, token_ids=[])
    with pytest.raises(AssertionError, match="a row is lost"):
        engine.check()


def test_metrics_count_what_happened():
    log = all_told(MIXED)
    metrics = log.engine.metrics()
    samples = sum(request.n for request in MIXED)
    assert metrics["prompt_tokens"] == sum(len(request.prompt_ids) for request in MIXED)
    new = sum(len(told.token_ids) for told in log.told.values())
    assert metrics["generation_tokens"] == new
    assert metrics["num_steps"] == 20
    assert sum(metrics["request_success"].values()) == samples
    assert metrics["time_to_first_token"]["count"] == samples
    assert metrics["inter_token_latency"]["count"] == new - samples
    assert metrics["num_requests_running"] == metrics["num_requests_waiting"] == 0


def test_routes_come_with_the_last_token_also_of_what_was_cached():
    requests = [Request([1, 2, 3, 4, 5, 6], 6, number, SAMPLED, n=2) for number in (0, 2)]
    log = all_told(requests)
    for key, told in log.told.items():
        seen = [*requests[key[0]].prompt_ids, *told.token_ids][:-1]
        assert log.routes[key].flatten().tolist() == seen
