"""Whose letters are these? Telling the special tokens of a template from the texts of a
conversation.

A template writes one text, in which `<|im_end|>` may be a special token or what somebody typed. So
a conversation is written twice: as it is, and with stand-ins for the letters that special tokens
begin and end with. What still spells a special token in the second text was written by the
template, every letter at its ends; and if the two differ in more than the stand-ins, the template
looked at those letters in a way that cannot be followed, which is an error and no guess.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from ziphius.text import special
from ziphius.text.chat.format import Pieces
from ziphius.text.chat.messages import Message, Tool
from ziphius.text.special import SpecialToken

_PLANE = 0x100000  # the last plane of Unicode, for private use
GENERATION = "\U0010fffc", "\U0010fffd"
"""What stands around a `{% generation %}` block; no stand-in for a letter."""


class Spelling(NamedTuple):
    """How the special tokens of a vocabulary are spelled."""

    pattern: re.Pattern[str]
    stand_ins: dict[str, str]
    """Letters at their ends -> stand-ins."""
    all_of_them: str
    """Joined by line breaks, to look for a name inside one of them."""

    def pieces(self, hidden: str, names: Iterable[str] = ()) -> Pieces:
        """Cut a text with stand-ins, those of `names` too, into special tokens and text as it is.

        Those that stand between turns and are not in the vocabulary count all the same: they will
        be missed when they become ids.
        """
        pieces: Pieces = []
        place = 0
        for found in self.pattern.finditer(hidden):
            pieces += special.split_special(hidden[place : found.start()], special.TURN_TOKENS)
            pieces.append(SpecialToken(found.group()))
            place = found.end()
        pieces += special.split_special(hidden[place:], special.TURN_TOKENS)
        back = self._back(names)
        return [p if isinstance(p, SpecialToken) else p.translate(back) for p in pieces]

    def shown(self, hidden: str, names: Iterable[str] = ()) -> str:
        """Put the letters back."""
        return hidden.translate(self._back(names))

    def _back(self, names: Iterable[str]) -> dict[int, str]:
        letters = {*self.stand_ins, *(letter for name in names for letter in name)}
        return {_PLANE + ord(letter): letter for letter in letters}


@lru_cache(maxsize=8)
def spelling_of(tokens: frozenset[str]) -> Spelling:
    """Prepare what special tokens are known by.

    Those that begin and end with letters, digits or white space are words like others, and none of
    a template's.
    """
    told = sorted((t for t in tokens if _is_told(t[0]) or _is_told(t[-1])), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, told)) if told else "(?!)")
    ends = {letter for token in (*told, "<>") for letter in (token[0], token[-1])}
    stand_ins = {letter: chr(_PLANE + ord(letter)) for letter in ends if _is_told(letter)}
    return Spelling(pattern, stand_ins, "\n".join(told))


def _is_told(letter: str) -> bool:
    return not letter.isalnum() and not letter.isspace() and ord(letter) < 0xFFFC


def texts_of(messages: Sequence[Message], tools: Sequence[Tool]) -> Iterable[str]:
    """Yield all that somebody wrote, names included."""
    for message in messages:
        yield from (message.content, message.reasoning_content or "", message.tool_call_id or "")
        for call in message.tool_calls:
            yield from (call.arguments, call.id or "")
    for tool in tools:
        yield from _strings(tool.schema())
    yield from names_of(messages, tools)


def names_of(messages: Sequence[Message], tools: Sequence[Tool]) -> Iterable[str]:
    """Yield what a template may put between brackets of its own."""
    for message in messages:
        for call in message.tool_calls:
            yield call.name
            yield from (key for key in call.values() if all(ord(c) < 0xFFFC for c in key))
    for tool in tools:
        yield tool.name


def hide(value: Any, stand_ins: Mapping[str, str], names: frozenset[str]) -> Any:
    """Replace letters in all texts of a value, keys included; names lose every letter."""
    if isinstance(value, str):
        if value in names:
            return "".join(chr(_PLANE + ord(letter)) for letter in value)
        return value.translate({ord(letter): other for letter, other in stand_ins.items()})
    if isinstance(value, Mapping):
        return {hide(k, stand_ins, names): hide(v, stand_ins, names) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [hide(entry, stand_ins, names) for entry in value]
    return value


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield str(key)
            yield from _strings(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _strings(entry)
