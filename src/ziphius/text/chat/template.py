"""`TemplateFormat`: the chat template that a checkpoint brings, run as the truth about it.

The template runs in a process of its own (`template_runner.py`). What it writes is what other
programs give the model; special tokens in it come from the template alone, as in every format
(`hiding.py`). What it would leave out without a word is an error: tools and calls; the reasoning of
a last answer, which ids may lack but nobody learns without.

What is to be learned is what stands in `{% generation %}` blocks; a template without them is run
for the beginning of a conversation up to each answer, and what the whole has behind that, up to the
end token, is the answer. Where a past answer is written otherwise than it is asked for, nothing can
be told, and who asks for it gets an error. A prompt to go on from has nothing to be learned.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

from ziphius.core.errors import ChatError
from ziphius.text import special
from ziphius.text.chat import hiding
from ziphius.text.chat.format import ChatFormat, Encoded, Vocabulary, piece_ids
from ziphius.text.chat.hiding import GENERATION
from ziphius.text.chat.messages import Message, Tool, ToolCall
from ziphius.text.chat.parser import StreamParser
from ziphius.text.chat.template_runner import ADVICE, TemplateRunner
from ziphius.text.chat.template_states import Reading, reading_of

_END = re.compile(r"(\s*)(<[^<>\s]+>|\[[^\[\]\s]+\])")
_PROBE = "zqanswerqz"
_GENERATION_BLOCK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


class Source(NamedTuple):
    """A checkpoint's templates, and the special tokens that they are given by name."""

    default: str
    tool_use: str | None = None
    """Runs instead where there are tools."""
    tokens: tuple[tuple[str, str], ...] = ()
    """Such as ("bos_token", "<s>")."""

    @property
    def name(self) -> str:
        """Name the format after what it is."""
        digest = hashlib.sha256(json.dumps(self).encode("utf-8", "surrogatepass"))
        return f"template-{digest.hexdigest()[:12]}"


class Shape(NamedTuple):
    """How a template wants the calls of an assistant."""

    as_text: bool
    """Arguments are JSON text, not an object."""
    no_content: bool
    """An empty content beside calls is none."""


class Asked(NamedTuple):
    """One conversation to be written."""

    messages: Sequence[Message]
    tools: Sequence[Tool]
    thinking: bool | None
    generation_prompt: bool


