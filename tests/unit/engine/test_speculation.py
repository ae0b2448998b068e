"""Drafts change how many steps it takes, and nothing else: any proposer, any mix, any state."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.mock_engine import BOMB, POISON, VOCAB, Log, Told, mock_engine, mock_logits, oracle
from ziphius.engine.drafts.proposer import Computed, Draw
from ziphius.engine.processors import ProcessorError
from ziphius.engine.sequence import Request, SequenceState
from ziphius.engine.speculation_config import SpeculationConfig
from ziphius.engine.step import Ints
from ziphius.ops.sampling_config import SamplingConfig

FIXED = SpeculationConfig(method="ngram", num_speculative_tokens=4, adaptive=False)


class Prophet:
    """Knows the right tokens, and says a wrong one now and then; checks what it is told."""

    needs_hidden = False

    def __init__(self, share_right: float = 0.8, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.share_right = share_right
        self.right: dict[tuple[int, int], list[int]] = {}
        self.seen: dict[SequenceState, int] = {}
        self.overwritten: set[int] = set()
        self.copies: list[tuple[int, int]] = []

    def propose(
        self, sequences: Sequence[SequenceState], lengths: Sequence[int], draw: Draw
    ) -> list[list[int]]:
        drafts = []
        for sequence, length in zip(sequences, lengths, strict=True):
            assert len(sequence.blocks) * 4 >= len(sequence.tokens) + length
            key = id(sequence.request), sequence.sample
            if key not in self.right:
                self.right[key] = oracle(sequence.request, sequence.sample).token_ids
            right = self.right[key]
            done = len(sequence.tokens) - sequence.num_prompt
            drafts.append([self.guess(t) for t in right[done : done + length]])
        return drafts

    def guess(self, right: int) -> int:
        is_right = self.random.random() < self.share_right
        return right if is_right else (right + 1) % (VOCAB - 2)

    def overwrite(self, slots_M: Ints) -> None:
        self.overwritten = set(slots_M.tolist())

    def observe(self, computed: Sequence[Computed], hidden_MD: Tensor | None) -> None:
        for sequence, start, _, kept in computed:
            assert start + kept == sequence.num_computed
            assert self.seen.get(sequence, start) == start
            self.seen[sequence] = start + kept
            places = range(start, start + kept)
            assert {sequence.blocks[p // 4] * 4 + p % 4 for p in places} <= self.overwritten

    def forget(self, sequence: SequenceState) -> None:
        self.seen.pop(sequence, None)

    def copy_blocks(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        self.copies += zip(sources, targets, strict=True)


def requests(seed: int, count: int = 6) -> list[Request]:
    """Greedy and sampled ones, some with the beginning of others, some that stop early."""
    generator = random.Random(seed)
    shared = [generator.randrange(VOCAB - 2) for _ in range(20)]
    made = []
    for number in range(count):
        own = [generator.randrange(VOCAB - 2) for _ in range(generator.randrange(1, 20))]
        is_greedy = generator.random() < 0.4
        made.append(
            Request(
                [*shared[: generator.randrange(20)], *own],
                generator.randrange(1, 24),
                sequence_id=10 * number,
                sampling=SamplingConfig(temperature=0 if is_greedy else 0.7, seed=seed),
                stop_ids=generator.sample(range(VOCAB - 2), generator.randrange(3)),
                n=1 if is_greedy else generator.randrange(1, 4),
                priority=generator.randrange(2),
            )
        )
    return made


def expected(asked: Sequence[Request]) -> dict[tuple[int, int], Told]:
    return {
        (number, sample): oracle(request, sample)
        for number, request in enumerate(asked)
        for sample in range(request.n)
    }


@pytest.mark.parametrize("share_right", [0.7, 1.0])
@pytest.mark.parametrize("num_blocks", [13, 64])
def test_tokens_and_logprobs_are_those_without_drafts(share_right: float, num_blocks: int) -> None:
    preempted = 0
    for seed in range(2):
        asked = requests(seed)
        engine = mock_engine(num_blocks, proposer=Prophet(share_right), speculation=FIXED)
        log = Log(engine)
        for request in asked:
            engine.add(request)
        log.run()
        assert log.told == expected(asked)
        figures = engine.metrics()
        preempted += figures["num_preemptions"]
        drafted = figures["spec_decode_num_draft_tokens"]
        accepted = figures["spec_decode_num_accepted_tokens"]
        assert accepted == sum(figures["spec_decode_num_accepted_tokens_per_pos"])
        assert 0 < figures["spec_decode_num_drafts"] <= drafted
        assert (accepted == drafted) if share_right == 1 else (accepted < drafted)
        assert engine.metrics()["kv_cache_usage_perc"] == 0
    assert (preempted > 0) == (num_blocks == 13)


def test_right_drafts_save_steps_to_the_last_one() -> None:
    steps = {}
    for right in (0.0, 1.0):
        engine = mock_engine(proposer=Prophet(right), speculation=FIXED)
        engine.add(Request([1, 2, 3], 21))
        Log(engine).run()
        steps[right] = engine.metrics()["num_steps"]
    # The first token comes of the prompt; the last of each run is drawn, not drafted.
    assert steps == {0.0: 21, 1.0: 1 + 4}


def test_a_stop_token_inside_a_run_ends_the_sequence_there() -> None:
    plain = oracle(Request([5, 6], 12)).token_ids
    request = Request([5, 6], 12, stop_ids=[plain[3]])
    engine = mock_engine(proposer=Prophet(1.0), speculation=FIXED)
    engine.add(request)
    log = Log(engine)
    log.run()
    assert log.told[0, 0] == oracle(request)
    assert log.told[0, 0].token_ids == plain[: plain.index(plain[3]) + 1]


def test_rejected_drafts_are_not_found_by_others() -> None:
    """What is in the index must be what was accepted, block by block."""
    asked = requests(7, 6)
    engine = mock_engine(proposer=Prophet(0.5), speculation=FIXED)
    for request in asked:
        engine.add(request)
    Log(engine).run()
    # All of each text again: any wrong row in a block that is found changes what follows.
    texts = [[*r.prompt_ids, *oracle(r).token_ids] for r in asked]
    again = [Request(text, 5, sequence_id=3) for text in texts]
    log = Log(engine)
    numbers = [engine.add(request) for request in again]
    log.run()
    assert engine.metrics()["prefix_cache_hits"] > 0
    for number, request in zip(numbers, again, strict=True):
        assert log.told[number, 0] == oracle(request)


def test_cancelling_between_steps_leaves_the_others_alone() -> None:
    for seed in range(3):
        asked = requests(seed)
        engine = mock_engine(24, proposer=Prophet(0.7, seed), speculation=FIXED)
        log = Log(engine)
        for request in asked:
            engine.add(request)
        generator = random.Random(seed)
        gone = set()
        while engine.has_work:
            log.step()
            if generator.random() < 0.1:
                gone.add(number := generator.randrange(len(asked)))
                engine.cancel(number)
                engine.check()
        for key, told in expected(asked).items():
            if key[0] not in gone:
                assert log.told[key] == told


def test_a_sequence_with_bad_logits_ends_alone() -> None:
    asked = [Request([1, 2, POISON], 9), *requests(3, 5)]
    engine = mock_engine(proposer=Prophet(0.9), speculation=FIXED)
    log = Log(engine)
    for request in asked:
        engine.add(request)
    log.run()
    assert log.told.pop((0, 0)).finish_reason == "error"
    assert log.told == {key: told for key, told in expected(asked).items() if key[0] > 0}


class Bomber(Prophet):
    """Drafts a token that the model raises on, and one that it has no numbers for."""

    def guess(self, right: int) -> int:
        return self.random.choice([right, BOMB, POISON])


def test_a_draft_that_the_model_cannot_read_does_no_harm() -> None:
    asked = requests(4)
    engine = mock_engine(proposer=Bomber(), speculation=FIXED)
    log = Log(engine)
    for request in asked:
        engine.add(request)
    log.run()
    assert log.told == expected(asked)


class Broken(Prophet):
    def propose(
        self, sequences: Sequence[SequenceState], lengths: Sequence[int], draw: Draw
    ) -> list[list[int]]:
        if len(sequences) > 1:
            raise RuntimeError("no more")
        return super().propose(sequences, lengths, draw)


def test_a_proposer_that_raises_is_given_up_and_the_metrics_say_so() -> None:
    asked = requests(5)
    engine = mock_engine(proposer=Broken(), speculation=FIXED)
    log = Log(engine)
    for request in asked:
        engine.add(request)
    log.run()
    assert log.told == expected(asked)
    assert engine.metrics()["spec_decode_error"] == "RuntimeError: no more"


class Drawer(Prophet):
    """Draws its drafts from the target's own logits: the draws must be those of the positions."""

    def propose(
        self, sequences: Sequence[SequenceState], lengths: Sequence[int], draw: Draw
    ) -> list[list[int]]:
        drafts: dict[SequenceState, list[int]] = {s: [] for s in sequences}
        for place in range(max(lengths, default=0)):
            wanted = [s for s, n in zip(sequences, lengths, strict=True) if n > place]
            rows = [mock_logits([*s.tokens, *drafts[s]]) for s in wanted]
            for sequence, token_id in zip(
                wanted, draw(torch.stack(rows), wanted, place), strict=True
            ):
                drafts[sequence].append(token_id)
        return list(drafts.values())


