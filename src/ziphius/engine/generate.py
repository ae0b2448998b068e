"""Generation: a batch of ragged prompts, decoded one token per sequence and step with the cache.

Prompts are prefilled in one pass, equal ones once: their sequences begin with copies of one block
of the cache. Then each step feeds the last token of every sequence that still runs, and finished
ones leave the batch. A sequence's tokens do not depend on its company: its random draws are its own
(`ops/sampling.py`), and padding is never seen.

Shapes: B running sequences, T new tokens, M new tokens of all in a row, D hidden, W vocabulary,
L expert layers, K experts per token, R requests, X stop ids.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ziphius.core.closing import Closing
from ziphius.core.errors import CheckpointError, ConfigError
from ziphius.models.model import Model, Output
from ziphius.models.sequences import Sequences
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
    routes: Mapping[int, Tensor] | None = None
    """By expert layer: the chosen experts, int16 [tokens - 1, K], of prompt and completion without
    the last token, which the model never saw. None unless they were asked for."""


@dataclass(frozen=True)
class Drawn:
    """The tokens of one step, one of each running sequence; all tensors are on the CPU."""

    rows: Sequence[int]
    """Which requests."""
    ids_B: Tensor
    logprobs_B: Tensor
    """Natural log of the probability at the request's temperature, before filters."""
    stopped_B: Tensor
    """Whether the token is one of the request's stop ids."""
    full_B: Tensor
    """Whether it is the last one that the request allows."""
    routes_BTLK: Tensor | None
    """Experts of the tokens that were fed for it: the whole prompt in the first step, right-padded,
    one token in the others. None unless they are recorded."""


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


