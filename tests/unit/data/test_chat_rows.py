import json
from typing import Any

import pytest

from ziphius.core.errors import ChatError
from ziphius.data.chat_rows import ROLES, chat_row

ASK = {"role": "user", "content": "Hi"}
SAY = {"role": "assistant", "content": "Ho"}
BRIEF = {"role": "system", "content": "Be brief."}
CHAT = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASK, SAY]},
        {"messages": json.dumps([ASK, SAY])},
        {"messages": CHAT},
        {"conversations": CHAT},
        {"conversations": [ASK, SAY]},
        {"conversation": CHAT, "id": 7},
        {"prompt": "Hi", "completion": "Ho"},
        {"prompt": "Hi", "response": "Ho"},
        {"prompt": [ASK], "completion": [SAY]},
        {"prompt": [ASK], "completion": "Ho"},
        {"instruction": "Hi", "output": "Ho"},
        {"instruction": "Hi", "input": "", "output": "Ho", "text": "### Instruction: Hi"},
        {"instruction": "Hi", "context": None, "response": "Ho", "category": "qa"},
        {"question": "Hi", "answer": "Ho"},
        {"query": "Hi", "response": "Ho"},
        {"input": "Hi", "output": "Ho"},
        {"prompt": "Hi", "prompt_id": "1", "messages": [ASK, SAY], "text": None},
        {"prompt": "Hi", "completion": "Ho", "response": "Ho"},
        {"prompt": "Hi", "completion": "Ho", "chosen": "Ho", "rejected": "He"},
        {"messages": None, "conversations": CHAT, "tools": None},
    ],
)
def test_every_shape_is_the_same_conversation(row: Any) -> None:
    found = chat_row(row)
    assert (list(found.messages), found.tools, found.text) == ([ASK, SAY], None, None)


def test_an_instruction_has_its_input_below_it() -> None:
    row = {"instruction": "Add.", "input": "2 and 2", "output": "4", "system": "Be brief."}
    history = {"history": [["Hi", "Ho"]]}
    found = chat_row(row | history)
    assert list(found.messages) == [
        *(BRIEF, ASK, SAY),
        {"role": "user", "content": "Add.\n2 and 2"},
        {"role": "assistant", "content": "4"},
    ]
    assert found.prompt == 0


def test_a_prompt_that_is_a_conversation_is_not_learned() -> None:
    assert chat_row({"prompt": [ASK, SAY, ASK], "completion": [SAY]}).prompt == 3
    assert chat_row({"prompt": [ASK], "completion": [SAY], "system": "s"}).prompt == 2
    assert chat_row({"prompt": "Hi", "completion": "Ho", "system": "s"}).prompt == 0


def test_a_system_text_beside_the_messages_comes_first() -> None:
    for key in ("system", "system_prompt"):
        assert chat_row({"messages": [ASK, SAY], key: "Be brief."}).messages[0] == BRIEF
    assert len(chat_row({"messages": [BRIEF, ASK, SAY], "system": "Be brief."}).messages) == 3
    assert len(chat_row({"conversations": CHAT, "system": ""}).messages) == 2
    with pytest.raises(ChatError, match="two system texts"):
        chat_row({"messages": [BRIEF, ASK, SAY], "system": "Be long."})


@pytest.mark.parametrize(("word", "role"), ROLES.items())
def test_other_words_for_roles(word: str, role: str) -> None:
    [message] = chat_row({"conversations": [{"from": word, "value": "x"}]}).messages
    assert message == {"role": role, "content": "x"}
    [message] = chat_row({"messages": [{"role": word, "content": "x"}]}).messages
    assert message["role"] == role


def test_calls_that_are_a_turn_of_their_own() -> None:
    call = {"name": "clock", "arguments": {"zone": "UTC"}}
    for value in (json.dumps(call), json.dumps([call]), call):
        [message] = chat_row(
            {"conversations": [{"from": "function_call", "value": value}]}
        ).messages
        assert message == {"role": "assistant", "tool_calls": [call]}


def test_running_text() -> None:
    assert chat_row({"text": "Whales dive.", "meta": {}}).text == "Whales dive."


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ([1], "must be a JSON object"),
        ({}, "it has no keys"),
        ({"body": "x", "title": "y"}, "it has body, title"),
        ({"messages": 1}, "`messages` must be a list, not int"),
        ({"messages": []}, "`messages` is empty"),
        ({"messages": "Hi"}, "`messages` is no JSON"),
        ({"messages": [{"content": "Hi"}]}, "has no role, only content"),
        ({"messages": [["user", "Hi"]]}, "must be a JSON object, not list"),
        ({"prompt": "Hi"}, "it has prompt"),
        ({"prompt": 3, "completion": "Ho"}, "`prompt` must be a list, not int"),
        ({"prompt": "Hi", "chosen": "Ho", "rejected": "He"}, "a choice between answers"),
        ({"prompt": "Hi", "completion": "Ho", "response": "He"}, "several answers (completion, re"),
        ({"question": "Hi", "answer": "Ho", "response": "He"}, "several answers (answer, response"),
        ({"role": "user", "content": "Hi"}, "is a message alone"),
        ({"from": "human", "value": "Hi"}, "is a message alone"),
        ({"text": ["Hi"]}, "`text` must be text, not list"),
        ({"instruction": "a", "output": "b", "history": [["c"]]}, "a list of pairs of texts"),
        ({"conversations": [{"from": "function_call", "value": "no"}]}, "function_call is no JSON"),
    ],
)
def test_what_has_no_shape_is_named(row: Any, problem: str) -> None:
    with pytest.raises(ChatError) as caught:
        chat_row(row)
    assert problem in str(caught.value)
