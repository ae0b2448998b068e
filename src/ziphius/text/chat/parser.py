"""Read a model's output as it streams: one small machine, driven by the states a format lists.

A state says what its text is and which marks end it. Between two marks text is passed on at once,
but for the shortest end that could still become a mark, so a stream cut anywhere, inside a
character too, gives the same parse as the whole. A mark is known by its letters, so one that a
model spells with ordinary tokens counts too. Malformed output never raises:

1. a call whose arguments are no JSON object, whose name cannot be used, or that another mark or the
   end of the stream cuts off, ends with `complete=False`;
2. text inside a block of calls that belongs to no call, and the name of a call that never got as
   far as its arguments, come back as content;
3. a think block that is never closed is reasoning to the end, and a tool call in it is text.
"""

import codecs
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ziphius.core.errors import ChatError
from ziphius.text import special
from ziphius.text.chat.events import (
    ContentText,
    Event,
    ReasoningText,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    TurnEnd,
)
from ziphius.text.chat.messages import Message, ToolCall


class State:
    """What text means at one place of the output, and the marks that lead away from it.

    No mark may begin or hold another one (it may end with one): the earliest mark in the text wins,
    and the choice must not hang on what comes later.
    """

    def __init__(
        self,
        text: "Emit",
        marks: Mapping[str, "Step"],
        *,
        skip_space: bool = False,
        otherwise: str | None = None,
        cut_off: "Action | None" = None,
    ) -> None:
        """Describe a state.

        Args:
            text: what to do with text that is no mark.
            marks: mark -> what to do when it comes.
            skip_space: drop white space before the first text.
            otherwise: the marks count only at the very beginning; any other text leads here.
            cut_off: what to do if the stream ends here; by default, end a call as not complete.
        """
        for mark in marks:
            inside = [other for other in marks if mark in other[:-1]]
            assert not inside, f"{mark!r} lies inside {inside}"
        self.text = text
        self.marks = marks
        self.skip_space = skip_space
        self.otherwise = otherwise
        self.cut_off = cut_off or abort_call
        self.pattern = re.compile("|".join(map(re.escape, marks)))
        self.longest = max(map(len, marks))

    def ambiguous(self, text: str) -> int:
        """Return how many characters at the end of `text` may be the beginning of a mark."""
        for length in range(min(self.longest - 1, len(text)), 0, -1):
            if any(mark.startswith(text[-length:]) for mark in self.marks):
                return length
        return 0


@dataclass(frozen=True, slots=True)
class Step:
    """What a mark does: an action, then another state, whose first text may begin with `lead`.

    `lead` is dropped as far as the text agrees with it, letter by letter.
    """

    next: str
    action: "Action | None" = None
    lead: str = ""


class StreamParser:
    """Turn pieces of a model's output into events; made by `ChatFormat.parser`."""

    def __init__(self, states: Mapping[str, State], start: Step) -> None:
        self._states = states
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._events: list[Event] = []
        self._buffer = ""
        self._held: list[str] = []
        self._calls = 0
        self._call_name: str | None = None
        self._arguments: list[str] = []
        self._ended = False
        self._go(start)

    def push(self, text: str) -> list[Event]:
        """Take the next piece of output; return what is certain now."""
        if not self._ended:
            self._buffer += text
            self._advance()
        return self._taken_events()

    def push_bytes(self, data: bytes) -> list[Event]:
        """Take the next bytes of output, which may end inside a character."""
        return self.push(self._decoder.decode(data))

    def finish(self) -> list[Event]:
        """End the stream: what was held back is text, a call that is open is incomplete."""
        events = self.push(self._decoder.decode(b"", final=True))
        if not self._ended:
            while self._state.otherwise is not None:
                self._go(Step(self._state.otherwise))
                self._advance()
            if self._buffer:
                self._state.text(self, self._buffer)
            self._state.cut_off(self)
            self._ended = True
        return events + self._taken_events()

    # What the actions of formats use.

    def emit(self, event: Event) -> None:
        """Append one event."""
        self._events.append(event)

    def hold(self, text: str) -> None:
        """Keep text until its meaning is known."""
        self._held.append(text)

    def take_held(self) -> str:
        """Return the text kept since the last time."""
        text = "".join(self._held)
        self._held.clear()
        return text

    def start_call(self, name: str) -> None:
        """Begin a call."""
        self._call_name = name
        self._arguments.clear()
        self.emit(ToolCallStart(self._calls, name))

    def add_arguments(self, text: str) -> None:
        """Pass on a part of the arguments."""
        self._arguments.append(text)
        self.emit(ToolCallArguments(self._calls, text))

    @property
    def call_is_open(self) -> bool:
        """Whether a call has begun and not ended."""
        return self._call_name is not None

    @property
    def has_arguments(self) -> bool:
        """Whether the open call has any argument text yet."""
        return bool(self._arguments)

    def end_call(self, *, complete: bool) -> None:
        """End the call; it is complete only if it also can be run."""
        assert self._call_name is not None, "a call ends that never began"
        complete = complete and _can_run(self._call_name, "".join(self._arguments))
        self.emit(ToolCallEnd(self._calls, complete))
        self._calls += 1
        self._call_name = None

    def end_turn(self) -> None:
        """Stop reading."""
        self.emit(TurnEnd())
        self._ended = True

    # The machine.

    def _taken_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _go(self, step: Step) -> None:
        if step.action is not None:
            step.action(self)
        self._state = self._states[step.next]
        self._lead = step.lead
        self._skips = self._state.skip_space

    def _advance(self) -> None:
        """Consume the buffer but for an end that may become a mark."""
        place = 0
        while not self._ended:
            place = self._skip(place)
            if place == len(self._buffer):
                break
            state = self._state
            if state.otherwise is not None:
                step, width = self._first(state, place)
                if step is None:
                    break
                place += width
                self._go(step)
                continue
            self._skips = False
            found = state.pattern.search(self._buffer, place)
            if found is None:
                place = self._pass_on(state, place)
                break
            if found.start() > place:
                state.text(self, self._buffer[place : found.start()])
            place = found.end()
            self._go(state.marks[found.group()])
        self._buffer = self._buffer[place:]

    def _skip(self, place: int) -> int:
        """Drop the lead of the step that came here, then white space."""
        text = self._buffer
        while self._lead and place < len(text):
            if text[place] != self._lead[0]:
                self._lead = ""
            else:
                self._lead = self._lead[1:]
                place += 1
        while self._skips and place < len(text) and text[place].isspace():
            place += 1
        return place

    def _first(self, state: State, place: int) -> tuple[Step | None, int]:
        """Decide whether a mark stands here: its step, the way on, or None to wait."""
        rest = self._buffer[place : place + state.longest]
        for mark, step in state.marks.items():
            if rest.startswith(mark):
                return step, len(mark)
        if any(mark.startswith(rest) for mark in state.marks):
            return None, 0
        assert state.otherwise is not None
        return Step(state.otherwise), 0

    def _pass_on(self, state: State, place: int) -> int:
        kept = state.ambiguous(self._buffer[max(place, len(self._buffer) - state.longest) :])
        end = len(self._buffer) - kept
        if end > place:
            state.text(self, self._buffer[place:end])
        return end


