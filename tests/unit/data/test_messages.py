import json
from pathlib import Path
from typing import Any

import pytest

from ziphius.data.errors import DataError
from ziphius.data.messages import (
    ABOUT,
    JOINED,
    NAMED,
    Conversation,
    is_held_out,
    read_conversations,
    split_held_out,
)
from ziphius.data.row_report import RowReport
from ziphius.text.chat import Message, Tool, ToolCall

ASK = {"role": "user", "content": "2+2?"}
SAY = {"role": "assistant", "content": "4"}
CALL = {"id": "a", "type": "function", "function": {"name": "add", "arguments": "{}"}}


def read(folder: Path, *lines: Any, report: RowReport | None = None) -> list[Conversation]:
    path = folder / "talk.jsonl"
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("\n".join(texts) + "\n")
    return list(read_conversations(path, report))


def messages(folder: Path, *turns: Any) -> tuple[Message, ...]:
    [conversation] = read(folder, {"messages": turns})
    return conversation.messages


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


FUNCTION = {"name": "add", "description": "adds", "parameters": {"type": "object"}}


@pytest.mark.parametrize(
    "tools",
    [
        [FUNCTION],
        [{"type": "function", "function": FUNCTION}],
        json.dumps([FUNCTION]),
        json.dumps([{"type": "function", "function": FUNCTION}], indent=1),
        [{**FUNCTION, "parameters": json.dumps(FUNCTION["parameters"])}],
        [{"name": "add", "description": "adds", "input_schema": {"type": "object"}}],
    ],
)
def test_tools_are_the_same_however_they_are_written(tmp_path: Path, tools: Any) -> None:
    for key in ("tools", "functions"):
        [conversation] = read(tmp_path, {"messages": [ASK, SAY], key: tools})
        assert conversation.tools == (Tool("add", "adds", {"type": "object"}),)
    for none in (None, [], "", "[]", "null"):
        [conversation] = read(tmp_path, {"messages": [ASK, SAY], "tools": none})
        assert conversation.tools == ()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("", "{}"),
        (" ", "{}"),
        (None, "{}"),
        (..., "{}"),
        ({}, "{}"),
        ({"x": "\u4f60", "n": [1, None]}, '{"x": "\u4f60", "n": [1, null]}'),
        ('{\n "x": 1}', '{\n "x": 1}'),
    ],
)
def test_arguments_are_read_however_they_are_written(
    tmp_path: Path, arguments: Any, text: str
) -> None:
    function = {"name": "f"} | ({} if arguments is ... else {"arguments": arguments})
    expected = Message("assistant", tool_calls=(ToolCall("f", text),))
    for turn in (
        {"tool_calls": [{"type": "function", "function": function}]},
        {"tool_calls": [function], "content": None},
        {"tool_calls": json.dumps([function])},
        {"function_call": function, "content": ""},
    ):
        assert messages(tmp_path, ASK, {"role": "assistant", **turn})[1] == expected


def test_the_dumps_of_openai_are_read(tmp_path: Path) -> None:
    extras = {"refusal": None, "annotations": [], "audio": None, "function_call": None}
    padding = {"tool_calls": None, "reasoning_content": None, "tool_call_id": None, "name": None}
    said = messages(
        tmp_path,
        {"role": "developer", "content": "Be brief.", **padding},
        {**ASK, **padding},
        {"role": "assistant", **extras, **padding, "tool_calls": [CALL], "content": None},
        {"role": "tool", "name": "add", "tool_call_id": "a", "content": _part("4")},
        {**SAY, **extras, "id": "msg_1", "annotations": [{"type": "url_citation"}]},
    )
    assert said == (
        Message("developer", "Be brief."),
        Message("user", "2+2?"),
        Message("assistant", tool_calls=(ToolCall("add", "{}", "a"),)),
        Message("tool", "4", tool_call_id="a"),
        Message("assistant", "4"),
    )
    assert messages(tmp_path, ASK, {"role": "assistant", "content": None, "refusal": "No."})[
        1
    ] == Message("assistant", "No.")
    legacy = {"role": "function", "name": "add", "content": "4"}
    call = {"role": "assistant", "content": None, "function_call": {"name": "add"}}
    assert messages(tmp_path, ASK, call, legacy, SAY)[2] == Message("tool", "4")


def test_names_of_speakers_are_counted(tmp_path: Path) -> None:
    report = RowReport()
    read(tmp_path, {"messages": [{**ASK, "name": "Ann"}, SAY]}, report=report)
    assert report.changes == {NAMED: 1}