class TemplateFormat(ChatFormat):
    """One template; what it can do is found out by running it on small conversations."""

    def __init__(self, source: Source) -> None:
        self.name = source.name
        self._source = source
        self._default = TemplateRunner(source.default)
        self._tool_use = None if source.tool_use is None else TemplateRunner(source.tool_use)

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
        asked = self._asked(messages, tools, thinking, generation_prompt, reply_schema)
        text = self._text(asked)
        self._refuse_lost_reasoning(asked, text)
        return text

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
        asked = self._asked(messages, tools, thinking, generation_prompt, reply_schema)
        text = self._text(asked)
        spelling = hiding.spelling_of(frozenset(tokenizer.special_tokens))
        hidden, names = self._hidden(asked, text, spelling)
        spans: list[tuple[int, int]] = []
        untold: ChatError | None = None
        if not generation_prompt:
            try:
                self._refuse_lost_reasoning(asked, text)
                spans = self._answers(asked, text, hidden)
            except ChatError as error:
                untold = error  # the ids are what they are; who asks for the mask is told
        ids: list[int] = []
        mask: list[bool] = []
        for start, end, is_answer in _covered(spans, len(hidden)):
            new = piece_ids(spelling.pieces(hidden[start:end], names), tokenizer)
            ids += new
            mask += [is_answer] * len(new)
        opened = generation_prompt and _opens_thinking(hidden)
        return Encoded(ids, mask if untold is None else untold, opened)

    def stop_ids(self, tokenizer: Vocabulary) -> tuple[int, ...]:
        """Return the ids that end a generation: the tokenizer's, and the template's own end."""
        end = self._frame.end
        own = [tokenizer.token_id(end)] if tokenizer.has_token(end) else []
        return tuple(dict.fromkeys((*tokenizer.eos_ids, *own)))

    def parser(self, *, thinking: bool = False) -> StreamParser:
        """Return a parser of one answer; see `ChatFormat.parser`."""
        reading = self._reading
        if thinking and not reading.thinks:
            raise ChatError(f"Chat format {self.name} does not think.")
        return StreamParser(reading.states, reading.first_step(thinking))

    # What the template can do.

    @cached_property
    def thinking_modes(self) -> tuple[bool, ...]:  # type: ignore[override]
        """What it does by itself first; both only where it listens to being asked."""
        turns = [Message("user", "u")]
        default, on, off = (
            self._run(Asked(turns, (), thinking, True)) for thinking in (None, True, False)
        )
        if on == off:
            return (_opens_thinking(default),)
        return (True, False) if default == on else (False, True)

    @cached_property
    def opens_own_thinking(self) -> bool:  # type: ignore[override]
        """Whether answers have a think block, and no prompt opens it."""
        return self._reading.thinks and True not in self.thinking_modes

    @cached_property
    def _frame(self) -> "_Frame":
        """Find what stands around an answer."""
        turns = [Message("user", "u")]
        asked = self._run(Asked(turns, (), None, True))
        whole = self._run(Asked([*turns, Message("assistant", _PROBE)], (), None, False))
        before, _, after = whole.partition(_PROBE)
        lead = before[len(asked) :] if before.startswith(asked) else ""
        found = _END.match(after)
        eos = dict(self._source.tokens).get("eos_token")
        end = found[2] if found else eos or special.EOS
        return _Frame("" if lead.strip() else lead, found[1] if found else "", end)

    @cached_property
    def _reading(self) -> Reading:
        lead, gap, end = self._frame
        text = self._source.default + (self._source.tool_use or "")
        return reading_of(text, end, gap, lead)

    @cached_property
    def _shape(self) -> Shape:
        """Find how it wants calls: the first way in which all of one comes out."""
        call = ToolCall("zqname", '{"zqkey": "zqvalue"}', id="zqzqzqzq9")
        turns = [
            Message("user", "u"),
            Message("assistant", "", tool_calls=(call,)),
            Message("tool", "zqresult", tool_call_id=call.id),
        ]
        for shape in (Shape(t, n) for t in (True, False) for n in (True, False)):
            try:
                text = self._run(Asked(turns, (), None, False), shape)
            except ChatError:
                continue
            plain = call.arguments in text if shape.as_text else True
            if plain and all(word in text for word in ("zqname", "zqkey", "zqvalue", "zqresult")):
                return shape
        raise ChatError(f"The model's chat template does not show tool calls. {ADVICE}")

    # How a conversation is written.

    def _asked(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        thinking: bool | None,
        generation_prompt: bool,
        reply_schema: Mapping[str, Any] | None,
    ) -> Asked:
        if reply_schema is not None:
            raise ChatError("A chat template cannot demand JSON; give no reply_schema.")
        if not messages:
            raise ChatError("A conversation needs at least one message.")
        if generation_prompt and messages[-1].role == "assistant":
            raise ChatError("The assistant spoke last: a generation prompt needs a user's message.")
        calls = [call for message in messages for call in message.tool_calls]
        broken = [call.name for call in calls if not call.complete]
        if broken:
            raise ChatError(f"The tool call of {broken[0]!r} is not complete; mend or drop it.")
        if thinking is not None and thinking not in self.thinking_modes:
            does = "does not think when asked to" if thinking else "always thinks"
            raise ChatError(f"The model's chat template {does}: leave `thinking` alone.")
        if thinking is None and messages[-1].reasoning_content and True in self.thinking_modes[1:]:
            thinking = True
        return Asked(messages, tools, thinking, generation_prompt)

    def _text(self, asked: Asked) -> str:
        """Write a conversation, and refuse what would be left out."""
        text = self._run(asked)
        for place, message in enumerate(asked.messages):
            if message.tool_calls and self._says_nothing_of(asked, place, text, tool_calls=()):
                raise ChatError(f"The model's chat template leaves out a tool call. {ADVICE}")
        if asked.tools and text == self._run(asked._replace(tools=())):
            raise ChatError(f"The model's chat template leaves out the tools. {ADVICE}")
        return text

    def _refuse_lost_reasoning(self, asked: Asked, text: str) -> None:
        """Refuse to write or teach a last answer whose reasoning the template drops."""
        last = len(asked.messages) - 1
        reasons = asked.messages[last].reasoning_content is not None
        if reasons and self._says_nothing_of(asked, last, text, reasoning_content=None):
            raise ChatError(
                "The model's chat template leaves out the reasoning of the last message. " + ADVICE
            )

    def _says_nothing_of(self, asked: Asked, place: int, text: str, **without: Any) -> bool:
        """Tell whether a message could as well be without a part of it."""
        messages = list(asked.messages)
        messages[place] = replace(messages[place], **without)
        try:
            return self._run(asked._replace(messages=messages)) == text
        except ChatError:
            return False  # without that part the conversation makes no sense to the template

    def _hidden(
        self, asked: Asked, text: str, spelling: hiding.Spelling
    ) -> tuple[str, frozenset[str]]:
        """Write a conversation with stand-ins where its own texts could spell a special token.

        Returns:
            The text, and the names that have stand-ins for all letters.
        """
        letters = set(spelling.stand_ins)
        names = frozenset(hiding.names_of(asked.messages, asked.tools))
        risky = frozenset(name for name in names if name and name in spelling.all_of_them)
        if not risky and not any(
            letters & set(words) for words in hiding.texts_of(asked.messages, asked.tools)
        ):
            return text, frozenset()
        hidden = self._run(asked, stand_ins=spelling.stand_ins, names=risky)
        if spelling.shown(hidden, risky) != text:
            found = spelling.pattern.search("\n".join(hiding.texts_of(asked.messages, asked.tools)))
            what = f"spells {found.group()!r}" if found else "comes close to a special token"
            raise ChatError(
                f"A text of the conversation {what}, and the model's chat template looks at it in "
                f"a way that cannot be followed. Change the text, or: {ADVICE}"
            )
        return hidden, risky

    def _run(
        self,
        asked: Asked,
        shape: Shape | None = None,
        *,
        stand_ins: Mapping[str, str] | None = None,
        names: frozenset[str] = frozenset(),
        track: tuple[str, str] = ("", ""),
    ) -> str:
        if shape is None:
            has_calls = any(message.tool_calls for message in asked.messages)
            shape = self._shape if has_calls else Shape(as_text=True, no_content=True)
        stand_ins = stand_ins or {}

        def own(value: Any) -> Any:
            return hiding.hide(value, stand_ins, names)

        tools = [{"type": "function", "function": own(tool.schema())} for tool in asked.tools]
        variables: dict[str, Any] = {
            "messages": [_as_dict(message, shape, own) for message in asked.messages],
            "tools": tools or None,
            "documents": None,
            "add_generation_prompt": asked.generation_prompt,
            **dict(self._source.tokens),
        }
        if asked.thinking is not None:
            variables |= {"thinking": asked.thinking, "enable_thinking": asked.thinking}
        runner = self._tool_use if tools and self._tool_use is not None else self._default
        return runner.run(variables, hide=stand_ins, track=track)

    # What is to be learned.

    def _answers(self, asked: Asked, text: str, hidden: str) -> list[tuple[int, int]]:
        """Find what assistants wrote, as places in the text."""
        has_tools = bool(asked.tools) and self._source.tool_use is not None
        source = self._source.tool_use if has_tools else self._source.default
        if _GENERATION_BLOCK.search(source or ""):
            tracked = self._run(asked, track=GENERATION)
            if tracked.translate({ord(mark): None for mark in GENERATION}) == text:
                return list(_tracked(tracked))
            raise ChatError(f"What is to be learned cannot be told from the template. {ADVICE}")
        places = [i for i, message in enumerate(asked.messages) if message.role == "assistant"]
        starts = [self._start(asked, i, text) for i in places]
        limits = [*starts[1:], len(text)][: len(places)]
        return [
            (start, self._end_of(asked, i, text, hidden, start, limit))
            for i, start, limit in zip(places, starts, limits, strict=True)
        ]

    def _start(self, asked: Asked, place: int, text: str) -> int:
        """Find where an answer begins: behind what the model is asked it with."""
        for thinking in dict.fromkeys((asked.thinking, None, *self.thinking_modes)):
            before = Asked(asked.messages[:place], asked.tools, thinking, True)
            try:
                prompt = self._run(before)
            except ChatError:
                continue  # some templates refuse a conversation that does not begin with a user
            if text.startswith(prompt):
                return len(prompt)
        raise ChatError(
            f"The model's chat template writes answer {place + 1} of the conversation otherwise "
            f"than it asks for it, so what is to be learned cannot be told. {ADVICE}"
        )

    def _end_of(
        self, asked: Asked, place: int, text: str, hidden: str, start: int, limit: int
    ) -> int:
        """Find where an answer ends: behind its end token, or where the next message begins."""
        end = hidden.find(self._frame.end, start, limit)
        if end >= 0:
            return end + len(self._frame.end)
        so_far = self._run(Asked(asked.messages[: place + 1], asked.tools, asked.thinking, False))
        if len(so_far) >= start and text.startswith(so_far):
            return len(so_far)
        raise ChatError(
            f"The model's chat template does not say where answer {place + 1} of the conversation "
            f"ends, so what is to be learned cannot be told. {ADVICE}"
        )


