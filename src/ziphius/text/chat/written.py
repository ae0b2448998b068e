"""`WrittenFormat`: what the formats written by hand share, so that one is a small file of its own.

A conversation becomes segments of pieces. Rules that hold for each of them:

1. system messages are joined by a blank line and stand at the front, as V3's template has it, save
   where `keeps_systems` says that each stands where it was said;
2. the reasoning of past turns is dropped (V3.2: of turns before the last user message);
3. results of one round stand in the order of its calls;
4. we render the clean form that the models write themselves, also where a published Jinja template
   has a bug: each round of calls is opened and closed once, and so is each round of results;
5. a setting that would have no effect, such as tools in a format without them, is an error.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ziphius.core.errors import ChatError
from ziphius.text import special
from ziphius.text.chat.format import (
    ChatFormat,
    Encoded,
    Pieces,
    Segment,
    Vocabulary,
    fim_pieces,
    joined,
    piece_ids,
)
from ziphius.text.chat.messages import Message, Tool, ordered_turns
from ziphius.text.chat.parser import State, Step, StreamParser
from ziphius.text.special import SpecialToken


@dataclass(frozen=True, slots=True)
class Turn:
    """What an assistant's turn depends on besides its message."""

    thinks: bool
    """It shows its reasoning."""
    thinking: bool
    """The conversation was asked to think."""
    after_results: bool
    """It follows tool results instead of a user's message."""


