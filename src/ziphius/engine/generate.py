"""Generation: a batch of ragged prompts, decoded one token per sequence and step with the cache.

Prompts are right-padded and prefilled in one pass; then each step feeds the last token of every
sequence that still runs, and finished ones leave the batch. A sequence's tokens do not depend on
its company: its random draws are its own (`ops/sampling.py`), and padding is never seen.

Shapes: B running sequences, T prompt tokens, D hidden, W vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

import torch
from torch import Tensor, nn

from ziphius.core.errors import CheckpointError, ConfigError
from ziphius.models.cache import Cache
from ziphius.models.model import Model
from ziphius.ops.logprobs import token_logprobs
from ziphius.ops.sampling import Sampler
from ziphius.ops.sampling_config import SamplingConfig

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Request:
    """Ask for one completion of one prompt."""

    prompt_ids: Sequence[int]
    """At least one token."""
    max_new_tokens: int
    """Finish with reason `length` after this many."""
    sequence_id: int
    """Number of this sequence under its seed: equal prompt, seed and id give equal tokens."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How tokens are drawn."""
    stop_ids: Sequence[int] = ()
    """Finish with reason `stop` after any of these, which is the completion's last token."""


@dataclass(frozen=True)
class NewToken:
    """One token of one sequence, as soon as it is drawn."""

    row: int
    """Which request."""
    token_id: int
    """The token."""
    logprob: float
    """Natural log of its probability at the request's temperature (1 if greedy), before filters."""
    finish_reason: FinishReason | None
    """Set with the last token of the sequence."""


