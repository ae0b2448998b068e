"""Completions of a list of requests: `Engine` run to their end, for callers that want them all.

Requests that follow each other with the same prompt and settings, numbered in order, are the
samples of one: their prompt is computed once.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

from torch import Tensor

from ziphius.core.closing import Closing
from ziphius.core.errors import CheckpointError, ConfigError
from ziphius.engine.build import build_engine, evaluation_mode, limits_of
from ziphius.engine.config import EngineConfig
from ziphius.engine.engine import Engine
from ziphius.engine.limits import check_request
from ziphius.engine.sequence import FinishReason, Request, StepOutput
from ziphius.models.model import Model

__all__ = [
    "Completion",
    "FinishReason",
    "Generation",
    "NewToken",
    "Request",
    "complete",
    "generate",
]

_MOST_SEQUENCES = 1024
BLOCK_SIZE = 16


class NewToken(NamedTuple):
    """One token of one sequence, as soon as it is drawn."""

    row: int
    """Which request."""
    token_id: int
    """The token; -1 where a sequence ended with an error instead of one."""
    logprob: float
    """Natural log of its probability at the request's temperature (1 if greedy), before filters."""
    finish_reason: FinishReason | None
    """Set with the last token of the sequence."""
    output: StepOutput | None = None
    """What else the engine says of it."""


@dataclass(frozen=True)
class Completion:
    """All that was generated for one request."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    routes: Mapping[int, Tensor] | None = None
    """By expert layer: the chosen experts, int16 [tokens - 1, K], of prompt and completion without
    the last token, which the model never saw. None unless they were asked for."""
    weight_version: int = 0
    """Of the weights that gave all of it (`Engine.weight_version`)."""


class Generation(Closing):
    """Iterate over the steps of a list of requests: each is the list of tokens just drawn.

    Use it in a `with` block: leaving it early ends what still runs. `stop` ends a sequence from
    outside.

    Args:
        engine: that runs nothing else meanwhile.
        requests: one sample each; `NewToken.row` counts in their order. More of them than the
            engine runs at once follow as others end.
        keep_errors: end a sequence that goes wrong with reason `error`, which `NewToken.output`
            tells; by default that is raised, and ends all of them.
    """

    def __init__(
        self, engine: Engine, requests: Sequence[Request], *, keep_errors: bool = False
    ) -> None:
        assert not engine.has_work, "the engine runs something else"
        self._engine = engine
        self._keep_errors = keep_errors
        self._left = deque(_joined(requests))
        self._rows: dict[tuple[int, int], int] = {}
        self._numbers: dict[int, tuple[int, int]] = {}
        self._stopped: set[int] = set()

    def close(self) -> None:
        """End what still runs."""
        self._left.clear()
        for number in {number for number, _ in self._rows}:
            self._engine.cancel(number)

    def __iter__(self) -> Self:
        return self

    def stop(self, row: int) -> None:
        """End this sequence before its next step, as when a stop string shows up in its text."""
        if row in self._numbers:
            self._engine.end(*self._numbers[row])
        else:
            self._stopped.add(row)

    def __next__(self) -> list[NewToken]:
        while True:
            self._add()
            if not self._engine.has_work:
                raise StopIteration
            if tokens := [self._token(output) for output in self._engine.step()]:
                return tokens

    def _add(self) -> None:
        """Keep as many waiting as can be admitted at once, and no more."""
        while self._left and self._engine.num_waiting < self._engine.config.max_num_seqs:
            first_row, request = self._left.popleft()
            number = self._engine.add(request)
            for sample in range(request.n):
                self._rows[number, sample] = row = first_row + sample
                self._numbers[row] = number, sample
                if row in self._stopped:
                    self._engine.end(number, sample)

    def _token(self, output: StepOutput) -> NewToken:
        row = self._rows[output.request_id, output.sample]
        if output.error is not None and not self._keep_errors:
            raise CheckpointError(f"prompt {row}: {output.error}")
        if output.finish_reason is not None:
            del self._rows[output.request_id, output.sample]
        token_id = -1 if output.token_id is None else output.token_id
        return NewToken(row, token_id, output.logprob, output.finish_reason, output)


@dataclass
class _Told:
    """What was generated for one request so far."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    last: NewToken | None = None

    def completion(self, expert_layers: Sequence[int]) -> Completion:
        assert self.last is not None
        assert self.last.finish_reason is not None
        routes, output = None, self.last.output
        assert output is not None
        if (routes_TYK := output.routes_TYK) is not None:
            routes = {layer: routes_TYK[:, place] for place, layer in enumerate(expert_layers)}
        return Completion(
            tuple(self.token_ids),
            tuple(self.logprobs),
            self.last.finish_reason,
            routes,
            output.weight_version,
        )