@pytest.mark.parametrize("key", sorted(ABOUT))
def test_what_is_only_about_a_message_is_not_read(tmp_path: Path, key: str) -> None:
    assert messages(tmp_path, {**ASK, key: "x"}, {**SAY, key: 3})[1] == Message("assistant", "4")


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_has_three_names(tmp_path: Path, key: str) -> None:
    thought = Message("assistant", "4", "2 and 2")
    assert messages(tmp_path, ASK, {**SAY, key: "2 and 2"})[1] == thought
    both = {"reasoning_content": "2 and 2", key: "2 and 2", "reasoning": None}
    assert messages(tmp_path, ASK, {**SAY, **both})[1] == thought


@pytest.mark.parametrize("key", ["weight", "train", "loss"])
def test_a_weight_of_zero_makes_a_turn_context(tmp_path: Path, key: str) -> None:
    for no, yes in ((0, 1), (False, True), (0.0, None)):
        turns = [{**ASK, key: 0}, {**SAY, key: no}, ASK, {**SAY, key: yes}]
        [conversation] = read(tmp_path, {"messages": turns})
        assert conversation.masked_turns == {1}
        assert conversation.messages[1] == Message("assistant", "4")
    [conversation] = read(tmp_path, {"prompt": [ASK, SAY, ASK], "completion": [SAY]})
    assert conversation.masked_turns == {1}


def test_assistants_that_follow_each_other_are_one_turn(tmp_path: Path) -> None:
    def joined(*turns: dict[str, Any]) -> Message:
        report = RowReport()
        turns = tuple({"role": "assistant", **turn} for turn in turns)
        [conversation] = read(tmp_path, {"messages": [ASK, *turns]}, report=report)
        assert report.changes[JOINED] == len(turns) - 1
        [_, message] = conversation.messages
        return message

    call = {"tool_calls": [{**CALL, "id": "b"}]}
    assert joined({"content": "Let me see."}, {"content": "Done."}) == Message(
        "assistant", "Let me see.\n\nDone."
    )
    assert joined({"reasoning": "Hm"}, {"content": "Look:"}, {"tool_calls": [CALL]}, call) == (
        Message(
            "assistant",
            "Look:",
            "Hm",
            (ToolCall("add", "{}", "a"), ToolCall("add", "{}", "b")),
        )
    )
    assert joined({"content": "a", "weight": 1}, {"content": "b"}).content == "a\n\nb"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "no JSON"),
        ("[1]", "must be"),
        ({"message": []}, "must be"),
        ({"messages": None}, "`messages` is null"),
        ({"messages": None, "id": 3}, "`messages` is null"),
        ({"messages": [ASK]}, "no assistant message"),
        ({"messages": ["hello"]}, "must be a JSON object, not str"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "Unknown role 'bot'"),
        ({"messages": [{"role": 3, "content": "x"}]}, "has no role"),
        ({"messages": [{**SAY, "prefix": True}]}, "unknown key 'prefix'"),
        ({"messages": [{**SAY, "audio": {"id": "x"}}]}, "unknown key 'audio'"),
        ({"messages": [{**SAY, "weight": 0.5}]}, "weight of a message must be 0 or 1, not 0.5"),
        ({"messages": [{**SAY, "weight": "0"}]}, "must be 0 or 1, not '0'"),
        ({"messages": [{**SAY, "weight": 0, "train": True}]}, "weights that differ"),
        ({"messages": [{**ASK, "weight": 1}, SAY]}, "only what assistants write is learned"),
        ({"messages": [{**SAY, "weight": 0}]}, "no assistant message of weight 1"),
        ({"messages": [{**SAY, "content": 4}]}, "must be text"),
        ({"messages": [{**SAY, "content": [{"type": "image"}]}]}, "must be text"),
        ({"messages": [ASK, {**SAY, "content": ""}]}, "says nothing"),
        ({"messages": [ASK, {"role": "assistant"}]}, "says nothing"),
        ({"prompt": "Hi", "completion": ""}, "says nothing"),
        ({"text": " \n"}, "empty text"),
        ({"messages": [SAY], "tools": {}}, "`tools` must be a list"),
        ({"messages": [SAY], "tools": "add"}, "`tools` is no JSON"),
        ({"messages": [SAY], "tools": ["f"]}, "A tool must be a JSON object, not str"),
        ({"messages": [SAY], "tools": [{"function": "f"}]}, "The `function` of a tool must be"),
        ({"messages": [SAY], "tools": [{"description": "x"}]}, "A tool has no name"),
        ({"messages": [SAY], "tools": [{"name": "f", "parameters": "x"}]}, "tool is no JSON"),
        ({"messages": [{**SAY, "tool_calls": [{"function": {}}]}]}, "A tool call has no name"),
        ({"messages": [{**SAY, "tool_calls": [{"name": "f", "arguments": "x"}]}]}, "no JSON obj"),
        ({"messages": [{**SAY, "tool_calls": [{"name": "f", "arguments": [1]}]}]}, "no JSON obj"),
        ({"messages": [{**SAY, "tool_calls": [{**CALL, "id": 3}]}]}, "The id of a tool call"),
        ({"messages": [{**ASK, "reasoning_content": "x"}, SAY]}, "Only an assistant reasons"),
        ({"messages": [{**SAY, "reasoning": ["x"]}]}, "`reasoning` must be text, not list"),
        ({"messages": [{**SAY, "reasoning": "x", "thinking": "y"}]}, "two reasonings that differ"),
        ({"messages": [ASK, {**SAY, "content": "\ud800"}]}, "half of a UTF-16 pair"),
        ({"messages": [ASK, SAY, {**SAY, "weight": 0}]}, "with unlike weights"),
        ({"messages": [ASK, SAY, {**SAY, "reasoning": "x"}]}, "out of order"),
        ({"messages": [ASK, {**SAY, "tool_calls": [CALL]}, SAY]}, "out of order"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: Any, problem: str) -> None:
    with pytest.raises(DataError, match=r"talk\.jsonl, line 2: ") as caught:
        read(tmp_path, {"messages": [SAY]}, line)
    assert problem in str(caught.value)
    report = RowReport(strict=False, max_bad_share=0.5)
    assert len(read(tmp_path, {"messages": [SAY]}, line, report=report)) == 1
    assert (report.read, report.skipped) == (2, 1)


