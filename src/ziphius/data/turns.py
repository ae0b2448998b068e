"""Which turns of a conversation are learned together: those whose past is what inference shows.

Formats that think drop the reasoning of past turns. Learned as a part of a longer conversation,
such a turn would be an answer without its thoughts, behind a think block that is closed or missing:
what no prompt ever asks for. So a turn is learned in a sample only where everything up to its end
is what rendering the conversation up to there gives; a conversation whose reasoning is dropped on
the way becomes several samples, each of which ends with a turn in full. One without reasoning is
one sample. What stands before any question is context: no prompt ends there.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate, pairwise

from ziphius.core.errors import ChatError
from ziphius.data.conversation_config import EarlierTurns
from ziphius.data.think_blocks import with_reasoning
from ziphius.text import special
from ziphius.text.chat import ChatFormat, Message, Tool
from ziphius.text.tokenizer import Tokenizer

MASKED = "earlier turns were not learned, as their reasoning is dropped from what comes later"
OPENINGS = "turns before any question were not learned, as no prompt ends there"
DEVELOPERS = "developer messages were read as system messages"
SPELLED = "answers spell special tokens of the vocabulary, which stay text"

Sample = tuple[list[int], list[bool]]
"""Ids, and which of them are learned."""


def turn_samples(
    messages: Sequence[Message],
    tools: Sequence[Tool],
    tokenizer: Tokenizer,
    chat_format: ChatFormat,
    *,
    masked_turns: frozenset[int] = frozenset(),
    thinking: bool | None = None,
    earlier_turns: EarlierTurns = "expand",
    changes: Counter[str],
) -> list[Sample]:
    """Turn a conversation into samples in which every turn that can be learned is learned once.

    Args:
        messages: the conversation.
        tools: what it was written with.
        tokenizer: of the model.
        chat_format: how the model is spoken to.
        masked_turns: places of assistants' messages that are context.
        thinking: whether answers begin inside a think block; None goes by each turn.
        earlier_turns: what happens to those that the sample of the last turn cannot teach.
        changes: counts what was left out.

    Raises:
        ChatError: the format cannot say a turn.
    """
    asked = _first_question(messages)
    spoken = [place for place, message in enumerate(messages) if message.role == "assistant"]
    wanted = [place for place in spoken if place > asked and place not in masked_turns]
    changes[OPENINGS] += sum(place < asked and place not in masked_turns for place in spoken)
    modes = {place: mode(messages, place, chat_format, thinking) for place in wanted}

    def shown(place: int) -> str:
        return chat_format.render(messages[: place + 1], tools=tools, thinking=modes[place])

    texts = {place: shown(place) for place in wanted} if len(wanted) > 1 else {}
    samples: list[Sample] = []
    while wanted:
        last = wanted[-1]
        taught = {
            place for place in wanted if place == last or texts[last].startswith(texts[place])
        }
        encoded = chat_format.encode(
            messages[: last + 1], tokenizer, tools=tools, thinking=modes[last]
        )
        turns = [place in taught for place in spoken if place <= last]
        samples.append((encoded.ids, _kept(encoded.loss_mask, turns)))
        wanted = [place for place in wanted if place not in taught]
        if earlier_turns == "mask":
            changes[MASKED] += len(wanted)
            break
    return samples[::-1]


def mode(
    messages: Sequence[Message], place: int, chat_format: ChatFormat, asked: bool | None
) -> bool | None:
    """Choose `thinking` for the turn at a place: as it is asked for, else as the turn itself does.

    A format that keeps reasoning until the next question has one mode for all turns of a round.
    """
    if asked is not None:
        return asked
    turns = _round(messages, place) if chat_format.keeps_reasoning else [messages[place]]
    reasons = any(turn.reasoning_content is not None for turn in turns)
    return reasons if reasons in chat_format.thinking_modes else None


def fitted(
    messages: Sequence[Message],
    chat_format: ChatFormat,
    tokenizer: Tokenizer,
    *,
    reads_blocks: bool,
    changes: Counter[str],
) -> list[Message]:
    """Say a conversation in the words of a format: think blocks, and the role of a developer.

    Raises:
        ChatError: naming what cannot be said.
    """
    found: list[Message] = []
    for message in messages:
        if message.role == "assistant" and reads_blocks:
            message = with_reasoning(message, chat_format, tokenizer, changes)
        elif message.role == "developer" and "developer" not in chat_format.roles:
            message = replace(message, role="system")
            changes[DEVELOPERS] += 1
        if message.role == "assistant" and special_spelling(tokenizer).search(message.content):
            changes[SPELLED] += 1
        found.append(message)
    return found


def _first_question(messages: Sequence[Message]) -> int:
    """Return the place of the first message that a prompt can end with, or the end."""
    asked = (i for i, message in enumerate(messages) if message.role not in ("system", "assistant"))
    return next(asked, len(messages))


def _round(messages: Sequence[Message], place: int) -> Sequence[Message]:
    """Return the messages between the question before a place and the next one."""
    asked = [i for i, message in enumerate(messages) if message.role in ("user", "developer")]
    start = max((i for i in asked if i < place), default=-1) + 1
    return messages[start : min((i for i in asked if i > place), default=len(messages))]


def _kept(mask: Sequence[bool], turns: Sequence[bool]) -> list[bool]:
    """Keep some runs of a mask, one run for each turn of an assistant."""
    starts = [now and not before for before, now in pairwise([False, *mask])]
    run_of = [count - 1 for count in accumulate(starts)]
    assert sum(starts) == len(turns), "a format writes each turn of an assistant in one piece"
    return [now and turns[run] for now, run in zip(mask, run_of, strict=True)]


def text_sample(text: str, tokenizer: Tokenizer) -> Sample:
    """Encode running text, all of it learned: begin of text where the vocabulary wants it, its end.

    Raises:
        ChatError: the text spells special tokens, so a chat template has been over it.
    """
    spelled = special_spelling(tokenizer).search(text)
    if spelled:
        raise ChatError(
            f"The text spells the special token {spelled[0]!r}, which text never becomes: give the "
            "messages that it was made of."
        )
    if not tokenizer.eos_ids:
        raise ChatError("The vocabulary names no token that ends a text.")
    head = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
    ids = [*head, *tokenizer.encode(text), tokenizer.eos_ids[0]]
    return ids, [False] * len(head) + [True] * (len(ids) - len(head))


@lru_cache(maxsize=2)
def special_spelling(tokenizer: Tokenizer) -> re.Pattern[str]:
    """Return what finds, in a text, the spelling of tokens that frame texts and turns."""
    tokens = [*special.HEAD_TOKENS, *special.TAIL_TOKENS, special.IM_START, special.IM_END]
    names = {str(token) for token in tokens if tokenizer.has_token(token)}
    frame = (tokenizer.bos_id, *tokenizer.eos_ids, tokenizer.pad_id)
    names |= {tokenizer.decode([token_id]) for token_id in frame if token_id is not None}
    return re.compile("|".join(map(re.escape, sorted(names))) or "(?!)")
