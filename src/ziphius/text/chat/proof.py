"""Which of our formats a checkpoint's template is: proven by what both write, never guessed.

Each probe is written by the template and by the format. A format is taken if they agree on all of
them, letter by letter, or both refuse: the template is refused where it raises, or would drop what
it was given (tools, calls, the reasoning of the last answer, the wish to think or not).
"""

from functools import lru_cache
from typing import NamedTuple

from ziphius.core.errors import ChatError
from ziphius.text.chat import CHAT_FORMATS
from ziphius.text.chat.format import ChatFormat
from ziphius.text.chat.messages import Message, Tool, ToolCall
from ziphius.text.chat.packaged import packaged_format
from ziphius.text.chat.template import Source, template_format
from ziphius.text.chat.template_runner import templates_may_run


class Probe(NamedTuple):
    """One conversation, and how it is asked for."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    thinking: bool | None = None
    generation_prompt: bool = False


def _u(text: str) -> Message:
    return Message("user", text)


def _a(text: str, reasoning: str | None = None, *calls: ToolCall) -> Message:
    return Message("assistant", text, reasoning, calls)


def _s(text: str) -> Message:
    return Message("system", text)


def _r(text: str) -> Message:
    return Message("tool", text)


_CALL = ToolCall("look_up", '{"word": "qzsquid", "most": 2}')
_OTHER = ToolCall("count", '{"of": {"qzdeep": [1, "\u00e9"]}}')
_TOOL = Tool(
    "look_up",
    "Find a word & <say> 'it'",
    {"type": "object", "properties": {"word": {"type": "string", "description": "\u00e9"}}},
)
_TOOLS = (_TOOL, Tool("count", "Count"))
_PLAIN: tuple[tuple[Message, ...], ...] = (
    (_u("qz one"),),
    (_s("qz sys"), _u("qz one")),
    (_s(""), _u("qz one")),
    (_u(""),),
    (_u("  qz\n\n one \n"),),
    (_s("  qz sys \n"), _u("qz one"), _a("qz two"), _s("qz later"), _u("qz three")),
    (_s("qz a"), _s("qz b"), _u("qz one")),
    (_u("qz one"), _a("qz two"), _u("qz three"), _a("qz four"), _u("qz five")),
    (_u("qz one"), _a(""), _u("qz three")),
    (_u("qz one"), _a("\n\n qz two \n"), _u("qz three")),
    (_u("qz one"), _a("qz two", "qz why"), _u("qz three"), _a("qz four", "qz so"), _u("qz five")),
    (_u("qz one"), _a("<think>\nqz why\n</think>\n\nqz two"), _u("qz three")),
    (_u("qz one"), _a("qz two", "qz why"), _u("<tool_response>qz</tool_response>")),
    (_u("qz one </think> two"), _a("qz two"), _u("<tool_response>qz</tool_response>")),
)
_CALLS: tuple[tuple[Message, ...], ...] = (
    (_u("qz one"), _a("", None, _CALL), _r("qz found")),
    (_u("qz one"), _a("qz text", None, _CALL, _OTHER), _r("qz found"), _r("")),
    (
        *(_s("qz sys"), _u("qz one"), _a("", "qz why", _CALL), _r("qz r1"), _a("", None, _OTHER)),
        *(_r("qz r2"), _a("qz done", "qz at last"), _u("qz next")),
    ),
    (_u("qz one"), _a("", None, _CALL), _r("qz r1"), _a("qz more", "qz hm", _OTHER), _r("qz r2")),
)
PROBES: tuple[Probe, ...] = (
    *(Probe(turns, generation_prompt=True) for turns in _PLAIN),
    *(Probe((*turns, _a("qz end"))) for turns in _PLAIN),
    *(Probe((*turns, _a("", "qz last"))) for turns in _PLAIN[:2]),
    Probe((*_PLAIN[1], _a("\nqz end\n", "\nqz last\n"))),
    *(Probe(_PLAIN[at], (), way, True) for at in (0, 7, 10) for way in (True, False)),
    *(Probe(turns, _TOOLS, None, True) for turns in (*_PLAIN[:3], *_CALLS)),
    *(Probe(turns, (), None, True) for turns in _CALLS),
    *(Probe((*turns, _a("qz end"))) for turns in (_CALLS[0], _CALLS[1], _CALLS[3])),
    *(Probe(turns, _TOOLS, way, True) for turns in _CALLS[2:] for way in (True, False)),
    Probe((_u("qz one"), _a("", None, _CALL, _OTHER))),
)


def format_of_template(source: Source) -> str | None:
    """Name the format that writes what a template writes: one of ours, else the template itself.

    Returns:
        None if the user lets no template run, and it is none of those that we save ourselves. A
        template that cannot run at all is its own format: its error comes with its first use.
    """
    ours = None if source.tool_use is not None else packaged_format(source.default)
    if ours is not None:
        return ours
    return _proven(source) if templates_may_run() else None


@lru_cache(maxsize=64)
def _proven(source: Source) -> str:
    theirs = template_format(source)
    texts = [_written(theirs, probe) for probe in PROBES]
    if not any(isinstance(text, str) for text in texts):
        return theirs.name
    for name, written in CHAT_FORMATS.items():
        if all(_agree(written, *pair) for pair in zip(PROBES, texts, strict=True)):
            return name
    return theirs.name


def _agree(ours: ChatFormat, probe: Probe, text: str | ChatError) -> bool:
    """Hold one probe together: the same text, or refused by both."""
    written = _written(ours, probe)
    return written == text if isinstance(text, str) else isinstance(written, ChatError)


def _written(chat_format: ChatFormat, probe: Probe) -> str | ChatError:
    try:
        return chat_format.render(
            probe.messages,
            tools=probe.tools,
            thinking=probe.thinking,
            generation_prompt=probe.generation_prompt,
        )
    except ChatError as error:
        return error
