"""V3.1: the published strings, with and without thinking."""

import pytest

from tests.unit.text.goldens import assistant, golden, result, system, user
from ziphius.text.chat import CHAT_FORMATS, Tool, ToolCall

V31 = CHAT_FORMATS["deepseek-v3.1"]
PAST = [system("S"), user("u1"), assistant("a1", "r1"), user("u2")]
BEGIN = golden(
    "<~begin^of^sentence~>S<~User~>u1<~Assistant~></think>a1<~end^of^sentence~><~User~>u2<~Assistant~>"
)


def test_prompts() -> None:
    assert V31.render(PAST, generation_prompt=True) == BEGIN + "</think>"
    assert V31.render(PAST, generation_prompt=True, thinking=True) == BEGIN + "<think>"


def test_answers() -> None:
    end = golden("<~end^of^sentence~>")
    assert V31.render([*PAST, assistant("a2")]) == BEGIN + "</think>a2" + end
    assert V31.render([*PAST, assistant("a2", "r2")]) == BEGIN + "<think>r2</think>a2" + end


TOOL_TEXT = """

## Tools
You have access to the following tools:

### get_time
Description: Tell the time

Parameters: {"type": "object"}

IMPORTANT: ALWAYS adhere to this exact format for tool use:
<~tool^calls^begin~><~tool^call^begin~>tool%call%name<~tool^sep~>tool%call%arguments\
<~tool^call^end~>{additional%tool%calls}<~tool^calls^end~>

Where:
- `tool%call%name` must be an exact match to one of the available tools
- `tool%call%arguments` must be valid JSON that strictly follows the tool's Parameters Schema
- For multiple tool calls, chain them directly without separators or spaces""".replace("%", "_")


def test_tools_are_described_as_in_the_model_card() -> None:
    tool = Tool("get_time", "Tell the time", {"type": "object"})
    text = V31.render([system("S"), user("u")], tools=[tool], generation_prompt=True)
    assert text == golden(f"<~begin^of^sentence~>S{TOOL_TEXT}<~User~>u<~Assistant~></think>")


def test_calls_and_results() -> None:
    calls = assistant("", None, ToolCall("f", '{"x":1}'), ToolCall("g"))
    turns = [user("u"), calls, result("R1"), result("R2"), assistant("done")]
    expected = golden(
        "<~begin^of^sentence~><~User~>u<~Assistant~></think><~tool^calls^begin~><~tool^call^begin~>f"
        '<~tool^sep~>{"x":1}<~tool^call^end~><~tool^call^begin~>g<~tool^sep~>{}<~tool^call^end~>'
        "<~tool^calls^end~><~end^of^sentence~><~tool^output^begin~>R1<~tool^output^end~>"
        "<~tool^output^begin~>R2<~tool^output^end~>"
    )
    assert V31.render(turns[:4], generation_prompt=True) == expected
    assert V31.render(turns) == expected + golden("done<~end^of^sentence~>")


@pytest.mark.parametrize(
    ("text", "thinking", "reasoning", "content"),
    [
        ("r\n</think>\n\na", True, "r\n", "\n\na"),
        ("</think>a", True, None, "a"),
        ("<think>a", False, None, "<think>a"),
    ],
)
def test_think_blocks_are_read_to_the_letter(
    text: str, thinking: bool, reasoning: str | None, content: str
) -> None:
    parsed = V31.parse(text, thinking=thinking)
    assert (parsed.reasoning_content, parsed.content) == (reasoning, content)
