"""V3.2: the strings of the encoder that comes with the model."""

import json

from tests.unit.text.goldens import assistant, golden, result, system, user
from ziphius.text.chat import CHAT_FORMATS, Message, Tool, ToolCall

V32 = CHAT_FORMATS["deepseek-v3.2"]
CALL = ToolCall("f", '{"x": 1}')
BLOCK = golden(
    '\n\n<~DSML~function_calls>\n<~DSML~invoke name="f">\n'
    '<~DSML~parameter name="x" string="false">1</~DSML~parameter>\n</~DSML~invoke>\n'
    "</~DSML~function_calls><~end^of^sentence~>"
)
RESULTS = (
    "\n\n<function_results>\n<result>R1</result>\n<result>R2</result>\n</function_results>\n\n"
)
EOS = golden("<~end^of^sentence~>")


def test_chats_with_and_without_thinking() -> None:
    past = [system("S"), user("u1"), assistant("a1", "r1"), user("u2")]
    begin = golden("<~begin^of^sentence~>S<~User~>u1<~Assistant~></think>a1<~end^of^sentence~>")
    prompt = begin + golden("<~User~>u2<~Assistant~>")
    assert V32.render(past, generation_prompt=True) == prompt + "</think>"
    assert V32.render(past, generation_prompt=True, thinking=True) == prompt + "<think>"
    answer = [*past, assistant("a2", "r2")]
    assert V32.render(answer) == prompt + f"<think>r2</think>a2{EOS}"


def test_system_texts_stand_where_they_were_said_and_nothing_stands_between_them() -> None:
    turns = [system("one"), system("two"), user("u"), assistant("a"), system("three"), user("v")]
    text = V32.render(turns, generation_prompt=True)
    begin = golden("<~begin^of^sentence~>onetwo<~User~>u<~Assistant~></think>a<~end^of^sentence~>")
    assert text == begin + golden("three<~User~>v<~Assistant~></think>")


def test_thinking_between_calls_is_kept_after_the_last_user_message() -> None:
    calls = assistant("", "r1", CALL, CALL)
    turns = [user("u"), calls, result("R1"), result("R2")]
    text = V32.render(turns, thinking=True, generation_prompt=True)
    one = BLOCK.removesuffix(EOS)
    invoke = one[one.index("\n<", 3) : one.index(golden("\n</~DSML~function"))]
    two = one.replace(invoke, invoke * 2) + EOS
    assert text == golden("<~begin^of^sentence~><~User~>u<~Assistant~><think>r1</think>") + (
        two + RESULTS + "<think>"
    )
    # Once the user speaks again, the same rounds stand without their thoughts.
    later = V32.render([*turns, assistant("a", "r2"), user("v")], thinking=True)
    assert later == golden("<~begin^of^sentence~><~User~>u<~Assistant~></think>") + (
        two + RESULTS + f"</think>a{EOS}" + golden("<~User~>v")
    )


def test_one_call() -> None:
    text = V32.render([user("u"), assistant("c", "r1", CALL)])
    begin = golden("<~begin^of^sentence~><~User~>u<~Assistant~>")
    assert text == begin + "<think>r1</think>c" + BLOCK


def test_without_thinking_results_close_the_block() -> None:
    turns = [user("u"), assistant("", None, CALL), result("R1")]
    text = V32.render(turns, generation_prompt=True)
    assert text.endswith("<result>R1</result>\n</function_results>\n\n</think>")


def test_kinds_of_parameters() -> None:
    arguments = {
        "s": 'a "b"\n',
        "n": 1.5,
        "l": [1, "x"],
        "o": {"k": None},
        "t": True,
        "z": "\u4f60",
    }
    call = ToolCall("f", json.dumps(arguments))
    text = V32.render([user("u"), assistant("", None, call)])
    for key, shown in {
        "s": 'true">a "b"\n<', "n": 'false">1.5<', "l": 'false">[1, "x"]<',
        "o": 'false">{"k": null}<', "t": 'false">true<', "z": 'true">\u4f60<',
    }.items():  # fmt: skip
        assert golden(f'<~DSML~parameter name="{key}" string="{shown}/~DSML~parameter>') in text
    assert text.count(golden("</~DSML~parameter>\n<")) == len(arguments)  # one on each line
    parsed = V32.parse(text[text.index("</think>") + 8 :])
    assert parsed.tool_calls[0].values() == arguments


def test_tools_of_the_system_text() -> None:
    tool = Tool("f", "d", {"type": "object"})
    text = V32.render([system("S"), user("u")], tools=[tool, Tool("g")])
    begin = golden("<~begin^of^sentence~>S\n\n")
    assert text.startswith(
        begin + "## Tools\n\nYou have access to a set of tools you can use to answer the user's "
        'question.\nYou can invoke functions by writing a "'
    )
    listed = json.dumps({"name": "f", "description": "d", "parameters": {"type": "object"}})
    assert f"JSONSchema format:\n<functions>\n{listed}\n" in text
    assert text.endswith(golden("\n</functions>\n<~User~>u"))
    assert V32.render([user("u")], tools=[tool]).startswith(
        golden("<~begin^of^sentence~>\n\n## Tools")
    )


def test_a_developer_brings_its_tools() -> None:
    turn = Message("developer", "{content}")
    bare = golden(
        "<~begin^of^sentence~><~User~>\n\n# The user's message is: {content}<~Assistant~>"
    )
    assert V32.render([turn], generation_prompt=True) == bare + "</think>"
    text = V32.render([turn], tools=[Tool("f")], generation_prompt=True, thinking=True)
    assert text.startswith(golden("<~begin^of^sentence~><~User~>\n\n## Tools\n\n"))
    assert text.endswith(
        golden("</functions>\n\n\n# The user's message is: {content}<~Assistant~><think>")
    )
    # Beside a system text the tools stand there.
    beside = V32.render([system("S"), turn], tools=[Tool("f")])
    assert beside.startswith(golden("<~begin^of^sentence~>S\n\n## Tools"))
    assert beside.count("## Tools") == 1


def test_an_answer_that_fits_a_schema_is_demanded() -> None:
    text = V32.render([system("S"), user("u")], reply_schema={"type": "object"})
    assert text == golden(
        "<~begin^of^sentence~>S\n\n## Response Format:\n\nYou MUST strictly adhere to the "
        'following schema to reply:\n{"type": "object"}<~User~>u'
    )


def test_a_call_without_parameters() -> None:
    reply = assistant("", None, ToolCall("f"))
    text = V32.render([user("u"), reply])
    assert golden('<~DSML~invoke name="f">\n\n</~DSML~invoke>') in text
    assert V32.parse(text[text.index("</think>") + 8 :]) == reply