class _Frame(NamedTuple):
    """What stands around an answer."""

    lead: str
    gap: str
    end: str


_known: dict[str, TemplateFormat] = {}


def template_format(source: Source) -> TemplateFormat:
    """Return the format of a template, the same one for the same template."""
    return _known.setdefault(source.name, TemplateFormat(source))


def known_template(name: str) -> TemplateFormat | None:
    """Return a format by its name, if its template has been read."""
    return _known.get(name)


def _as_dict(message: Message, shape: Shape, own: Any) -> dict[str, Any]:
    """Write a message as templates expect it, its texts as `own` spells them."""
    entry: dict[str, Any] = {"role": message.role, "content": own(message.content)}
    if message.reasoning_content is not None:
        # transformers gives both names.
        entry |= dict.fromkeys(("reasoning_content", "thinking"), own(message.reasoning_content))
    if message.tool_calls:
        if shape.no_content and not message.content:
            entry["content"] = None
        entry["tool_calls"] = [_call(call, shape, own) for call in message.tool_calls]
    if message.tool_call_id is not None:
        entry["tool_call_id"] = own(message.tool_call_id)
    return entry


def _call(call: ToolCall, shape: Shape, own: Any) -> dict[str, Any]:
    arguments = own(call.arguments) if shape.as_text else own(call.values())
    function = {"name": own(call.name), "arguments": arguments}
    known = {} if call.id is None else {"id": own(call.id)}
    return {"type": "function", **known, "function": function}


def _opens_thinking(text: str) -> bool:
    return text.rstrip().endswith(special.THINK)


def _tracked(text: str) -> Iterator[tuple[int, int]]:
    """Yield the blocks as places in the text without their marks."""
    begin, end = GENERATION
    removed = 0
    start = text.find(begin)
    while start >= 0:
        stop = text.index(end, start)
        yield start - removed, stop - removed - 1
        removed += 2
        start = text.find(begin, stop)


def _covered(spans: Sequence[tuple[int, int]], length: int) -> Iterator[tuple[int, int, bool]]:
    """Yield answers and what lies between them, in order."""
    place = 0
    for start, end in spans:
        yield place, start, False
        yield start, end, True
        place = end
    yield place, length, False
