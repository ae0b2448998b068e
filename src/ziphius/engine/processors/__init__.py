"""What changes a row of logits before its token is drawn: one file per kind of reason.

The order, which is that of vLLM: bias, bad words, early stops, penalties, grammar, and the end of a
think block last, because it is the one that leaves no choice.
"""

from collections.abc import Sequence

from ziphius.core.errors import ConfigError
from ziphius.engine.processors.bias import BadWords, LogitBias, MinTokens
from ziphius.engine.processors.penalties import Penalties
from ziphius.engine.processors.processor import LogitsProcessor, ProcessorError
from ziphius.engine.processors.repetition import RepetitionGuard
from ziphius.engine.processors.thinking import Thinking, ThinkingBudget
from ziphius.engine.sampling_params import SamplingParams
from ziphius.ops.sampling_config import SamplingConfig

__all__ = ["LogitsProcessor", "ProcessorError", "Thinking", "of_params", "of_sampling"]


def of_sampling(sampling: SamplingConfig, prompt_ids: Sequence[int]) -> list[LogitsProcessor]:
    """Make what the bias and the penalties ask for: nothing for most requests."""
    found: list[LogitsProcessor] = []
    if sampling.logit_bias:
        found.append(LogitBias(sampling.logit_bias))
    if sampling.penalties:
        found.append(Penalties(sampling, prompt_ids))
    return found


def of_params(
    params: SamplingParams,
    *,
    stop_ids: Sequence[int],
    thinking: Thinking | None = None,
    grammar: LogitsProcessor | None = None,
) -> list[LogitsProcessor]:
    """Make what the rest of a request asks for, one set for each of its completions.

    Args:
        params: of the request.
        stop_ids: all tokens that end it.
        thinking: how the model thinks, where it does.
        grammar: the processor of `params.structured_outputs`, and given exactly where those are.

    Raises:
        ConfigError: a budget for the thinking of a model that does not think.
    """
    assert (grammar is None) == (params.structured_outputs is None)
    found: list[LogitsProcessor] = []
    if params.bad_words:
        found.append(BadWords(params.bad_words))
    if params.min_tokens:
        found.append(MinTokens(params.min_tokens, stop_ids))
    if grammar is not None:
        found.append(grammar)
    if params.thinking_token_budget is not None:
        if thinking is None:
            raise ConfigError(
                "thinking_token_budget has no effect: the model has no think block, or thinking is "
                "switched off"
            )
        found.append(ThinkingBudget(params.thinking_token_budget, thinking))
    if params.repetition_detection is not None:
        found.append(RepetitionGuard(params.repetition_detection))
    return found
