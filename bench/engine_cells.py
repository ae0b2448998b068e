"""What the engine benchmark asks for, and what it reads off the times of the tokens.

A cell is one such question. Prompts are random tokens, new ones in every round, so that no prefix
cache knows them; within a round they are the same for all arms.
"""

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from engine_load import Answer, Job, Request

FIRST_TOKEN = 3
"""Ids before it end or begin a text in one model or another."""


@dataclass(frozen=True)
class Sizes:
    """How much is asked for."""

    prefill: Sequence[tuple[int, int]] = ((1, 512), (1, 2_048), (8, 512))
    decode: Sequence[int] = (1, 8, 32)
    prompt_tokens: int = 32
    new_tokens: int = 128
    rollout: tuple[int, int] | None = None
    """Prompts, and completions of each."""
    rollout_tokens: int = 64
    contexts: Sequence[int] = ()
    context_tokens: int = 32
    clients: int = 32
    staggered: int = 0
    """Requests that come while others run, `clients` of them at a time."""
    rates: Sequence[float] = ()
    rate_s: float = 5.0
    rate_tokens: tuple[int, int] = (128, 64)
    """Of a prompt, and new ones."""
    soak: int = 0


FULL = {
    "bench-v3": Sizes(
        rollout=(16, 4),
        contexts=(512, 2_048, 8_192, 16_384),
        staggered=96,
        rates=(4.0, 16.0, 32.0),
        soak=1_000,
    ),
    "smollm2": Sizes(prefill=((1, 512), (1, 2_048)), new_tokens=32),
}
QUICK = {
    name: Sizes(
        prefill=((1, 24), (2, 16)),
        decode=(1, 3),
        prompt_tokens=8,
        new_tokens=6,
        rollout=(2, 2),
        rollout_tokens=4,
        contexts=(16, 48),
        context_tokens=4,
        clients=3,
        staggered=7,
        rates=(20.0,),
        rate_s=0.4,
        rate_tokens=(8, 3),
        soak=30,
    )
    for name in FULL
}


@dataclass(frozen=True)
class Cell:
    """One question."""

    name: str
    job: Callable[[random.Random, int], Job]
    """Of chance and the size of the vocabulary."""
    figures: Callable[[Job, Answer], dict[str, float]]
    """The first one is what arms are compared by."""
    more_is_better: bool = True
    takes_in: bool = False
    """Requests come while others run, which no static batch allows."""
    same_prompts: bool = False
    """In every round."""
    once: bool = False
    """One round is enough."""

    def job_of(self, turn: int, vocab_size: int) -> Job:
        """Make the job of a round."""
        turn = 0 if self.same_prompts else turn
        return self.job(random.Random(f"{self.name}, round {turn}"), vocab_size)


def cells(sizes: Sizes) -> list[Cell]:
    """List what is asked for at these sizes."""
    found = [prefill_cell(*shape) for shape in sizes.prefill]
    found += [decode_cell(number, sizes) for number in sizes.decode]
    if sizes.rollout:
        found += [rollout_cell(sizes, grouped=False), rollout_cell(sizes, grouped=True)]
    found += [context_cell(context, sizes) for context in sizes.contexts]
    if sizes.staggered:
        found += [static_cell(sizes), staggered_cell(sizes)]
    found += [rate_cell(rate, sizes) for rate in sizes.rates]
    if sizes.soak:
        found.append(soak_cell(sizes))
    return found


def prompt(chance: random.Random, vocab_size: int, tokens: int) -> list[int]:
    """Draw a prompt."""
    return [chance.randrange(FIRST_TOKEN, vocab_size) for _ in range(tokens)]


def prefill_cell(batch: int, tokens: int) -> Cell:
    """Ask for one token behind each of some prompts: how fast are prompts read?"""

    def job(chance: random.Random, vocab_size: int) -> Job:
        return Job([Request(prompt(chance, vocab_size, tokens), 1) for _ in range(batch)])

    def figures(job: Job, answer: Answer) -> dict[str, float]:
        return {"tokens_per_s": batch * tokens / last(answer)}

    return Cell(f"prefill {batch}x{tokens}", job, figures)


def decode_cell(batch: int, sizes: Sizes) -> Cell:
    """Ask for completions of short prompts: how fast do they grow while all of them run?"""

    def figures(job: Job, answer: Answer) -> dict[str, float]:
        begin = max(times[0] for times in answer.token_s)
        end = min(times[-1] for times in answer.token_s)
        return {"tokens_per_s": tokens_between(answer, begin, end) / (end - begin)}

    return Cell(f"decode {batch}", _batch_job(batch, sizes), figures)


def static_cell(sizes: Sizes) -> Cell:
    """Ask for as many completions as there are clients, prompts included."""

    def figures(job: Job, answer: Answer) -> dict[str, float]:
        return {"tokens_per_s": tokens_between(answer, 0.0, last(answer)) / last(answer)}

    return Cell("static batch", _batch_job(sizes.clients, sizes), figures)


def _batch_job(batch: int, sizes: Sizes) -> Callable[[random.Random, int], Job]:
    def job(chance: random.Random, vocab_size: int) -> Job:
        prompts = [prompt(chance, vocab_size, sizes.prompt_tokens) for _ in range(batch)]
        return Job([Request(ids, sizes.new_tokens) for ids in prompts])

    return job


