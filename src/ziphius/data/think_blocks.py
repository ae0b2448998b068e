"""Reasoning inside the content of an answer, `<think>...</think>answer`, as most sets keep it.

Where a chat format has a think block, the block becomes the message's reasoning, and the format
writes it with its own tokens; spelled in the content it would be learned letter by letter, and
behind a block that the prompt has closed. Where a format has none, the tags stay text, unless the
vocabulary has a token for them: then another format is meant.
"""

from collections import Counter
from dataclasses import replace

from ziphius.core.errors import ChatError
from ziphius.text.chat import ChatFormat, Message
from ziphius.text.special import END_THINK, THINK
from ziphius.text.tokenizer import Tokenizer

READ = "think blocks in contents were read as reasoning"
SPELLED = "answers keep think tags as text, as the chat format has no think block"


def has_think_block(chat_format: ChatFormat) -> bool:
    """Say whether answers in a format can hold reasoning."""
    return chat_format.opens_own_thinking or True in chat_format.thinking_modes


def with_reasoning(
    message: Message, chat_format: ChatFormat, tokenizer: Tokenizer, changes: Counter[str]
) -> Message:
    """Return an assistant's message whose think block, if it has one, is its reasoning.

    Raises:
        ChatError: the block cannot be told from the answer, or another format is meant.
    """
    reasoning = _bare(message.reasoning_content or "")
    if not _has_tag(message.content):
        return (
            message
            if reasoning == (message.reasoning_content or "")
            else _read(message, reasoning, message.content, changes)
        )
    if not has_think_block(chat_format):
        if tokenizer.has_token(THINK):
            raise ChatError(
                f"An answer holds {THINK} tags, for which the vocabulary has tokens but chat "
                f"format {chat_format.name} has no place. Give a chat format that thinks (such as "
                "deepseek-r1 or chatml-think), or think_blocks = text to learn the tags as letters."
            )
        changes[SPELLED] += 1
        return message
    block, answer = _split(message.content)
    if reasoning and reasoning != block:
        raise ChatError(
            f"An answer has reasoning_content and a {THINK} block that differs from it: leave one."
        )
    return _read(message, block, answer, changes)


def _read(message: Message, reasoning: str, answer: str, changes: Counter[str]) -> Message:
    changes[READ] += 1
    return replace(message, reasoning_content=reasoning, content=answer)


def _split(content: str) -> tuple[str, str]:
    """Cut a content into its block and the answer, without the blanks that a format puts between.

    A block without its opening tag is what a model writes whose prompt has opened it; it counts
    where the closing tag has a line of its own, as DeepSeek-R1 writes it.
    """
    before, opening, rest = content.partition(THINK)
    if not opening:
        before, rest = "", content
        if not any(line.strip() == END_THINK for line in content.splitlines()):
            raise _unclear(f"has {END_THINK} without {THINK}")
    if before.strip():
        raise _unclear(f"has text before {THINK}")
    block, closing, answer = rest.partition(END_THINK)
    if not closing:
        raise _unclear(f"never closes {THINK}")
    if _has_tag(block) or _has_tag(answer):
        raise _unclear(f"has more than one {THINK} or {END_THINK}")
    blank = len(answer) - len(answer.lstrip())
    start = answer.rfind("\n", 0, blank) + 1 or blank  # the indent of a first line is its own
    return block.strip(), answer[start:]


def _unclear(problem: str) -> ChatError:
    return ChatError(
        f"An answer {problem}, so its reasoning cannot be told from the rest. Mend it, give "
        "reasoning_content beside content, or think_blocks = text to learn the tags as letters."
    )


def _bare(reasoning: str) -> str:
    """Take the tags off a reasoning that is kept with them."""
    inner = reasoning.strip()
    if inner.startswith(THINK) and inner.endswith(END_THINK):
        inner = inner[len(THINK) : -len(END_THINK)]
    elif not _has_tag(inner):
        return reasoning
    if _has_tag(inner):
        raise ChatError(
            f"A reasoning_content holds {THINK} tags: give the words between them alone."
        )
    return inner.strip()


def _has_tag(text: str) -> bool:
    return THINK in text or END_THINK in text
