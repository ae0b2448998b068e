"""Groups of sampled answers to problems, each verified by its task.

The answers come from a `RolloutEngine`, at the weights that its model has now: what a trainer just
changed is what is sampled. A group shares its prompt, which is prefilled once. The experts of every
token can be recorded, for a trainer to send the tokens the same way (routing replay: DeepSeek-V3.2,
arXiv 2512.02556, section 3.1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ziphius.core.errors import ConfigError
from ziphius.engine.answer import Prompt, chat_prompt
from ziphius.engine.generate import Completion, FinishReason, Request
from ziphius.rollout.config import RolloutConfig
from ziphius.rollout.engine import RolloutEngine
from ziphius.tasks import Problem, get_task
from ziphius.text.chat import ChatFormat, Message, get_chat_format, message_of
from ziphius.text.tokenizer import Tokenizer

__all__ = ["Rollout", "RolloutConfig", "RolloutEngine", "sample_groups"]


@dataclass(frozen=True)
class Rollout:
    """One sampled answer to a problem."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    """The completion, its end token included."""
    logprobs: tuple[float, ...]
    """Of these tokens, natural, at the sampling temperature and before filters."""
    finish_reason: FinishReason
    reasoning: str | None
    """What stands in the think block, closed or not; None without one."""
    answer: str | None
    """What the task is asked to verify; None if the completion was cut off or says nothing."""
    is_correct: bool
    """What the task says."""
    routes: Mapping[int, Tensor] | None = field(default=None, repr=False, compare=False)
    """By expert layer: the chosen experts, int16 [T - 1, K], of prompt and completion without the
    last token. None unless they were recorded, or without experts."""
    policy_version: int = 0
    """Of the weights that every token comes from (`RolloutEngine.policy_version`)."""

    @property
    def follows_format(self) -> bool:
        """Tell whether the answer ended by itself, after a think block that says something."""
        return self.answer is not None and bool(self.reasoning and self.reasoning.strip())


def sample_groups(
    engine: RolloutEngine,
    problems: Sequence[Problem],
    config: RolloutConfig,
    *,
    seed: int,
    first_sequence_id: int = 0,
    numbers: Sequence[int] | None = None,
) -> list[list[Rollout]]:
    """Sample a group of answers to every problem, in the order of the problems.

    Answer i of problem number n is sequence `first_sequence_id + n * num_generations + i` under the
    seed. Its draws hang on that and the weights alone, not on the other problems or
    `sequences_at_once`.

    Args:
        engine: of the model, with a tokenizer that names the chat format that it speaks.
        problems: of any tasks.
        config: how.
        seed: of the run.
        first_sequence_id: another one for other draws, such as those of the next step.
        numbers: of the problems, all different; by default their places in the list.
    """
    tokenizer = engine.tokenizer
    chat_format = spoken_format(tokenizer)
    prompts = [problem_prompt(problem, tokenizer, chat_format, config) for problem in problems]
    numbered = range(len(problems)) if numbers is None else numbers
    size = config.num_generations
    requests = [
        _request(prompt, config, seed, first_sequence_id + number * size + sample)
        for prompt, number in zip(prompts, numbered, strict=True)
        for sample in range(size)
    ]
    completions = engine.generate(requests, max_num_seqs=config.sequences_at_once)
    return [
        [
            _rollout(problem, prompt, completion, tokenizer)
            for completion in completions[place * size : (place + 1) * size]
        ]
        for place, (problem, prompt) in enumerate(zip(problems, prompts, strict=True))
    ]


def _request(prompt: Prompt, config: RolloutConfig, seed: int, sequence_id: int) -> Request:
    sampling = config.sampling.model_copy(update={"seed": seed})
    return Request(prompt.ids, config.max_new_tokens, sequence_id, sampling, prompt.stop_ids)


def spoken_format(tokenizer: Tokenizer) -> ChatFormat:
    """Return the chat format of a tokenizer, without which answers cannot be read."""
    if tokenizer.chat_format is None:
        raise ConfigError(
            "The tokenizer names no chat format, so answers could not be read: give it one with "
            "Tokenizer.with_chat_format, or fine-tune the model (`ziphius sft`)."
        )
    return get_chat_format(tokenizer.chat_format)


def problem_prompt(
    problem: Problem, tokenizer: Tokenizer, chat_format: ChatFormat, config: RolloutConfig
) -> Prompt:
    """Ask a problem's question."""
    asked = [Message("user", problem.question)]
    return chat_prompt(asked, tokenizer, chat_format, thinking=config.thinking)


def _rollout(
    problem: Problem, prompt: Prompt, completion: Completion, tokenizer: Tokenizer
) -> Rollout:
    reasoning, answer = read_answer(prompt, completion, tokenizer)
    return Rollout(
        problem,
        tuple(prompt.ids),
        completion.token_ids,
        completion.logprobs,
        completion.finish_reason,
        reasoning,
        answer,
        get_task(problem.task).verify(problem, answer),
        completion.routes,
        completion.weight_version,
    )


def read_answer(
    prompt: Prompt, completion: Completion, tokenizer: Tokenizer
) -> tuple[str | None, str | None]:
    """Return reasoning and answer of a completion, each None where there is none.

    A completion that was cut off has no answer: the number it ends in may not be whole.
    """
    has_ended = completion.finish_reason == "stop"
    ids = completion.token_ids[:-1] if has_ended else completion.token_ids
    reader = prompt.read()
    message = message_of(reader.push(tokenizer.decode(ids)) + reader.finish())
    answer = message.content.strip()
    return message.reasoning_content or None, answer if has_ended and answer else None