def staggered_cell(sizes: Sizes) -> Cell:
    """Let every client begin at another time, and ask again whenever it has its answer.

    What counts is the time from when all clients wait for an answer until no new request comes; the
    work per token is that of a static batch then.
    """
    gap = max(1, sizes.new_tokens // sizes.clients)

    def job(chance: random.Random, vocab_size: int) -> Job:
        def after(number: int) -> int:
            # Client n begins after n * gap steps, in which 1, 2, ... n of them got `gap` tokens.
            return gap * number * (number + 1) // 2 if number < sizes.clients else 0

        return Job(
            [
                Request(
                    prompt(chance, vocab_size, sizes.prompt_tokens),
                    sizes.new_tokens,
                    after_tokens=after(number),
                )
                for number in range(sizes.staggered)
            ],
            clients=sizes.clients,
        )

    def figures(job: Job, answer: Answer) -> dict[str, float]:
        begin, end = answer.token_s[sizes.clients - 1][0], answer.arrival_s[-1]
        return {"tokens_per_s": tokens_between(answer, begin, end) / (end - begin)}

    return Cell("staggered", job, figures, takes_in=True)


def rollout_cell(sizes: Sizes, *, grouped: bool) -> Cell:
    """Sample completions as a step of GRPO does; grouped, several of them share a prompt."""
    assert sizes.rollout is not None
    prompts, each = sizes.rollout if grouped else (math.prod(sizes.rollout), 1)

    def job(chance: random.Random, vocab_size: int) -> Job:
        drawn = [prompt(chance, vocab_size, sizes.prompt_tokens) for _ in range(prompts)]
        shared = [ids for ids in drawn for _ in range(each)]
        return Job([Request(ids, sizes.rollout_tokens, temperature=1.0) for ids in shared])

    def figures(job: Job, answer: Answer) -> dict[str, float]:
        return {"seconds": last(answer)}

    shape = f"{prompts}x{each}" if grouped else str(prompts)
    return Cell(f"rollout {shape}x{sizes.rollout_tokens}", job, figures, more_is_better=False)


def context_cell(context: int, sizes: Sizes) -> Cell:
    """Ask one completion of a long prompt: what does a step cost behind it?"""

    def job(chance: random.Random, vocab_size: int) -> Job:
        return Job([Request(prompt(chance, vocab_size, context), sizes.context_tokens + 1)])

    def figures(job: Job, answer: Answer) -> dict[str, float]:
        [times] = answer.token_s
        return {"step_ms": 1e3 * statistics.median(b - a for a, b in pairwise(times))}

    return Cell(f"context {context}", job, figures, more_is_better=False, same_prompts=True)


def rate_cell(rate: float, sizes: Sizes) -> Cell:
    """Let requests come at random times, so many a second whatever the engine does (Poisson)."""
    prompt_tokens, new_tokens = sizes.rate_tokens

    def job(chance: random.Random, vocab_size: int) -> Job:
        requests: list[Request] = []
        at_s = chance.expovariate(rate)
        while at_s < sizes.rate_s or not requests:
            ids = prompt(chance, vocab_size, prompt_tokens)
            requests.append(Request(ids, new_tokens, at_s=at_s))
            at_s += chance.expovariate(rate)
        return Job(requests)

    def figures(job: Job, answer: Answer) -> dict[str, float]:
        arrived = zip(answer.token_s, answer.arrival_s, strict=True)
        first = [1e3 * (times[0] - arrival) for times, arrival in arrived]
        between = [1e3 * (b - a) for times in answer.token_s for a, b in pairwise(times)]
        return {
            "ttft_p50_ms": quantile(first, 0.5),
            "ttft_p99_ms": quantile(first, 0.99),
            "itl_p50_ms": quantile(between, 0.5),
            "itl_p99_ms": quantile(between, 0.99),
            "late_s": last(answer) - job.requests[-1].at_s,
        }

    return Cell(f"rate {rate:g}/s", job, figures, more_is_better=False, takes_in=True)


def soak_cell(sizes: Sizes) -> Cell:
    """Ask for many completions of uneven lengths that share beginnings; give every fifth up."""
    SHARED, SHARED_TOKENS = 10, 96

    def job(chance: random.Random, vocab_size: int) -> Job:
        shared = [prompt(chance, vocab_size, SHARED_TOKENS) for _ in range(SHARED)]
        requests = []
        for number in range(sizes.soak):
            ids = chance.choice(shared) + prompt(chance, vocab_size, chance.randint(1, 32))
            new = chance.randint(2, 48)
            cancel = chance.randrange(1, new) if number % 5 == 4 else None
            requests.append(Request(ids, new, chance.choice((0.0, 1.0)), cancel_after=cancel))
        return Job(requests, clients=2 * sizes.clients)

    def figures(job: Job, answer: Answer) -> dict[str, float]:
        grown = {
            f"{name}_grown": answer.after[name] - answer.before.get(name, 0.0)
            for name in answer.after
        }
        return {"seconds": last(answer)} | grown

    return Cell("soak", job, figures, more_is_better=False, takes_in=True, once=True)


def last(answer: Answer) -> float:
    """Return when the last token came."""
    return max(times[-1] for times in answer.token_s)


def tokens_between(answer: Answer, begin: float, end: float) -> int:
    """Count the tokens after one time up to another."""
    return sum(begin < at <= end for times in answer.token_s for at in times)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of them does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