def generate(
    model: Model,
    requests: Sequence[Request],
    *,
    vocab_limit: int | None = None,
    record_routes: bool = False,
) -> list[Completion]:
    """Run all requests, of one sample each, to their end; return their completions in order.

    Args:
        model: in any mode, which it keeps; shared, not copied.
        requests: to be run together, as far as a thousand of them can.
        vocab_limit: tokens the tokenizer knows; see `build_engine`.
        record_routes: keep the experts that each token was sent to.
    """
    check_requests(model, requests)
    config = fitting(requests)
    with evaluation_mode(model):
        engine = build_engine(model, config, vocab_limit=vocab_limit, record_routes=record_routes)
        return complete(engine, model, requests)


def complete(engine: Engine, model: Model, requests: Sequence[Request]) -> list[Completion]:
    """Run all requests, of one sample each, to their end; return their completions in order.

    Args:
        engine: that runs nothing else meanwhile; after an exception it is not to be used again.
        model: its own, in evaluation mode.
        requests: that have passed `check_requests`.

    Raises:
        CheckpointError: what went wrong with one of them.
    """
    told = [_Told() for _ in requests]
    for step in Generation(engine, requests):
        for token in step:
            told[token.row].token_ids.append(token.token_id)
            told[token.row].logprobs.append(token.logprob)
            told[token.row].last = token
    layers = range(model.config.num_hidden_layers)
    experts = [layer for layer in layers if model.config.is_expert_layer(layer)]
    return [one.completion(experts) for one in told]


def check_requests(model: Model, requests: Sequence[Request]) -> None:
    """Refuse what can never be answered, before anything is computed.

    Raises:
        ConfigError: which prompt is wrong, why, and what to do.
    """
    if not requests:
        raise ConfigError("nothing to generate: the list of requests is empty")
    for row, request in enumerate(requests):
        name = "the prompt" if len(requests) == 1 else f"prompt {row}"
        check_request(request, limits_of(model), name)
        if request.n != 1:
            raise ConfigError(f"n of {name} is {request.n}: ask for each sample by its own number")


def blocks_of(requests: Sequence[Request]) -> list[int]:
    """Return how many blocks each of these requests fills at most, the fewest first."""
    return sorted(
        -(-(len(request.prompt_ids) + request.max_new_tokens) // BLOCK_SIZE) for request in requests
    )


def fitting(requests: Sequence[Request]) -> EngineConfig:
    """Return limits under which none of these requests waits for memory."""
    at_once = min(len(requests), _MOST_SEQUENCES)
    needs = blocks_of(requests)
    return EngineConfig(
        max_num_seqs=at_once,
        max_num_batched_tokens=8192,
        block_size=BLOCK_SIZE,
        num_blocks=sum(needs[-at_once:]),
    )


def _joined(requests: Sequence[Request]) -> Iterator[tuple[int, Request]]:
    """Join neighbours that are samples of one request; yield each with its first row."""
    first = 0
    while first < len(requests):
        request, end = requests[first], first + 1
        while end < len(requests) and requests[end] == replace(
            request, sequence_id=request.sequence_id + end - first
        ):
            end += 1
        yield first, replace(request, n=end - first)
        first = end