def lenient(said: list[str]) -> RowReport:
    return RowReport(strict=False, max_bad_share=0.0, say=said.append)


def folder(path: Path, **files: str) -> Path:
    for name, text in files.items():
        (path / name.replace("_", ".")).write_text(text)
    return path


GOOD = json.dumps({"messages": [ASK, SAY]}) + "\n"
PACKAGE = json.dumps({"name": "x", "version": "1"}, indent=2)


def test_a_file_of_a_folder_that_is_no_data_is_set_aside(tmp_path: Path) -> None:
    data = folder(tmp_path, a_json=PACKAGE, talk_jsonl=GOOD * 2, z_jsonl='{"x": 1}\n' * 30)
    said: list[str] = []
    report = lenient(said)
    assert len(list(read_conversations(data, report))) == 2
    assert (report.read, report.skipped, report.files_set_aside) == (2, 0, 2)
    report.check()
    one, many = sorted(said)
    assert one.startswith(f"Set aside: {data}/a.json, as its one row does not fit: ")
    assert "it has name, version" in one
    assert many.startswith(f"Set aside: {data}/z.jsonl, as none of its 30 rows fits: ")
    again: list[str] = []
    repeated = lenient(again)
    repeated.recall(report.document())
    assert (repeated.files_set_aside, again) == (2, said)


def test_a_file_with_one_row_that_fits_is_data(tmp_path: Path) -> None:
    data = folder(tmp_path, a_jsonl='{"x": 1}\n' * 25 + GOOD + '{"x": 1}\n', b_jsonl=GOOD)
    said: list[str] = []
    report = lenient(said)
    assert len(list(read_conversations(data, report))) == 2
    assert (report.read, report.skipped, report.files_set_aside) == (28, 26, 0)
    assert said[0].startswith(f"Skipped: {data}/a.jsonl, line 1: ")
    with pytest.raises(DataError, match=r"26 of 28 rows .* --max-bad-share 0 allows"):
        report.check()


def test_no_file_is_set_aside_where_none_has_rows_that_fit(tmp_path: Path) -> None:
    data = folder(tmp_path, a_json=PACKAGE, b_jsonl='{"x": 1}\n' * 25)
    for path, rows in ((data, 26), (data / "a.json", 1)):
        report = lenient([])
        assert list(read_conversations(path, report)) == []
        assert (report.read, report.skipped, report.files_set_aside) == (rows, rows, 0)
        with pytest.raises(DataError, match=r"(a\.json|b\.jsonl), line 1: "):
            report.check()


def test_strict_sets_no_file_aside(tmp_path: Path) -> None:
    data = folder(tmp_path, a_json=PACKAGE, talk_jsonl=GOOD)
    with pytest.raises(DataError, match=r"a\.json, line 1: "):
        list(read_conversations(data))


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
    texts = [Conversation(f"line {i}", (), text=str(i % 100)) for i in range(200)]
    sides = [is_held_out(text, 0.3) for text in texts]
    assert sides[:100] == sides[100:]
    assert 15 < sum(sides[:100]) < 45
