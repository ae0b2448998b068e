"""The engine benchmark without engines: who runs when, and what is read off the times."""

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.append(str(Path(__file__).parents[3] / "bench"))

import engine_cells
import engine_report
from engine_load import Answer, Job, Request, drive

SIZES = engine_cells.QUICK["bench-v3"]


class OneTokenEach:
    """An engine whose every step gives each of its requests the number of the step."""

    def __init__(self) -> None:
        self.facts = {}
        self.running, self.most, self.steps = {}, 0, 0
        self.added, self.cancelled = [], []

    def add(self, number, request):
        self.running[number] = request.max_new_tokens
        self.added.append((number, self.steps))
        self.most = max(self.most, len(self.running))

    def step(self):
        self.steps += 1
        stepped = [(number, [self.steps]) for number in self.running]
        self.running = {n: left - 1 for n, left in self.running.items() if left > 1}
        return stepped

    def cancel(self, number):
        del self.running[number]
        self.cancelled.append(number)

    def state(self):
        return {"held": float(len(self.running))}


def answer(token_s: Sequence[Sequence[float]], arrival_s: Sequence[float] = ()) -> Answer:
    ids = [[7] * len(times) for times in token_s]
    return Answer(ids, token_s, arrival_s or [0.0] * len(token_s), {}, {})


def cell(name):
    return next(c for c in engine_cells.cells(SIZES) if c.name == name)


def test_a_job_crosses_the_pipe():
    job = Job([Request([3, 4], 5, 1.0, at_s=0.5, cancel_after=2), Request([6], 1)], clients=3)
    assert Job.from_line(job.to_line()) == Job([Request(**vars(r)) for r in job.requests], 3)


def test_every_request_gets_its_tokens():
    engine = OneTokenEach()
    found = drive(engine, Job([Request([1], 3), Request([1], 1)]))
    assert found.token_ids == [[1, 2, 3], [1]]
    assert [len(times) for times in found.token_s] == [3, 1]
    assert found.after["held"] == 0


def test_clients_ask_again_when_they_have_their_answer():
    engine = OneTokenEach()
    drive(engine, Job([Request([1], 2) for _ in range(5)], clients=2))
    assert engine.most == 2
    assert engine.added == [(0, 0), (1, 0), (2, 2), (3, 2), (4, 4)]


def test_requests_are_given_up():
    engine = OneTokenEach()
    found = drive(engine, Job([Request([1], 4, cancel_after=2), Request([1], 4)]))
    assert engine.cancelled == [0]
    assert found.token_ids == [[1, 2], [1, 2, 3, 4]]


def test_requests_come_at_their_time():
    engine = OneTokenEach()
    found = drive(engine, Job([Request([1], 1, at_s=0.02), Request([1], 1, at_s=0.05)]))
    assert list(found.arrival_s) == [0.02, 0.05]
    assert found.token_s[0][0] >= 0.02
    assert found.token_s[1][0] >= 0.05
    assert engine.most == 1


def test_staggered_clients_begin_one_after_the_other():
    engine = OneTokenEach()
    job = cell("staggered").job_of(1, 100)
    drive(engine, job)
    gap = SIZES.new_tokens // SIZES.clients
    began = [step for _, step in engine.added[: SIZES.clients]]
    assert began == [gap * number for number in range(SIZES.clients)]
    assert engine.most == SIZES.clients


def test_rounds_have_prompts_of_their_own_and_arms_share_them():
    prefill, context = cell("prefill 1x24"), cell("context 16")
    assert prefill.job_of(1, 100) == prefill.job_of(1, 100)
    assert prefill.job_of(1, 100) != prefill.job_of(2, 100)
    assert context.job_of(1, 100) == context.job_of(2, 100)


@pytest.mark.parametrize("name", [c.name for c in engine_cells.cells(SIZES)])
def test_every_cell_can_be_asked_and_read(name):
    asked = cell(name)
    job = asked.job_of(1, 100)
    assert all(3 <= token < 100 for request in job.requests for token in request.prompt_ids)
    assert all(value >= 0 for value in asked.figures(job, drive(OneTokenEach(), job)).values())


def test_decoding_is_what_happens_while_all_run():
    # From 1.0, when both run, to 3.0, when the first ends: 2 and 2 tokens.
    found = answer([[0.5, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 9.0]])
    figures = cell("decode 3").figures(Job([]), found)
    assert figures == {"tokens_per_s": 2.0}


