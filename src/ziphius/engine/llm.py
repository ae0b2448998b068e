"""`LLM`: a model, its tokenizer and one engine, for scripts; vLLM's class of that name in spirit.

Example:
    with LLM("my-model") as llm:
        for output in llm.generate(["Name a whale."], SamplingParams(max_tokens=50, n=3)):
            print([completion.text for completion in output.outputs])
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ziphius.core.closing import Closing
from ziphius.core.errors import ChatError, CheckpointError, ConfigError
from ziphius.data.messages import messages_of
from ziphius.engine.adapters import AdapterStore
from ziphius.engine.answer import Prompt, chat_prompt, raw_prompt
from ziphius.engine.build import build_engine
from ziphius.engine.config import EngineConfig
from ziphius.engine.load import Loaded, load_for_inference
from ziphius.engine.prompt_scores import TokenScore
from ziphius.engine.requests import RequestMaker, first_sequence_ids
from ziphius.engine.sampler import TopLogprobs
from ziphius.engine.sampling_params import MAX_LOGPROBS, SamplingParams
from ziphius.engine.sequence import FinishReason, Request
from ziphius.engine.text import Ask, TextPiece, stream_text
from ziphius.text.chat import Message, get_chat_format

Ids = np.ndarray[Any, Any] | Tensor
Turn = Message | Mapping[str, Any]
PromptLike = str | Sequence[int] | Ids | Sequence[Turn]
"""A text to go on with, its token ids, or a conversation to answer in the model's chat format, of
`Message`s or of the dicts that stand for them in OpenAI's API."""


@dataclass
class CompletionOutput:
    """One completion of a prompt."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """Of these tokens, natural, at the sampling temperature and before filters."""
    top_logprobs: list[TopLogprobs] = field(default_factory=list)
    """The most likely tokens at each place, as many as `SamplingParams.logprobs` asks for."""
    finish_reason: FinishReason | None = None
    stop_reason: str | None = None
    """Which rule ended it (a grammar that is complete, a repetition), where one did."""
    error: str | None = None
    """What went wrong with this completion alone, where the reason is `error`."""

    def add(self, piece: TextPiece) -> None:
        """Take one more token in."""
        self.text += piece.text
        self.finish_reason, self.error = piece.finish_reason, piece.error
        if (told := piece.output) is None:
            return
        self.stop_reason = told.stop_reason
        if told.top is not None:
            self.top_logprobs.append(told.top)
        if told.token_id is not None:
            self.token_ids.append(told.token_id)
            self.logprobs.append(told.logprob)


@dataclass
class RequestOutput:
    """A prompt and its completions."""

    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_scores: Sequence[TokenScore] | None = None
    """Of the prompt's tokens but the first, where `prompt_logprobs` asks for them."""

    def keep_best(self, count: int) -> None:
        """Keep the completions with the highest mean log-probability, where there are more."""
        if len(self.outputs) > count:
            self.outputs.sort(key=_surprise)
            del self.outputs[count:]


def _surprise(completion: CompletionOutput) -> float:
    """Return the mean of the negative log-probabilities; one that went wrong comes last."""
    if completion.error is not None:
        return math.inf
    return -sum(completion.logprobs) / len(completion.logprobs)


