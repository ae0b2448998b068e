"""Messages are checked when they are made; turns when they are put together."""

import pytest

from ziphius.core.errors import ChatError
from ziphius.text.chat.messages import Message, Tool, ToolCall, json_object, ordered_turns

USER = Message("user", "u")


def calls(*ids: str | None) -> Message:
    return Message(
        "assistant", tool_calls=tuple(ToolCall(f"f{i}", id=n) for i, n in enumerate(ids))
    )


def result(content: str, call_id: str | None = None) -> Message:
    return Message("tool", content, tool_call_id=call_id)


def test_messages_are_frozen_and_an_empty_reasoning_is_none() -> None:
    message = Message("assistant", "a", reasoning_content="", tool_calls=[ToolCall("f")])  # type: ignore[arg-type]
    assert message.reasoning_content is None
    assert message.tool_calls == (ToolCall("f"),)
    with pytest.raises(AttributeError):
        message.content = "b"  # type: ignore[misc]
    hash(message)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"role": "robot"}, "Unknown role 'robot'; known are system, developer, user"),
        ({"role": "user", "content": None}, "text, not NoneType; give ''"),
        ({"role": "user", "reasoning_content": "r"}, "Only an assistant reasons"),
        ({"role": "tool", "tool_calls": (ToolCall("f"),)}, "not role 'tool'"),
        ({"role": "user", "tool_call_id": "1"}, "tool_call_id belongs to role 'tool'"),
    ],
)
def test_a_message_that_makes_no_sense_is_refused(arguments: dict, match: str) -> None:
    with pytest.raises(ChatError, match=match):
        Message(**arguments)


@pytest.mark.parametrize(
    "text",
    ["", "x", "[]", "1", '{"a": NaN}', '{"a": Infinity}', '{"a": 1e999}', "{'a': 1}", '{"a": 1',
     '{"a": ' + "[" * 100_000, '{"a": ' + "9" * 10_000 + "}"],
)  # fmt: skip
def test_arguments_have_to_be_a_json_object(text: str) -> None:
    assert json_object(text) is None
    with pytest.raises(ChatError, match="arguments of the call of 'f' are no JSON object"):
        ToolCall("f", text)
    broken = ToolCall("f", text, complete=False)
    with pytest.raises(ChatError, match="no JSON object"):
        broken.values()


def test_arguments_as_values() -> None:
    assert ToolCall("f", ' {"a": [1, "b", null]}\n').values() == {"a": [1, "b", None]}


@pytest.mark.parametrize("name", ["", "a b", 'a"', "a\n", "<x>", "\u00e9", "x" * 129])
def test_names_that_would_break_a_format_are_refused(name: str) -> None:
    with pytest.raises(ChatError, match="Tool call name"):
        ToolCall(name)
    with pytest.raises(ChatError, match="Tool name"):
        Tool(name)
    assert ToolCall(name, complete=False).name == name


def test_a_tool_without_parameters_takes_none() -> None:
    empty = {"type": "object", "properties": {}}
    assert Tool("f", "d").schema() == {"name": "f", "description": "d", "parameters": empty}
    assert Tool("f", "d", {"type": "object"}).schema()["parameters"] == {"type": "object"}


def test_results_stand_in_the_order_of_their_calls() -> None:
    r1, r2 = result("1", "a"), result("2", "b")
    system = Message("system", "s")
    turns = ordered_turns([system, USER, calls("a", "b"), r2, r1, USER, system])
    assert turns == [USER, calls("a", "b"), r1, r2, USER]
    # A result without an id answers the first call that waits.
    loose = result("2")
    assert ordered_turns([USER, calls("a", "b"), loose, r2])[-2:] == [loose, r2]
    assert ordered_turns([USER, calls("a", "b"), r2, loose])[-2:] == [loose, r2]
    # Calls without ids: results in the order given, whatever ids they bring.
    assert ordered_turns([USER, calls(None, None), r2, r1])[-2:] == [r2, r1]


def test_calls_at_the_end_may_wait() -> None:
    assert ordered_turns([USER, calls("a")]) == [USER, calls("a")]


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ([USER, result("x")], "no call before it"),
        ([result("x")], "no call before it"),
        ([USER, calls("a"), result("1"), result("2")], "no call before it"),
        ([USER, calls("a"), result("1", "b")], r"answers the call 'b'; .* \['a'\]"),
        ([USER, calls("a", "b"), result("1", "a"), result("1", "a")], r"call 'a'; .* \['b'\]"),
        ([USER, calls("a", "b"), result("1"), USER], "Of 2 tool calls, 1 have a result before the"),
        ([USER, calls("a"), USER], "Of 1 tool calls, 0 have a result before the next user"),
        ([USER, calls("a", "b"), result("1")], "Only 1 of 2 tool calls"),
        ([USER, Message("assistant", "a"), Message("assistant", "b")], "Two assistant messages"),
    ],
)
def test_turns_out_of_order_are_refused(messages: list[Message], match: str) -> None:
    with pytest.raises(ChatError, match=match):
        ordered_turns(messages)