def test_drafts_of_the_target_itself_are_all_accepted() -> None:
    asked = [r for r in requests(6) if not r.stop_ids]
    engine = mock_engine(proposer=Drawer(), speculation=FIXED)
    log = Log(engine)
    for request in asked:
        engine.add(request)
    log.run()
    assert log.told == expected(asked)
    figures = engine.metrics()
    assert figures["spec_decode_num_accepted_tokens"] == figures["spec_decode_num_draft_tokens"] > 0


def test_the_budget_of_tokens_holds_with_drafts() -> None:
    engine = mock_engine(proposer=Prophet(1.0), speculation=FIXED, max_num_batched_tokens=10)
    for request in requests(8):
        engine.add(request)
    log = Log(engine)
    log.run()
    assert max(map(sum, engine.runner.calls)) <= 10  # type: ignore[attr-defined]


class NoNeighbours:
    """A processor with a state: no token may come that is one more than the last."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def __call__(self, logits_W: Tensor, token_ids: Sequence[int]) -> None:
        assert list(token_ids) == self.taken
        if self.taken:
            logits_W[(self.taken[-1] + 1) % VOCAB] = -torch.inf

    def accept(self, token_id: int) -> str | None:
        assert not self.taken or token_id != (self.taken[-1] + 1) % VOCAB
        self.taken.append(token_id)
        return None

    def rollback(self, count: int) -> None:
        del self.taken[len(self.taken) - count :]


class Failing(NoNeighbours):
    """Fails at the sixth token, as a grammar may."""

    def __init__(self, error: type[Exception]) -> None:
        super().__init__()
        self.error = error

    def __call__(self, logits_W: Tensor, token_ids: Sequence[int]) -> None:
        if len(token_ids) == 5:
            raise self.error("no grammar any more")
        super().__call__(logits_W, token_ids)


@pytest.mark.parametrize("proposer", [Prophet(0.8), Drawer()])
def test_what_hangs_on_earlier_tokens_is_as_without_drafts(proposer: Prophet) -> None:
    penalties = SamplingConfig(
        temperature=0.9, seed=1, frequency_penalty=0.5, repetition_penalty=1.5
    )
    asked = [
        Request([1, 2, 3], 20, 1, penalties, n=2),
        Request([4, 5], 20, 2, SamplingConfig(seed=2), processors=lambda: [NoNeighbours()], n=2),
        Request([4, 5], 20, 3, SamplingConfig(temperature=0), processors=lambda: [NoNeighbours()]),
        Request([1, 2, 3], 20, 4, penalties, processors=lambda: [NoNeighbours()]),
    ]
    engine = mock_engine(proposer=proposer, speculation=FIXED)
    log = Log(engine)
    for request in asked:
        engine.add(request)
    log.run()
    assert log.told == expected(asked)
    figures = engine.metrics()
    assert figures["spec_decode_error"] is None
    if isinstance(proposer, Drawer):
        # Penalties and masks hold for the drafts too, each behind those before it.
        drafted = figures["spec_decode_num_draft_tokens"]
        assert figures["spec_decode_num_accepted_tokens"] == drafted > 0


@pytest.mark.parametrize("error", [ProcessorError, RuntimeError])
@pytest.mark.parametrize("kind", [Prophet, Drawer])
def test_a_processor_that_fails_ends_its_request_alone_and_at_the_same_token(
    kind: type[Prophet], error: type[Exception]
) -> None:
    asked = [
        Request([1, 2], 12, 5),
        Request([4, 5], 12, 6, processors=lambda: [NoNeighbours()]),
    ]
    failing = Request([4, 5], 12, 7, processors=lambda: [Failing(error)])
    plain = oracle(Request([4, 5], 5, 7, processors=lambda: [NoNeighbours()]))
    proposer = kind(1.0)
    proposer.right[id(failing), 0] = [*plain.token_ids, 1, 2, 3, 4, 5, 6, 7]
    engine = mock_engine(proposer=proposer, speculation=FIXED)
    log = Log(engine)
    for request in [*asked, failing]:
        engine.add(request)
    log.run()
    ended = log.told.pop((2, 0))
    assert log.told == expected(asked)
    assert (ended.token_ids, ended.finish_reason) == (plain.token_ids, "error")
    assert "no grammar any more" in log.errors[2, 0]


def test_sampled_tokens_have_the_models_distribution() -> None:
    """Chi-square of the second token against the exact one, drafts wrong half of the time."""
    count, prompt = 1200, [3, 1]
    engine = mock_engine(
        64, proposer=Prophet(0.5), speculation=FIXED, max_num_batched_tokens=512, max_num_seqs=64
    )
    for first in range(0, count, 60):
        engine.add(Request(prompt, 3, sequence_id=first, n=60))
    log = Log(engine)
    log.run()
    assert engine.metrics()["spec_decode_num_accepted_tokens"] > count / 4
    # Two of the tokens end the mock model: behind them there is no second one.
    second = [told.token_ids[1] for told in log.told.values() if len(told.token_ids) > 1]
    seen_W = np.bincount(second, minlength=VOCAB)
    first_W = mock_logits(prompt).double().softmax(-1).numpy()
    second_WW = [mock_logits([*prompt, t]).double().softmax(-1).numpy() for t in range(VOCAB - 2)]
    wanted_W = count * (first_W[: VOCAB - 2, None] * np.stack(second_WW)).sum(0)
    common = wanted_W > 5
    rest = np.array([seen_W[~common].sum()]), np.array([wanted_W[~common].sum()])
    chi = ((seen_W[common] - wanted_W[common]) ** 2 / wanted_W[common]).sum()
    chi += float(((rest[0] - rest[1]) ** 2 / rest[1].clip(1e-9)).sum()) if rest[1] > 1 else 0.0
    degrees = int(common.sum())
    # Mean + 3 standard deviations of chi-square.
    assert chi < degrees + 3 * (2 * degrees) ** 0.5