def test_a_step_behind_a_context_is_the_median_gap():
    figures = cell("context 16").figures(Job([]), answer([[5.0, 5.1, 5.3, 6.3]]))
    assert figures["step_ms"] == pytest.approx(200)


def test_latencies_count_from_when_a_request_came():
    job = Job([Request([1], 2, at_s=1.0), Request([1], 2, at_s=2.0)])
    found = answer([[1.5, 1.6], [2.1, 2.4]], [1.0, 2.0])
    figures = cell("rate 20/s").figures(job, found)
    assert figures["ttft_p50_ms"] == pytest.approx(100)
    assert figures["ttft_p99_ms"] == pytest.approx(500)
    assert figures["itl_p50_ms"] == pytest.approx(100)
    assert figures["itl_p99_ms"] == pytest.approx(300)
    assert figures["late_s"] == pytest.approx(0.4)


def test_a_grouped_rollout_shares_prompts():
    prompts, each = 2, 2
    job = cell("rollout 2x2x4").job_of(1, 100)
    assert len({tuple(r.prompt_ids) for r in job.requests}) == prompts
    assert len(job.requests) == prompts * each
    assert all(request.temperature == 1 for request in job.requests)


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (0.0, 1), (1.0, 100)])
def test_quantiles(share, value):
    values = list(range(1, 101))
    random.Random(0).shuffle(values)
    assert engine_cells.quantile(values, share) == value


FAMILIES = {"ziphius a": "ziphius", "ziphius b": "ziphius", "vllm a": "vllm", "vllm b": "vllm"}


def test_ratios_say_how_much_faster_we_are():
    asked = [
        SimpleNamespace(name="decode 1", more_is_better=True),
        SimpleNamespace(name="rollout 64x64", more_is_better=False),
    ]
    values = {
        "decode 1": {
            "ziphius a": [{"tokens_per_s": v} for v in (1.0, 80.0, 90.0)],
            "ziphius b": [{"tokens_per_s": 40.0}],
            "vllm a": [{"tokens_per_s": 10.0}],
            "vllm b": [{"tokens_per_s": 5.0}],
        },
        "rollout 64x64": {"ziphius a": [{"seconds": 0.5}], "vllm a": [{"seconds": 1.0}]},
    }
    rows = engine_report.summary(values)
    assert rows["decode 1"]["ziphius a"]["tokens_per_s_spread"] == [1.0, 90.0]
    found = engine_report.ratios(asked, rows, FAMILIES)
    assert found["decode 1"]["ziphius b over vllm a"] == 4
    assert found["decode 1"]["best over vllm"] == 8
    assert found["rollout 64x64"]["best over vllm"] == 2
    reached = {bar["cell"]: bar["reached"] for bar in engine_report.bars("bench-v3", found)}
    assert reached == {"decode 1": True, "rollout 64x64": True}
    table = engine_report.table(rows, list(FAMILIES))
    assert "decode 1 tok/s" in table
    assert "80" in table


def test_slopes_and_shares():
    steps = {c: {"ziphius a": {"rounds": 1, "step_ms": 1 + c / 1_000}} for c in (100, 200, 400)}
    rows = {f"context {context}": row for context, row in steps.items()}
    (found,) = engine_report.slopes(rows, {"ziphius a": 2_000}, bytes_per_s=10e9).values()
    assert found["us_per_context_token"] == pytest.approx(1)
    assert found["cache_gb_per_s"] == pytest.approx(2)
    assert found["share_of_bandwidth"] == pytest.approx(0.2)
    decode = {"ziphius a": {"tokens_per_s": 5.0}}
    assert engine_report.weight_shares(decode, {"ziphius a": 10**9}, 10e9) == {"ziphius a": 0.5}


def test_staggered_is_held_against_static():
    rows = {
        "static batch": {"vllm a": {"tokens_per_s": 100.0}},
        "staggered": {"vllm a": {"tokens_per_s": 84.0}},
    }
    assert engine_report.staggered(rows) == {"vllm a": {"ratio": 0.84, "reached": False}}


def test_arms_are_the_same_model():
    def said(*ids):
        return Answer([list(row) for row in ids], [], [], {}, {})

    answers = {
        "ziphius a": said((1, 2, 3), (4, 5, 6)),
        "vllm a": said((1, 2, 9), (4, 9, 9)),
        "llama.cpp": said((-1, -1, -1), (-1, -1, -1)),
    }
    found = engine_report.agreement(answers, "ziphius a")
    assert found == {"vllm a": {"first": 1.0, "all": 0.5}}