Emit = Callable[[StreamParser, str], None]
Action = Callable[[StreamParser], None]


def content(parser: StreamParser, text: str) -> None:
    """Pass text on as a part of the answer."""
    parser.emit(ContentText(text))


def reasoning(parser: StreamParser, text: str) -> None:
    """Pass text on as a part of the reasoning."""
    parser.emit(ReasoningText(text))


def hold(parser: StreamParser, text: str) -> None:
    """Keep text, such as a name, until it is whole."""
    parser.hold(text)


def arguments(parser: StreamParser, text: str) -> None:
    """Pass text on as a part of a call's arguments."""
    parser.add_arguments(text)


def drop_held(parser: StreamParser) -> None:
    """Forget text that says nothing, such as the kind of a call."""
    parser.take_held()


def name_call(parser: StreamParser) -> None:
    """Begin a call named by the text held."""
    parser.start_call(parser.take_held())


def close_call(parser: StreamParser) -> None:
    """End a call that its own mark closes."""
    parser.end_call(complete=True)


def abort_call(parser: StreamParser) -> None:
    """End a call that something else cuts off; before its arguments, its text is content."""
    held = parser.take_held()
    if parser.call_is_open:
        parser.end_call(complete=False)
    elif held:
        parser.emit(ContentText(held))


def end_turn(parser: StreamParser) -> None:
    """End the turn, and with it a call that is open."""
    abort_call(parser)
    parser.end_turn()


def ending(mark: str) -> dict[str, Step]:
    """Return the mark that ends a turn with its step."""
    return {mark: Step("content", end_turn)}


def thinking(end: str) -> dict[str, State]:
    """Return the states of a model that may open a think block before its content.

    The line breaks around the block's marks belong to neither side.
    """
    after = Step("content", lead="\n\n")
    close = {special.END_THINK: after, "\n" + special.END_THINK: after}
    think: dict[str, Step] = {special.THINK: Step("reasoning", lead="\n")}
    return {
        "start": State(content, think, otherwise="content"),
        "reasoning": State(reasoning, close | ending(end)),
    }


def message_of(events: list[Event]) -> Message:
    """Join the events of one turn to the message they tell of."""
    texts: dict[type, list[str]] = {ContentText: [], ReasoningText: []}
    names: list[str] = []
    pieces: list[list[str]] = []
    complete: list[bool] = []
    for event in events:
        match event:
            case ContentText(text) | ReasoningText(text):
                texts[type(event)].append(text)
            case ToolCallStart(_, name):
                names.append(name)
                pieces.append([])
            case ToolCallArguments(index, text):
                pieces[index].append(text)
            case ToolCallEnd(_, is_complete):
                complete.append(is_complete)
    calls = zip(names, pieces, complete, strict=True)
    return Message(
        role="assistant",
        content="".join(texts[ContentText]),
        reasoning_content="".join(texts[ReasoningText]),
        tool_calls=tuple(
            ToolCall(name, "".join(parts), complete=is_complete)
            for name, parts, is_complete in calls
        ),
    )


def _can_run(name: str, text: str) -> bool:
    try:
        ToolCall(name, text)
    except ChatError:
        return False
    return True
