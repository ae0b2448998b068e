import json
from pathlib import Path
from typing import Any

import pytest

from ziphius.data.errors import DataError
from ziphius.data.messages import Conversation, read_conversations, split_held_out
from ziphius.text.chat import Message, Tool, ToolCall

ASK = {"role": "user", "content": "2+2?"}
SAY = {"role": "assistant", "content": "4"}


def read(folder: Path, *lines: Any) -> list[Conversation]:
    path = folder / "talk.jsonl"
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("\n".join(texts) + "\n")
    return list(read_conversations(path))


def test_lines_become_conversations(tmp_path: Path) -> None:
    system = {"role": "system", "content": [{"type": "text", "text": "Be"}, *_part(" brief.")]}
    thinking = {**SAY, "reasoning_content": "2 and 2"}
    first, second = read(
        tmp_path, {"messages": [system, ASK, thinking], "source": "mine"}, "", {"messages": [SAY]}
    )
    assert first.messages == (
        Message("system", "Be brief."),
        Message("user", "2+2?"),
        Message("assistant", "4", reasoning_content="2 and 2"),
    )
    assert first.where.endswith("talk.jsonl, line 1")
    assert second.where.endswith("line 3")


def _part(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def test_tools_and_calls_are_read(tmp_path: Path) -> None:
    function = {"name": "add", "description": "adds", "parameters": {"type": "object"}}
    calls = [
        {"id": "a", "type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}},
        {"id": "b", "type": "function", "function": {"name": "add", "arguments": {"x": 2}}},
    ]
    data = {
        "messages": [
            ASK,
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "content": "3", "tool_call_id": "a"},
        ],
        "tools": [{"type": "function", "function": function}],
    }
    [conversation] = read(tmp_path, data)
    assert conversation.tools == (Tool("add", "adds", {"type": "object"}),)
    assert conversation.messages[1] == Message(
        "assistant",
        tool_calls=(ToolCall("add", '{"x": 1}', "a"), ToolCall("add", '{"x": 2}', "b")),
    )
    assert conversation.messages[2].tool_call_id == "a"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "no JSON"),
        ("[1]", "must be"),
        ({"message": []}, "must be"),
        ({"messages": [ASK]}, "no assistant message"),
        ({"messages": ["hello"]}, "must be a JSON object, not str"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "Unknown role 'bot'"),
        ({"messages": [{**SAY, "weight": 0}]}, "unknown key 'weight'"),
        ({"messages": [{**SAY, "content": 4}]}, "must be text"),
        ({"messages": [{**SAY, "content": [{"type": "image"}]}]}, "must be text"),
        ({"messages": [SAY], "tools": {}}, "`tools` must be a list"),
        ({"messages": [SAY], "tools": [{"name": "f"}]}, "`function` of a tool must be"),
        ({"messages": [{**SAY, "tool_calls": [{"function": {}}]}]}, "A tool call has no name"),
        ({"messages": [{**ASK, "reasoning_content": "x"}, SAY]}, "Only an assistant reasons"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: Any, problem: str) -> None:
    with pytest.raises(DataError, match=r"talk\.jsonl, line 2: ") as caught:
        read(tmp_path, {"messages": [SAY]}, line)
    assert problem in str(caught.value)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    path.write_bytes(b'{"messages": [\xff]}')
    with pytest.raises(DataError, match="line 1: no UTF-8"):
        list(read_conversations(path))


def test_an_empty_or_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no conversations"):
        read(tmp_path, "", " ")
    with pytest.raises(DataError, match=r"none\.jsonl cannot be read"):
        list(read_conversations(tmp_path / "none.jsonl"))


def test_copies_fall_on_one_side_and_others_do_not_move_them() -> None:
    talks = [Conversation(f"line {i}", (Message("assistant", str(i % 100)),)) for i in range(200)]
    learned, held_out = split_held_out(talks, 0.3)
    assert len(learned) + len(held_out) == 200
    assert 30 < len(held_out) < 90
    assert not {talk.messages for talk in learned} & {talk.messages for talk in held_out}
    assert split_held_out(held_out[:3], 0.3) == ([], held_out[:3])
    assert split_held_out(talks, 0.0) == (talks, [])