class WrittenFormat(ChatFormat):
    """One published way to write a conversation for a model, and to read its answer."""

    end: ClassVar[SpecialToken] = special.EOS
    """What a model writes to end its turn."""
    ends_as_vocabulary: ClassVar[bool] = False
    """An answer ends with the vocabulary's own end of text, whatever that is."""
    closing: ClassVar[str] = ""
    """Text between an assistant's end token and the next turn."""
    keeps_systems: ClassVar[bool] = False
    """A later system message stands where it was said, not in front."""
    has_tools: ClassVar[bool] = False
    thinks_with_tools: ClassVar[bool] = True
    has_fim: ClassVar[bool] = False
    spelled: ClassVar[frozenset[SpecialToken]] = frozenset()
    """Special tokens that are written as text where a vocabulary has none."""

    # What a format says.

    @abstractmethod
    def start(self, system: str | None, tools: Sequence[Tool], reply: str) -> Pieces:
        """Write what stands before the first turn.

        Args:
            system: the system text; None without a system message.
            tools: the tools, unless they belong into a user's turn.
            reply: what `reply_schema` wrote, or nothing.
        """

    @abstractmethod
    def user(self, message: Message, tools: Sequence[Tool]) -> Pieces:
        """Write a user's turn; `tools` only where they belong into it and not to the start."""

    @abstractmethod
    def opening(self, turn: Turn) -> Pieces:
        """Write what stands before an assistant's turn and ends the prompt."""

    @abstractmethod
    def completion(self, message: Message, turn: Turn) -> Pieces:
        """Write what an assistant writes, without the end token."""

    @abstractmethod
    def states(self) -> Mapping[str, State]:
        """List the states of the parser; each one must lead to an end on `self.end`."""

    def results(self, results: Sequence[Message]) -> Pieces:
        """Write the results of one round of calls."""
        raise AssertionError(f"{self.name} renders no tool results: {results}")

    def reply_schema(self, schema: Mapping[str, Any]) -> str:
        """Write the demand for an answer in JSON, to stand at the end of the system text."""
        raise ChatError(f"Chat format {self.name} cannot demand JSON; give no reply_schema.")

    def first_step(self, thinking: bool) -> Step:
        """Say where the parser starts."""
        return Step("reasoning" if thinking else "start" if self.opens_own_thinking else "content")

    # What callers use.

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        thinking: bool | None = None,
        generation_prompt: bool = False,
        reply_schema: Mapping[str, Any] | None = None,
    ) -> str:
        """Write a conversation as text; see `ChatFormat.render`."""
        segments = self._segments(messages, tools, thinking, generation_prompt, reply_schema)
        return "".join(piece for segment in segments for piece in segment.pieces)

    def encode(
        self,
        messages: Sequence[Message],
        tokenizer: Vocabulary,
        *,
        tools: Sequence[Tool] = (),
        thinking: bool | None = None,
        generation_prompt: bool = False,
        reply_schema: Mapping[str, Any] | None = None,
    ) -> Encoded:
        """Write a conversation as ids; see `ChatFormat.encode`."""
        segments = self._segments(messages, tools, thinking, generation_prompt, reply_schema)
        is_own = self.ends_as_vocabulary and any(segment.completion for segment in segments)
        own_end = {str(self.end): self._token_id(self.end, tokenizer)} if is_own else None
        ids = self._first_ids(tokenizer)
        mask = [False] * len(ids)
        for segment in joined(segments):
            new = piece_ids(segment.pieces, tokenizer, self.spelled, own_end)
            ids += new
            mask += [segment.completion] * len(new)
        last = segments[-1].pieces
        opened = generation_prompt and last.count(special.THINK) > last.count(special.END_THINK)
        return Encoded(ids, mask, opened)

    def stop_ids(self, tokenizer: Vocabulary) -> tuple[int, ...]:
        """Return the ids that end a generation: the tokenizer's, and this format's own end."""
        return tuple(dict.fromkeys((*tokenizer.eos_ids, self._token_id(self.end, tokenizer))))

    def parser(self, *, thinking: bool = False) -> StreamParser:
        """Return a parser of one answer.

        Args:
            thinking: the prompt ended inside a think block (`Encoded.thinking`).
        """
        if thinking and True not in self.thinking_modes:
            raise ChatError(f"Chat format {self.name} does not think.")
        return StreamParser(self.states(), self.first_step(thinking))

    # How it is put together.

    def _segments(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        thinking: bool | None,
        generation_prompt: bool,
        reply_schema: Mapping[str, Any] | None,
    ) -> list[Segment]:
        turns = self._checked_turns(messages, tools, generation_prompt)
        thinking = self._checked_thinking(turns, tools, thinking)
        systems = [message.content for message in messages if message.role == "system"]
        if self.keeps_systems:
            systems = systems[:1] if messages[0].role == "system" else []
        system = "\n\n".join(systems) if systems else None
        in_turn = not systems and turns[0].role == "developer"
        reply = "" if reply_schema is None else self.reply_schema(reply_schema)
        segments = [Segment(self.start(system, () if in_turn else tools, reply))]
        for i, message in enumerate(turns):
            if message.role == "assistant":
                segments += self._assistant(turns, i, thinking)
            elif message.role == "tool":
                if i == 0 or turns[i - 1].role != "tool":
                    segments.append(Segment(self.results(list(_round(turns, i)))))
            else:
                segments.append(Segment(self.user(message, tools if in_turn and i == 0 else ())))
        if generation_prompt:
            after_results = turns[-1].role == "tool"
            segments.append(Segment(self.opening(Turn(thinking, thinking, after_results))))
        return segments

    def _assistant(self, turns: Sequence[Message], i: int, thinking: bool) -> list[Segment]:
        message = turns[i]
        if self.keeps_reasoning:
            live = i > _last_user(turns)
            thinks = thinking and live
        else:
            live = i == len(turns) - 1
            thinks = live and message.reasoning_content is not None
        turn = Turn(thinks, thinking and live, i > 0 and turns[i - 1].role == "tool")
        return [
            Segment(self.opening(turn)),
            Segment([*self.completion(message, turn), self.end], completion=True),
            Segment([self.closing]),
        ]

    def _checked_turns(
        self, messages: Sequence[Message], tools: Sequence[Tool], generation_prompt: bool
    ) -> list[Message]:
        """Refuse what the format cannot say."""
        for message in messages:
            if message.role not in self.roles:
                raise ChatError(
                    f"Chat format {self.name} has no role {message.role!r}; it has "
                    f"{', '.join(self.roles)}."
                )
            if message.tool_calls and not self.has_tools:
                raise ChatError(f"Chat format {self.name} has no tool calls.")
            broken = [call.name for call in message.tool_calls if not call.complete]
            if broken:
                raise ChatError(f"The tool call of {broken[0]!r} is not complete; mend or drop it.")
        if tools and not self.has_tools:
            raise ChatError(f"Chat format {self.name} has no tools; give none, or another format.")
        turns = self._ordered(messages)
        if not any(turn.role != "system" for turn in turns):
            raise ChatError("A conversation needs at least one message that is no system message.")
        if generation_prompt and turns[-1].role == "assistant":
            raise ChatError("The assistant spoke last: a generation prompt needs a user's message.")
        return turns

    def _ordered(self, messages: Sequence[Message]) -> list[Message]:
        """Put results into the order of calls, and leave out the system messages in front."""
        if not self.keeps_systems:
            return ordered_turns(messages)
        kept = messages[1:] if messages and messages[0].role == "system" else messages
        return ordered_turns(kept, with_systems=True)

    def _checked_thinking(
        self, turns: Sequence[Message], tools: Sequence[Tool], asked: bool | None
    ) -> bool:
        """Decide whether the conversation thinks, and refuse what that would make void."""
        last = turns[-1]
        reasons = last.reasoning_content is not None
        thinking = asked
        if asked is None:
            thinking = True if reasons and True in self.thinking_modes else self.thinking_modes[0]
        elif asked not in self.thinking_modes:
            does = "does not think" if asked else "always thinks"
            raise ChatError(f"Chat format {self.name} {does}: leave `thinking` alone.")
        if reasons and not thinking and not self.opens_own_thinking:
            raise ChatError(
                f"The reasoning of the last message would be lost: chat format {self.name} "
                f"{'was asked not to think' if asked is False else 'does not think'}."
            )
        if asked and last.role == "assistant" and not reasons and not self.keeps_reasoning:
            raise ChatError("thinking is asked for, but the last message has no reasoning_content.")
        live = turns[_last_user(turns) + 1 :]
        uses_tools = bool(tools) or any(turn.tool_calls or turn.role == "tool" for turn in live)
        if thinking and uses_tools and not self.thinks_with_tools:
            raise ChatError(f"Chat format {self.name} uses tools only without thinking.")
        return bool(thinking)

    def _first_ids(self, tokenizer: Vocabulary) -> list[int]:
        """Begin with what no piece says; formats that bring their own first token need nothing."""
        return []

    def _token_id(self, token: SpecialToken, tokenizer: Vocabulary) -> int:
        return tokenizer.token_id(token)

    def _fim_pieces(self, prefix: str, suffix: str) -> Pieces:
        return fim_pieces(prefix, suffix) if self.has_fim else super()._fim_pieces(prefix, suffix)


def _round(turns: Sequence[Message], start: int) -> Iterator[Message]:
    """Yield the tool results that stand together from `start` on."""
    for message in turns[start:]:
        if message.role != "tool":
            return
        yield message


def _last_user(turns: Sequence[Message]) -> int:
    places = [i for i, message in enumerate(turns) if message.role in ("user", "developer")]
    return places[-1] if places else -1
