"""What an engine is asked for, what it answers, and how far a sequence has come.

A request is one prompt and n samples of what follows; each sample is a sequence of its own with its
own blocks. `SequenceState` belongs to the engine: the scheduler moves it between its states, and
nothing outside of `engine/` writes to it.
"""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

from ziphius.engine.cache_pool import block_key, root_key
from ziphius.engine.processors import LogitsProcessor
from ziphius.engine.prompt_scores import TokenScore
from ziphius.engine.sampler import TopLogprobs
from ziphius.ops.sampling_config import SamplingConfig

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Request:
    """Ask for completions of one prompt."""

    prompt_ids: Sequence[int]
    """At least one token."""
    max_new_tokens: int
    """Finish with reason `length` after this many."""
    sequence_id: int = 0
    """Number of the first sample under its seed, the others follow: equal prompt, seed and number
    give equal tokens, whatever else runs."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How tokens are drawn."""
    stop_ids: Sequence[int] = ()
    """Finish with reason `stop` after any of these, which is the completion's last token."""
    n: int = 1
    """Samples. The prompt is computed once for those that find a seat and a block when it is done;
    each of the others computes what the prefix cache does not hold of it."""
    priority: int = 0
    """Lower ones go first."""
    cache_salt: str = ""
    """Only requests with the same salt share what was computed of their prompts: one for each
    tenant keeps them from learning by the clock what others have asked."""
    adapter: str = ""
    """Name of the adapter to answer with (`engine/adapters.py`); empty is the model alone."""
    logprobs: int = 0
    """Most likely tokens to return at each position."""
    prompt_logprobs: int | None = None
    """Score the prompt's own tokens, with this many of the most likely ones beside each; only then
    may `max_new_tokens` be 0."""
    processors: Callable[[], Sequence[LogitsProcessor]] | None = None
    """Makes what may change the logits of one sample, such as a grammar, or end it; called anew for
    every sample, and when one goes on after a preemption."""


class StepOutput(NamedTuple):
    """What one step did to one sequence: a token, its end, or both."""

    request_id: int
    sample: int
    """Which of the request's n."""
    token_id: int | None
    """None only with an error, an end from outside, or where no token was asked for."""
    logprob: float
    """Natural log of its probability at the request's temperature (1 if greedy), before filters."""
    finish_reason: FinishReason | None
    """Set with the last output of the sequence."""
    error: str | None = None
    """Why, where the reason is `error`."""
    top: TopLogprobs | None = None
    """The most likely tokens, where the request wants them."""
    stop_reason: str | None = None
    """Which processor ended it, where one did."""
    prompt_scores: Sequence[TokenScore] | None = None
    """With the first output, where they were asked for: of all tokens of the prompt but the
    first."""
    routes_TYK: Tensor | None = None
    """With the last output, where routes are recorded: the experts of every token that the model
    saw, int16, expert layers in their order."""
    weight_version: int = 0
    """Of the weights that gave it (`Engine.weight_version`)."""


class Status(enum.Enum):
    """Where a sequence is; a following sample is `ATTACHED` until its prompt is computed."""

    ATTACHED = enum.auto()
    WAITING = enum.auto()
    PREFILLING = enum.auto()
    DECODING = enum.auto()
    FINISHED = enum.auto()


class SequenceState:
    """One sample of a request on its way through the engine."""

    __slots__ = (
        "adapter_id",
        "arrival_time",
        "blocks",
        "drafts",
        "finish_reason",
        "first_token_time",
        "followers",
        "is_seated",
        "keys",
        "last_key",
        "last_token_time",
        "max_tokens",
        "num_cached",
        "num_computed",
        "num_lookahead",
        "num_prompt",
        "num_published",
        "order",
        "prompt_scores",
        "request",
        "request_id",
        "row",
        "sample",
        "scheduled_time",
        "seat",
        "status",
        "stop_ids",
        "tokens",
        "was_preempted",
    )

    def __init__(
        self,
        request: Request,
        request_id: int,
        sample: int,
        arrival_time: float = 0.0,
        adapter_id: str = "",
    ) -> None:
        self.request = request
        self.request_id = request_id
        self.adapter_id = adapter_id
        self.sample = sample
        self.order = (request.priority, request_id, sample)
        """Who goes first; the largest is preempted first."""
        self.tokens = list(request.prompt_ids)
        """Prompt and what was drawn."""
        self.num_prompt = len(self.tokens)
        self.max_tokens = self.num_prompt + request.max_new_tokens
        self.stop_ids = frozenset(request.stop_ids)
        self.followers: list[SequenceState] = []
        """Other samples of the request that wait for this one to compute their prompt."""
        self.status = Status.WAITING
        self.finish_reason: FinishReason | None = None
        self.blocks: list[int] = []
        self.num_computed = 0
        """Tokens whose cache rows are written, from the first on."""
        self.num_published = 0
        """Full blocks that went to the index, from the first on."""
        self.keys: list[bytes] = []
        """Of full blocks, as far as they were needed."""
        self.last_key = root_key(request.cache_salt, adapter_id)
        self.seat = -1
        """Number among the running sequences that stays the same while it runs."""
        self.row = -1
        """Place in the arrays of the decoding ones, which changes."""
        self.is_seated = False
        """The sampler knows its seat."""
        self.num_lookahead = 0
        """Tokens behind the next one that the coming step may compute: room for drafts."""
        self.drafts: list[int] = []
        """Guesses behind the last token, for the coming step."""
        self.num_cached = 0
        """Tokens of the prompt that were found in the index."""
        self.prompt_scores: list[TokenScore] = []
        """Of the tokens from the second on, as far as they were asked for, are known and are yet to
        be told."""
        self.was_preempted = False
        self.arrival_time = arrival_time
        self.scheduled_time = self.first_token_time = self.last_token_time = 0.0

    @property
    def sequence_id(self) -> int:
        """Number of this sequence under its seed."""
        return self.request.sequence_id + self.sample

    @property
    def wants_scores(self) -> bool:
        """Some token of its prompt is still to be scored."""
        if self.request.prompt_logprobs is None or len(self.tokens) > self.num_prompt:
            return False  # the first token took them along
        return len(self.prompt_scores) < self.num_prompt - 1

    def take_scores(self) -> Sequence[TokenScore]:
        """Return the scores of its prompt, which are told once."""
        scores, self.prompt_scores = self.prompt_scores, []
        return scores

    @property
    def num_remaining(self) -> int:
        """Tokens to compute before the next one can be drawn."""
        return len(self.tokens) - self.num_computed

    def extend_keys(self, block_size: int, num_blocks: int) -> None:
        """Make sure that the keys of the first `num_blocks` blocks are known."""
        for place in range(len(self.keys), num_blocks):
            piece = self.tokens[place * block_size : (place + 1) * block_size]
            self.last_key = block_key(self.last_key, piece)
            self.keys.append(self.last_key)