class Generation(Closing):
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
        record_routes: keep the experts that each token was sent to, for `draw`.
    """

    def __init__(
        self,
        model: Model,
        requests: Sequence[Request],
        *,
        vocab_limit: int | None = None,
        record_routes: bool = False,
    ) -> None:
        if not requests:
            raise ConfigError("nothing to generate: the list of requests is empty")
        for row, request in enumerate(requests):
            name = "the prompt" if len(requests) == 1 else f"prompt {row}"
            _check_request(name, request, model)
        self._model = model
        self._vocab_limit = vocab_limit
        self._record_routes = record_routes
        self._exits = ExitStack()
        self._device = model.model.embed_tokens.weight.device
        self._prompts = [tuple(request.prompt_ids) for request in requests]
        self._sequences = Sequences(
            model,
            len(requests),
            max(len(request.prompt_ids) + request.max_new_tokens for request in requests),
        )
        self._sampler = Sampler(
            [request.sampling for request in requests],
            [request.sequence_id for request in requests],
            self._device,
        )
        self._running = list(range(len(requests)))
        self._finished: set[int] = set()
        prompt_lengths = [len(request.prompt_ids) for request in requests]
        self._lengths_B: npt.NDArray[np.int64] = np.array(prompt_lengths, dtype=np.int64)
        self._full_B = self._lengths_B + [request.max_new_tokens for request in requests]
        self._stop_BX = _padded([request.stop_ids for request in requests])
        self._last_B: Tensor | None = None

    def __enter__(self) -> Self:
        self._exits.enter_context(evaluation_mode(self._model))
        return self

    def close(self) -> None:
        """Give the model its mode back."""
        self._exits.close()

    def __iter__(self) -> Self:
        return self

    def stop(self, row: int) -> None:
        """End this sequence before its next step, as when a stop string shows up in its text."""
        self._finished.add(row)

    def __next__(self) -> list[NewToken]:
        drawn = self.draw()
        if drawn is None:
            raise StopIteration
        return [
            NewToken(row, token_id, logprob, "stop" if stopped else "length" if full else None)
            for row, token_id, logprob, stopped, full in zip(
                drawn.rows,
                drawn.ids_B.tolist(),
                drawn.logprobs_B.tolist(),
                drawn.stopped_B.tolist(),
                drawn.full_B.tolist(),
                strict=True,
            )
        ]

    def draw(self) -> Drawn | None:
        """Do the next step and return it as tensors; None when all sequences are finished."""
        self._drop_finished()
        if not self._running:
            return None
        with torch.inference_mode():
            logits_BW, routes_BTLK = self._next_logits()
            ids_B = self._sampler(logits_BW[:, : self._vocab_limit], self._lengths_B)
            divisor = 1.0 if self._sampler.is_unscaled else self._sampler.temperatures_B
            logprobs_B = token_logprobs(logits_BW, ids_B, temperature=divisor)
            self._last_B = ids_B
            ids_B, logprobs_B = ids_B.cpu(), logprobs_B.cpu()
            self._refuse_nan(logprobs_B)
        self._lengths_B = self._lengths_B + 1
        stopped_B = (ids_B.unsqueeze(-1) == self._stop_BX).any(-1)
        full_B = torch.from_numpy(self._lengths_B == self._full_B)
        drawn = Drawn(tuple(self._running), ids_B, logprobs_B, stopped_B, full_B, routes_BTLK)
        ended = (stopped_B | full_B).nonzero().flatten().tolist()
        self._finished.update(self._running[index] for index in ended)
        return drawn

    def _drop_finished(self) -> None:
        if self._finished.isdisjoint(self._running):
            return
        kept = [index for index, row in enumerate(self._running) if row not in self._finished]
        self._running = [self._running[index] for index in kept]
        if not kept:
            return
        if self._last_B is not None:
            self._last_B = self._last_B[kept]
        self._sampler = self._sampler.select(kept)
        self._lengths_B, self._full_B = self._lengths_B[kept], self._full_B[kept]
        self._stop_BX = self._stop_BX[kept]

    def _next_logits(self) -> tuple[Tensor, Tensor | None]:
        """Run the prompts, or the last token of each sequence; return the logits after them."""
        if self._last_B is None:
            return self._prefill()
        new = [1] * len(self._running)
        output = self._model(self._sequences.extend(self._running, new, self._last_B))
        routes_BLK = self._routes(output)
        return (
            self._model.logits(output.wanted_LD),
            None if routes_BLK is None else routes_BLK.unsqueeze(1),
        )

    def _prefill(self) -> tuple[Tensor, Tensor | None]:
        """Run each distinct prompt once, and give every sequence a copy of what it left."""
        rows_of: dict[tuple[int, ...], list[int]] = {}
        for row in self._running:
            rows_of.setdefault(self._prompts[row], []).append(row)
        firsts = [rows[0] for rows in rows_of.values()]
        lengths = [len(prompt) for prompt in rows_of]
        ids_M = torch.tensor([token for prompt in rows_of for token in prompt])
        output = self._model(self._sequences.extend(firsts, lengths, ids_M.to(self._device)))
        for first, *others in rows_of.values():
            self._sequences.copy(first, others)
        place_of = {prompt: place for place, prompt in enumerate(rows_of)}
        places = [place_of[self._prompts[row]] for row in self._running]
        logits_BW = self._model.logits(output.wanted_LD)[torch.tensor(places, device=self._device)]
        routes_MLK = self._routes(output)
        if routes_MLK is None:
            return logits_BW, None
        routes_BTLK = nn.utils.rnn.pad_sequence(routes_MLK.split(lengths), batch_first=True)
        return logits_BW, routes_BTLK[places]

    def _routes(self, output: Output) -> Tensor | None:
        """Gather the experts of the tokens just fed, int16 [M, L, K]."""
        if not (self._record_routes and output.routings):
            return None
        experts = [output.routings[layer].experts_MK for layer in sorted(output.routings)]
        return torch.stack(experts, dim=1).to("cpu", torch.int16)

    def _refuse_nan(self, logprobs_B: Tensor) -> None:
        if bool(logprobs_B.isnan().any()):
            [index, *_] = logprobs_B.isnan().nonzero().flatten().tolist()
            raise CheckpointError(
                f"the model gave NaN logits at position {self._lengths_B[index]} of sequence "
                f"{self._running[index]}: its weights are damaged, or overflow in this dtype (try "
                "float32 or bfloat16)"
            )


class Transcript:
    """Everything that the steps of a batch draw, put down in bulk.

    Args:
        requests: of the batch.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        longest = max(request.max_new_tokens for request in requests)
        self._prompts = torch.tensor([len(request.prompt_ids) for request in requests])
        self._counts = torch.zeros(len(requests), dtype=torch.int64)
        self._ids = torch.zeros(len(requests), longest, dtype=torch.int64)
        self._logprobs = torch.zeros(len(requests), longest)
        self._stopped = torch.zeros(len(requests), dtype=torch.bool)
        self._routes: Tensor | None = None

    def add(self, drawn: Drawn) -> None:
        """Put a step down."""
        rows_B = torch.tensor(drawn.rows)
        counts_B = self._counts[rows_B]
        self._ids[rows_B, counts_B] = drawn.ids_B
        self._logprobs[rows_B, counts_B] = drawn.logprobs_B
        self._stopped[rows_B] = drawn.stopped_B
        if drawn.routes_BTLK is not None:
            self._add_routes(rows_B, counts_B, drawn.routes_BTLK)
        self._counts[rows_B] += 1

    def _add_routes(self, rows_B: Tensor, counts_B: Tensor, routes_BTLK: Tensor) -> None:
        if self._routes is None:  # the first step, of all rows: their prompts
            _, prompt, layers, top_k = routes_BTLK.shape
            rows, longest = self._ids.shape
            shape = (rows, prompt + longest, layers, top_k)
            self._routes = torch.zeros(shape, dtype=routes_BTLK.dtype)
            self._routes[rows_B, :prompt] = routes_BTLK
        else:  # the token drawn in the step before
            places_B = self._prompts[rows_B] + counts_B - 1
            self._routes[rows_B, places_B] = routes_BTLK[:, 0]

    def completions(self, expert_layers: Sequence[int]) -> list[Completion]:
        """Cut the rows apart, in the order of the requests."""
        ids, logprobs = self._ids.tolist(), self._logprobs.tolist()
        return [
            Completion(
                tuple(ids[row][:count]),
                tuple(logprobs[row][:count]),
                "stop" if stopped else "length",
                self._routes_of(row, expert_layers),
            )
            for row, (count, stopped) in enumerate(
                zip(self._counts.tolist(), self._stopped.tolist(), strict=True)
            )
        ]

    def _routes_of(self, row: int, expert_layers: Sequence[int]) -> dict[int, Tensor] | None:
        if self._routes is None:
            return None
        seen = int(self._prompts[row] + self._counts[row]) - 1
        return {layer: self._routes[row, :seen, place] for place, layer in enumerate(expert_layers)}


def generate(
    model: Model,
    requests: Sequence[Request],
    *,
    vocab_limit: int | None = None,
    record_routes: bool = False,
) -> list[Completion]:
    """Run all requests to their end in one batch; return their completions in order."""
    with Generation(
        model, requests, vocab_limit=vocab_limit, record_routes=record_routes
    ) as generation:
        transcript = Transcript(requests)
        while (drawn := generation.draw()) is not None:
            transcript.add(drawn)
    config = model.config
    layers = [idx for idx in range(config.num_hidden_layers) if config.is_expert_layer(idx)]
    return transcript.completions(layers)


def _padded(stop_ids: Sequence[Sequence[int]]) -> Tensor:
    """Lay stop ids out as [R, X], filled with -1, which no token is."""
    width = max(map(len, stop_ids))
    rows = [[*ids, *[-1] * (width - len(ids))] for ids in stop_ids]
    return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), width)


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