class LLM(Closing):
    """A model with an engine that keeps what it has computed of earlier texts.

    Args:
        model: a model folder, .gguf file or preset, or what `load_for_inference` made of one.
        config: limits of the engine.
        device: a word that `resolve_device` knows; not with a loaded model.
        dtype: a word that `resolve_dtype` knows; not with a loaded model.
        adapters: folders of adapters by the name that `generate` is given.
        draft_model: that guesses, of the same kinds as `model`; given exactly where the method of
            `config.speculation` is `model`. A name is loaded to where the model is.
    """

    def __init__(
        self,
        model: str | Loaded,
        config: EngineConfig | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        adapters: Mapping[str, Path | str] | None = None,
        draft_model: str | Loaded | None = None,
    ) -> None:
        if isinstance(model, str):
            model = load_for_inference(model, device=device, dtype=dtype)
        elif (device, dtype) != ("auto", "auto"):
            raise ConfigError("device and dtype have no effect on a model that is loaded already")
        if isinstance(draft_model, str):
            place = str(model.model.model.embed_tokens.weight.device)
            draft_model = load_for_inference(draft_model, device=place, dtype=dtype)
        self.loaded = model
        self.tokenizer = model.tokenizer
        config = config or EngineConfig()
        self._maker = RequestMaker(self.tokenizer)
        self.adapters: AdapterStore | None = None
        if adapters is not None:
            self.adapters = AdapterStore(model.model, config.max_adapter_bytes)
            for name, folder in adapters.items():
                self.adapters.add(name, Path(folder))
        self.engine = build_engine(
            model.model,
            config,
            vocab_limit=self.tokenizer.vocab_size,
            adapters=self.adapters,
            draft_model=None if draft_model is None else draft_model.model,
        )

    def close(self) -> None:
        """Write what the engine keeps on disk, if `disk_cache` is set; end what waits beside it."""
        self.engine.close()
        self._maker.close()

    def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        adapter: str | Sequence[str] = "",
    ) -> list[RequestOutput]:
        """Complete prompts; return the completions of each, in order.

        Equal prompts get answers of their own, as if they were samples of one; only one whose own
        params name a seed is answered as if it were alone.

        Args:
            prompts: one, or a list of them, which may be empty.
            params: for all prompts, or for each its own; by default `SamplingParams()`.
            adapter: name of an adapter for all prompts, or for each its own; empty is none.

        Raises:
            ConfigError: a prompt that cannot be answered, before anything is computed.
        """
        asked = self._prompts(prompts)
        each = params if isinstance(params, Sequence) else [params or SamplingParams()] * len(asked)
        if len(each) != len(asked):
            raise ConfigError(f"{len(asked)} prompts and {len(each)} params: give one for each")
        names = [adapter] * len(asked) if isinstance(adapter, str) else adapter
        if len(names) != len(asked):
            raise ConfigError(f"{len(asked)} prompts and {len(names)} adapters: give one for each")
        own = isinstance(params, Sequence)
        numbers = first_sequence_ids(
            (None if own and "seed" in one.model_fields_set else (name, *p.ids), one.completions)
            for p, one, name in zip(asked, each, names, strict=True)
        )
        wanted = []
        for row, (prompt, one, name, number) in enumerate(
            zip(asked, each, names, numbers, strict=True)
        ):
            with _naming(row):
                _refuse_unsupported(one)
                wanted.append(self._maker.ask(prompt, one, adapter=name, sequence_id=number))
        answered = [
            RequestOutput(list(prompt.ids), [CompletionOutput(i) for i in range(one.completions)])
            for prompt, one in zip(asked, each, strict=True)
        ]
        self._run(wanted, answered)
        for output, one in zip(answered, each, strict=True):
            output.keep_best(one.n)
        return answered

    def _run(self, asked: Sequence[Ask], answered: Sequence[RequestOutput]) -> None:
        for row, ask in enumerate(asked):
            with _naming(row):
                self.engine.check_request(ask.request)
        steps = stream_text(self.engine, self.tokenizer, asked, keep_errors=True)
        with closing(steps):
            for step in steps:
                for piece in step:
                    assert piece.output is not None, "a request that was checked is refused"
                    output = answered[piece.row]
                    output.outputs[piece.sample].add(piece)
                    if piece.output.prompt_scores is not None:
                        output.prompt_scores = piece.output.prompt_scores

    def score(
        self, prompts: PromptLike | Sequence[PromptLike], logprobs: int = 0
    ) -> list[Sequence[TokenScore]]:
        """Return how likely the model finds the tokens of each prompt, from the second one on.

        Args:
            prompts: one, or a list of them.
            logprobs: most likely tokens to return beside each, at most 20.

        Raises:
            ConfigError: a prompt that cannot be scored, before anything is computed.
            CheckpointError: the model fails on a prompt.
        """
        if not 0 <= logprobs <= MAX_LOGPROBS:
            raise ConfigError(f"logprobs is {logprobs}; it must be from 0 to {MAX_LOGPROBS}")
        asked = self._prompts(prompts)
        answered = [RequestOutput(list(prompt.ids), [CompletionOutput(0)]) for prompt in asked]
        requests = [Request(prompt.ids, 0, prompt_logprobs=logprobs) for prompt in asked]
        self._run([Ask(request) for request in requests], answered)
        for row, output in enumerate(answered):
            if (error := output.outputs[0].error) is not None:
                raise CheckpointError(f"prompt {row}: {error}")
        return [output.prompt_scores or () for output in answered]

    def _prompts(self, prompts: PromptLike | Sequence[PromptLike]) -> list[Prompt]:
        asked = []
        for row, prompt in enumerate(_listed(prompts)):
            with _naming(row):
                asked.append(self._prompt(prompt))
        return asked

    def _prompt(self, prompt: PromptLike) -> Prompt:
        if isinstance(prompt, str):
            return raw_prompt(prompt, self.tokenizer)
        parts = _plain(prompt)
        if all(isinstance(part, int | np.integer) for part in parts):
            return Prompt([int(part) for part in parts], self.tokenizer.eos_ids, None)
        if all(isinstance(part, Mapping) for part in parts):
            parts = messages_of(parts)
        messages = [part for part in parts if isinstance(part, Message)]
        if len(messages) != len(parts):
            raise ConfigError("a prompt is a text, token ids, or Messages")
        if self.tokenizer.chat_format is None:
            raise ConfigError(
                "the model has no chat format for a prompt of messages: give texts, or name one "
                "with Tokenizer.with_chat_format"
            )
        return chat_prompt(messages, self.tokenizer, get_chat_format(self.tokenizer.chat_format))


@contextmanager
def _naming(row: int) -> Iterator[None]:
    """Say which prompt is wrong."""
    try:
        yield
    except (ChatError, ConfigError) as error:
        raise type(error)(f"prompt {row}: {error}") from error


def _listed(prompts: PromptLike | Sequence[PromptLike]) -> Sequence[Any]:
    """Make a list of prompts of a single one."""
    if isinstance(prompts, str):
        return [prompts]
    parts = _plain(prompts)
    is_one = len(parts) > 0 and isinstance(parts[0], int | np.integer | Message | Mapping)
    return [parts] if is_one else parts


def _plain(parts: Any) -> Sequence[Any]:
    """Make a sequence of an array or tensor too."""
    if isinstance(parts, np.ndarray | Tensor):
        parts = parts.tolist()
    if not isinstance(parts, Sequence):
        raise ConfigError(f"prompts are a sequence, not {type(parts).__name__}")
    return parts


def _refuse_unsupported(params: SamplingParams) -> None:
    """Raise where a setting would have no effect here."""
    if params.max_tokens == 0:
        raise ConfigError("max_tokens is 0: nothing would be generated; score prompts with `score`")
