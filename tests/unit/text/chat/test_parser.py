"""One stream, cut anywhere, is one parse; what can be shown is shown at once."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from tests.unit.text.strategies import outputs
from ziphius.core.errors import ChatError
from ziphius.text import special
from ziphius.text.chat import (
    CHAT_FORMATS,
    ChatFormat,
    ContentText,
    Event,
    Message,
    ReasoningText,
    StreamParser,
    ToolCall,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
    TurnEnd,
)
from ziphius.text.chat.parser import State, Step, content

R1, V3, V31, V32 = (
    CHAT_FORMATS[name] for name in ("deepseek-r1", "deepseek-v3", "deepseek-v3.1", "deepseek-v3.2")
)
WAYS = [
    (name, way) for name, f in CHAT_FORMATS.items() for way in sorted({*f.thinking_modes, False})
]
DSML = special.DSML


def joined(events: list[Event]) -> list[Event]:
    """Join neighbouring texts of one kind, so that only the whole counts."""
    result: list[Event] = []
    for event in events:
        match (result[-1] if result else None), event:
            case (ContentText(a), ContentText(b)):
                result[-1] = ContentText(a + b)
            case (ReasoningText(a), ReasoningText(b)):
                result[-1] = ReasoningText(a + b)
            case (ToolCallArguments(i, a), ToolCallArguments(_, b)):
                result[-1] = ToolCallArguments(i, a + b)
            case _:
                result.append(event)
    return result


def events_of(parser: StreamParser, pieces: list[str]) -> list[Event]:
    events = [event for piece in pieces for event in parser.push(piece)]
    return events + parser.finish()


@pytest.mark.parametrize(("name", "thinking"), WAYS)
@examples(40)
@given(text=outputs, data=st.data())
def test_a_stream_cut_anywhere_gives_the_same_parse(
    name: str, thinking: bool, text: str, data: st.DataObject
) -> None:
    chat_format = CHAT_FORMATS[name]
    whole = joined(events_of(chat_format.parser(thinking=thinking), [text]))
    assert joined(events_of(chat_format.parser(thinking=thinking), list(text))) == whole
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert joined(events_of(chat_format.parser(thinking=thinking), pieces)) == whole
    parser = chat_format.parser(thinking=thinking)
    by_bytes = [e for byte in text.encode() for e in parser.push_bytes(bytes([byte]))]
    assert joined(by_bytes + parser.finish()) == whole
    check_grammar(whole)


def check_grammar(events: list[Event]) -> None:
    """Calls count from 0, never overlap and always end; nothing follows the end of the turn."""
    open_call, count = None, 0
    for place, event in enumerate(events):
        match event:
            case ToolCallStart(index, _):
                assert (open_call, index) == (None, count)
                open_call, count = index, count + 1
            case ToolCallArguments(index, _):
                assert index == open_call
            case ToolCallEnd(index, _):
                assert index == open_call
                open_call = None
            case TurnEnd():
                assert place == len(events) - 1
            case ContentText(text) | ReasoningText(text):
                assert text
                assert open_call is None
    assert open_call is None


def test_only_the_shortest_ambiguous_end_is_held_back() -> None:
    parser = V3.parser()
    assert parser.push("a<b") == [ContentText("a<b")]
    assert parser.push("c<") == [ContentText("c")]
    assert parser.push("\uff5c") == []
    assert parser.push("tool") == []
    assert parser.push("x<\uff5cto") == [ContentText("<\uff5ctoolx")]
    assert parser.finish() == [ContentText("<\uff5cto")]


def test_a_shorter_beginning_inside_a_longer_one_is_kept() -> None:
    parser = R1.parser(thinking=True)
    assert parser.push("r\n<") == [ReasoningText("r")]
    assert parser.push("\n</think") == [ReasoningText("\n<")]
    assert parser.push(">\n") == []
    assert parser.push("\n\na") == [ContentText("\na")]


def test_half_a_character_is_held_back() -> None:
    parser, whale = V3.parser(), "\U0001f40b".encode()
    assert parser.push_bytes(whale[:3]) == []
    assert parser.push_bytes(whale[3:]) == [ContentText("\U0001f40b")]
    assert parser.push_bytes(whale[:2]) == []
    assert parser.finish() == [ContentText("\ufffd")]


def test_the_events_of_a_turn_with_two_calls() -> None:
    text = (
        f"r\n{special.END_THINK}\n\nc{special.CALLS_BEGIN}{special.CALL_BEGIN}function"
        f"{special.CALL_SEP}f\n```json\n" + '{"x": 1}' + f"\n```{special.CALL_END}\n"
        f"{special.CALL_BEGIN}function{special.CALL_SEP}g\n```json\n" + "{}"
        f"\n```{special.CALL_END}{special.CALLS_END}{special.EOS}after"
    )
    assert events_of(R1.parser(thinking=True), [text]) == [
        ReasoningText("r"),
        ContentText("c"),
        ToolCallStart(0, "f"),
        ToolCallArguments(0, '{"x": 1}'),
        ToolCallEnd(0, complete=True),
        ToolCallStart(1, "g"),
        ToolCallArguments(1, "{}"),
        ToolCallEnd(1, complete=True),
        TurnEnd(),
    ]


def test_arguments_stream_as_they_come() -> None:
    parser = V32.parser()
    start = (
        f'<{DSML}function_calls>\n<{DSML}invoke name="f">\n<{DSML}parameter name="k" string="true">'
    )
    assert parser.push(start) == [ToolCallStart(0, "f"), ToolCallArguments(0, '{"k": "')]
    assert parser.push('a"b\n') == [ToolCallArguments(0, 'a\\"b\\n')]
    assert parser.push(f"</{DSML}parameter>\n</{DSML}invoke>") == [
        ToolCallArguments(0, '"'),
        ToolCallArguments(0, "}"),
        ToolCallEnd(0, complete=True),
    ]


def v3_call(inner: str) -> str:
    return f"{special.CALLS_BEGIN}{special.CALL_BEGIN}{inner}{special.CALL_END}{special.CALLS_END}"


SEP = special.CALL_SEP
BEGIN = special.CALLS_BEGIN + special.CALL_BEGIN
DSML_CALL = f'<{DSML}function_calls><{DSML}invoke name="f">'
DSML_KEY = f'{DSML_CALL}<{DSML}parameter name="k" '
DSML_ENDS = f"</{DSML}parameter></{DSML}invoke></{DSML}function_calls>"
BROKEN = [
    # bad JSON, no object, bad name
    (V3, v3_call(f"function{SEP}f\n```json\n" + '{"x": }\n```'), "", [("f", '{"x": }')]),
    (V3, v3_call(f"function{SEP}f\n```json\n[1]\n```"), "", [("f", "[1]")]),
    (V31, v3_call(f"my tool{SEP}" + "{}"), "", [("my tool", "{}")]),
    # the end is missing: of everything, of the call, of the block
    (V3, f"c{BEGIN}function{SEP}f\n```json\n" + '{"x": 1}', "c", [("f", '{"x": 1}')]),
    (V31, f"{BEGIN}f{SEP}" + "{}" + special.CALLS_END, "", [("f", "{}")]),
    (V31, f"{BEGIN}f{SEP}" + "{}" + special.EOS, "", [("f", "{}")]),
    # a call inside a call ends the outer one
    (V31, f"{BEGIN}f{SEP}" + "{" + f"{special.CALL_BEGIN}g{SEP}", "", [("f", "{"), ("g", "")]),
    # no arguments: the name is content
    (V31, v3_call("f"), "f", []),
    (V3, v3_call(f"function{SEP}f"), "f", []),
    (V3, f"{BEGIN}func", "func", []),
    # text between calls
    (V3, f"a{special.CALLS_BEGIN}\n b c {special.CALLS_END} d", "ab c d", []),
    # V3.2: a parameter, a call, a block without end; a value that is no JSON
    (V32, f'{DSML_KEY}string="true">v', "", [("f", '{"k": "v')]),
    (V32, f"{DSML_CALL}</{DSML}function_calls>z", "z", [("f", "")]),
    (V32, f'<{DSML}function_calls><{DSML}invoke name="f', "f", []),
    (V32, f'{DSML_KEY}string="false">x{DSML_ENDS}', "", [("f", '{"k": x}')]),
]


@pytest.mark.parametrize(("chat_format", "text", "said", "called"), BROKEN)
def test_broken_calls_are_marked_and_never_raise(
    chat_format: ChatFormat, text: str, said: str, called: list[tuple[str, str]]
) -> None:
    calls = tuple(ToolCall(name, arguments, complete=False) for name, arguments in called)
    assert chat_format.parse(text) == Message("assistant", said, tool_calls=calls)


def test_a_call_without_a_fence_or_a_block_is_read() -> None:
    bare = f"{special.CALL_BEGIN}function{SEP}f\n" + "{}" + special.CALL_END
    assert V3.parse(bare).tool_calls == (ToolCall("f"),)
    assert V3.parse(v3_call(f"function{SEP}f\n```\n" + "{}```")).tool_calls[0].complete


def test_an_open_think_block_is_reasoning_to_the_end() -> None:
    parsed = R1.parse(f"r{special.CALLS_BEGIN}", thinking=True)
    assert parsed == Message("assistant", reasoning_content=f"r{special.CALLS_BEGIN}")


def test_thinking_is_refused_where_there_is_none() -> None:
    with pytest.raises(ChatError, match="deepseek-v3 does not think"):
        V3.parser(thinking=True)


def test_marks_that_hold_each_other_are_refused() -> None:
    step = Step("content")
    for marks in (["ab", "abc"], ["bc", "abcd"]):
        with pytest.raises(AssertionError, match="lies inside"):
            State(content, dict.fromkeys(marks, step))
    State(content, dict.fromkeys(["c", "abc"], step))


@pytest.mark.parametrize("name", CHAT_FORMATS)
def test_parsing_takes_linear_time(name: str) -> None:
    chat_format = CHAT_FORMATS[name]

    def seconds(text: str) -> float:
        start = time.perf_counter()
        chat_format.parse(text)
        return time.perf_counter() - start

    dsml = f'<{DSML}function_calls><{DSML}invoke name="'
    for unit in (
        special.CALL_BEGIN,
        "<\uff5c",
        f"{special.CALLS_BEGIN}{special.CALL_END}",
        dsml,
        "\n",
    ):
        short, long = unit * 2_000, unit * 20_000
        assert min(seconds(long) for _ in range(3)) < 40 * max(seconds(short), 1e-3)
