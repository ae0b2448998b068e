"""What a stream parser tells about a model's output, in the order in which it happens.

A server maps each event to one delta of the OpenAI API: reasoning, content, or a part of a call.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasoningText:
    """The next part of what the model thinks."""

    text: str


@dataclass(frozen=True, slots=True)
class ContentText:
    """The next part of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A call begins; calls of a turn count from 0 and never overlap."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """The next part of a call's arguments, which join to JSON text."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """A call is over; `complete` if its name can be used and its arguments are a JSON object."""

    index: int
    complete: bool


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """The model wrote its end token; what follows belongs to nobody and is dropped."""


Event = ReasoningText | ContentText | ToolCallStart | ToolCallArguments | ToolCallEnd | TurnEnd
