"""From a prompt and what is wanted of its answer to a request of the engine."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

from ziphius.core.closing import Closing
from ziphius.core.errors import ConfigError
from ziphius.engine.answer import Prompt, thinking_of
from ziphius.engine.grammar import GrammarCompiler
from ziphius.engine.processors import LogitsProcessor, of_params
from ziphius.engine.sampling_params import SamplingParams
from ziphius.engine.sequence import Request
from ziphius.engine.text import Ask
from ziphius.text.tokenizer import Tokenizer


def first_sequence_ids(asked: Iterable[tuple[Hashable, int]]) -> Iterator[int]:
    """Number the samples of equal prompts under one seed, so that no two of them are the same.

    Args:
        asked: of each prompt, in order, what equals that of an equal prompt, and its samples; None
            is asked as if it were alone, as what has a seed of its own.

    Yields:
        The `Request.sequence_id` of each prompt's first sample.
    """
    numbered: Counter[Hashable] = Counter()
    for key, samples in asked:
        if key is None:
            yield 0
            continue
        yield numbered[key]
        numbered[key] += samples


class RequestMaker(Closing):
    """Makes requests, and compiles the grammars that they are held to: equal ones once.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._compilers: dict[tuple[int, ...], GrammarCompiler] = {}

    def close(self) -> None:
        """End what waits for grammars."""
        while self._compilers:
            self._compilers.popitem()[1].close()

    def ask(
        self, prompt: Prompt, params: SamplingParams, *, adapter: str = "", sequence_id: int = 0
    ) -> Ask:
        """Ask for the completions of a prompt.

        Args:
            prompt: to be completed.
            params: of all its completions.
            adapter: name of an adapter; empty is none.
            sequence_id: of the first completion; see `Request.sequence_id`.

        Raises:
            ConfigError: a setting that has no effect on this prompt, a token that the tokenizer
                does not have, or a grammar that is none.
        """
        if params.max_tokens == 0 and params.completions > 1:
            raise ConfigError("max_tokens is 0: a prompt is scored once, so set n to 1")
        self._check_ids(params)
        stop_ids = (*(() if params.ignore_eos else prompt.stop_ids), *params.stop_token_ids)
        request = Request(
            prompt.ids,
            params.max_tokens,
            sequence_id,
            params,
            stop_ids,
            n=params.completions,
            adapter=adapter,
            logprobs=params.logprobs,
            prompt_logprobs=params.prompt_logprobs,
            processors=self._processors(prompt, params, stop_ids),
        )
        return Ask(request, params.stop, params.min_tokens)

    def _check_ids(self, params: SamplingParams) -> None:
        """Raise for a setting that names a token which is never drawn."""
        named = {
            "stop_token_ids": params.stop_token_ids,
            "bad_words": [token_id for word in params.bad_words for token_id in word],
            "logit_bias": [token_id for token_id, _ in params.logit_bias],
        }
        most = self._tokenizer.vocab_size - 1
        for name, ids in named.items():
            if ids and max(ids) > most:
                raise ConfigError(f"{name} names token {max(ids)}, but the ids are 0 to {most}")

    def _processors(
        self, prompt: Prompt, params: SamplingParams, stop_ids: tuple[int, ...]
    ) -> Callable[[], Sequence[LogitsProcessor]]:
        """Compile what a prompt's completions are held to; each of them gets its own."""
        thinking = thinking_of(prompt, self._tokenizer)
        wanted = params.structured_outputs
        if wanted is not None and not stop_ids:
            raise ConfigError(
                "structured_outputs need a token that ends the answer: leave out ignore_eos, or "
                "give stop_token_ids"
            )
        grammar = None if wanted is None else self._compiler(stop_ids).compile(wanted)

        def one_set() -> list[LogitsProcessor]:
            own = None if grammar is None else grammar.processor(thinking)
            return of_params(params, stop_ids=stop_ids, thinking=thinking, grammar=own)

        one_set()  # what cannot work is refused before anything runs
        return one_set

    def _compiler(self, stop_ids: tuple[int, ...]) -> GrammarCompiler:
        if self._compilers.get(stop_ids) is None:
            self._compilers[stop_ids] = GrammarCompiler(self._tokenizer, stop_ids)
        return self._compilers[stop_ids]