@dataclass(frozen=True)
class Completion:
    """All that was generated for one request."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch off training behaviour inside the block; afterwards each module is as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


class Generation:
    """Iterate over the steps of a batch: each is the list of tokens just drawn.

    Use it in a `with` block, which keeps the model in evaluation mode. The first step prefills the
    prompts. `stop` ends a sequence from outside. Leaving the block early, by an exception or
    Ctrl-C, loses nothing but the cache.

    Args:
        model: shared, not copied; must not be trained inside the block.
        requests: one per sequence; `NewToken.row` counts in their order.
        vocab_limit: tokens the tokenizer knows. Published embeddings are padded past them (V3:
            129,280 rows for 128,815 tokens); such ids are never drawn, and log-probabilities still
            count them.
    """

    def __init__(
        self, model: Model, requests: Sequence[Request], *, vocab_limit: int | None = None
    ) -> None:
        if not requests:
            raise ConfigError("nothing to generate: the list of requests is empty")
        for row, request in enumerate(requests):
            name = "the prompt" if len(requests) == 1 else f"prompt {row}"
            _check_request(name, request, model)
        self._model = model
        self._requests = tuple(requests)
        self._vocab_limit = vocab_limit
        self._exits = ExitStack()
        embedding = model.model.embed_tokens.weight
        self._device = embedding.device
        self._cache = Cache(
            model.config,
            len(requests),
            max(len(request.prompt_ids) + request.max_new_tokens for request in requests),
            dtype=embedding.dtype,
            device=self._device,
        )
        self._sampler = Sampler(
            [request.sampling for request in requests],
            [request.sequence_id for request in requests],
            self._device,
        )
        self._running = list(range(len(requests)))
        self._finished: set[int] = set()
        self._tokens: list[list[int]] = [list(request.prompt_ids) for request in requests]

    def __enter__(self) -> Self:
        self._exits.enter_context(evaluation_mode(self._model))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._exits.close()

    def __iter__(self) -> Self:
        return self

    def stop(self, row: int) -> None:
        """End this sequence before its next step, as when a stop string shows up in its text."""
        self._finished.add(row)

    def __next__(self) -> list[NewToken]:
        self._drop_finished()
        if not self._running:
            raise StopIteration
        with torch.inference_mode():
            logits_BW = self._next_logits()
            ids_B = self._sampler(
                logits_BW[:, : self._vocab_limit], [len(self._tokens[row]) for row in self._running]
            )
            logprobs_B = token_logprobs(logits_BW, ids_B, temperature=self._sampler.temperatures_B)
        return [
            self._record(row, token_id, logprob)
            for row, token_id, logprob in zip(
                self._running, ids_B.tolist(), logprobs_B.tolist(), strict=True
            )
        ]

    def _drop_finished(self) -> None:
        kept = [index for index, row in enumerate(self._running) if row not in self._finished]
        if len(kept) == len(self._running):
            return
        self._running = [self._running[index] for index in kept]
        if kept:
            self._cache.keep(kept)
            self._sampler = self._sampler.select(kept)

    def _next_logits(self) -> Tensor:
        """Run the prompts, or the last token of each sequence; return the logits after them."""
        if not bool(self._cache.lengths_B.any()):
            return self._prefill()
        last_B1 = torch.tensor(
            [[self._tokens[row][-1]] for row in self._running], device=self._device
        )
        hidden_B1D = self._model(last_B1, cache=self._cache).hidden_BTD
        return self._model.logits(hidden_B1D[:, 0])

    def _prefill(self) -> Tensor:
        prompts = [torch.tensor(self._tokens[row]) for row in self._running]
        lengths_B = torch.tensor([len(prompt) for prompt in prompts])
        ids_BT = nn.utils.rnn.pad_sequence(prompts, batch_first=True).to(self._device)
        hidden_BTD = self._model(ids_BT, cache=self._cache).hidden_BTD
        self._cache.truncate(lengths_B)
        rows_B = torch.arange(len(prompts), device=self._device)
        hidden_BD = hidden_BTD[rows_B, (lengths_B - 1).to(self._device)]
        return self._model.logits(hidden_BD)

    def _record(self, row: int, token_id: int, logprob: float) -> NewToken:
        request = self._requests[row]
        tokens = self._tokens[row]
        if math.isnan(logprob):
            raise CheckpointError(
                f"the model gave NaN logits at position {len(tokens)} of sequence {row}: its "
                "weights are damaged, or overflow in this dtype (try float32 or bfloat16)"
            )
        tokens.append(token_id)
        finish_reason: FinishReason | None = None
        if token_id in request.stop_ids:
            finish_reason = "stop"
        elif len(tokens) == len(request.prompt_ids) + request.max_new_tokens:
            finish_reason = "length"
        if finish_reason:
            self._finished.add(row)
        return NewToken(row, token_id, logprob, finish_reason)


def generate(
    model: Model, requests: Sequence[Request], *, vocab_limit: int | None = None
) -> list[Completion]:
    """Run all requests to their end in one batch; return their completions in order."""
    tokens: list[list[NewToken]] = [[] for _ in requests]
    with Generation(model, requests, vocab_limit=vocab_limit) as steps:
        for step in steps:
            for token in step:
                tokens[token.row].append(token)
    return [_completion(row) for row in tokens]


def _completion(tokens: Sequence[NewToken]) -> Completion:
    finish_reason = tokens[-1].finish_reason
    assert finish_reason is not None, "a sequence left the batch unfinished"
    return Completion(
        tuple(token.token_id for token in tokens),
        tuple(token.logprob for token in tokens),
        finish_reason,
    )


def _check_request(name: str, request: Request, model: Model) -> None:
    config = model.config
    length, new = len(request.prompt_ids), request.max_new_tokens
    if length == 0:
        raise ConfigError(f"{name} is empty: it needs at least one token to start from")
    for token_id in request.prompt_ids:
        if not 0 <= token_id < config.vocab_size:
            raise ConfigError(
                f"{name} holds token {token_id}, but the model knows 0 to "
                f"{config.vocab_size - 1}: the tokenizer does not belong to this model"
            )
    if new < 1:
        raise ConfigError(f"max_new_tokens of {name} is {new}; it must be at least 1")
    room = config.max_position_embeddings - length
    if new > room:
        remedy = f"set max_new_tokens to at most {room}" if room > 0 else "shorten the prompt"
        raise ConfigError(
            f"{name} has {length} tokens and asks for {new} more, but the model's context "
            f"(max_position_embeddings) is {config.max_position_embeddings} tokens: {remedy}"
        )
