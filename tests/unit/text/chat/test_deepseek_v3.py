"""V3 and R1: the published strings, and the Jinja templates that come with the vocabularies."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from tests.unit.text.goldens import as_dicts, assistant, golden, result, run_template, system, user
from tests.unit.text.strategies import adversarial_text
from ziphius.text import vocabulary
from ziphius.text.chat import CHAT_FORMATS, ChatFormat, Message, Tool, ToolCall

V3, R1 = CHAT_FORMATS["deepseek-v3"], CHAT_FORMATS["deepseek-r1"]
F, G = ToolCall("f", '{"x":1}'), ToolCall("g", "{}")
CALLS = golden(
    "<~Assistant~><~tool^calls^begin~><~tool^call^begin~>function<~tool^sep~>f\n```json\n"
    '{"x":1}\n```<~tool^call^end~>\n<~tool^call^begin~>function<~tool^sep~>g\n```json\n{}\n```'
    "<~tool^call^end~><~tool^calls^end~><~end^of^sentence~>"
)
OUTPUTS = golden(
    "<~tool^outputs^begin~><~tool^output^begin~>R1<~tool^output^end~>\n"
    "<~tool^output^begin~>R2<~tool^output^end~><~tool^outputs^end~>"
)


@pytest.fixture(scope="module")
def v3_template(data_folder: Path) -> str:
    path = data_folder / "tokenizer" / "deepseek-v3" / "tokenizer_config.json"
    return json.loads(path.read_text())["chat_template"]


@pytest.fixture(scope="module")
def r1_template() -> str:
    path = vocabulary._package_folder() / "tokenizer_config.json"
    return json.loads(path.read_text())["chat_template"]


def test_a_conversation() -> None:
    turns = [system("S"), user("u1"), assistant("a1"), user("u2")]
    assert V3.render(turns, generation_prompt=True) == golden(
        "<~begin^of^sentence~>S<~User~>u1<~Assistant~>a1<~end^of^sentence~><~User~>u2<~Assistant~>"
    )


def test_calls_and_results() -> None:
    turns = [user("u"), assistant("", None, F, G), result("R1"), result("R2"), assistant("done")]
    begin = golden("<~begin^of^sentence~><~User~>u")
    assert V3.render(turns) == begin + CALLS + OUTPUTS + golden("done<~end^of^sentence~>")
    # The answer follows the results without a role token.
    assert V3.render(turns[:4], generation_prompt=True) == begin + CALLS + OUTPUTS


def test_each_round_of_calls_and_results_is_opened_and_closed_once() -> None:
    for count in (1, 3):
        round_ = [assistant("", None, *[F] * count), *[result("R")] * count]
        text = V3.render([user("u"), *round_, *round_, assistant("done")])
        for mark in ("calls^begin", "calls^end", "outputs^begin", "outputs^end"):
            assert text.count(golden(f"<~tool^{mark}~>")) == 2
        assert text.count(golden("<~tool^call^end~>")) == 2 * count
        assert text.count(golden("<~end^of^sentence~>")) == 3


plain_chats = st.lists(st.tuples(adversarial_text, adversarial_text), min_size=1, max_size=3)


def chat(
    systems: list[str], pairs: list[tuple[str, str]], *, ends_with_user: bool
) -> list[Message]:
    turns = [turn for u, a in pairs for turn in (user(u), assistant(a))]
    return [*map(system, systems), *(turns[:-1] if ends_with_user else turns)]


@examples(60)
@given(systems=st.lists(adversarial_text, max_size=2), pairs=plain_chats, asks=st.booleans())
def test_plain_chats_equal_the_v3_template(
    v3_template: str, systems: list[str], pairs: list[tuple[str, str]], asks: bool
) -> None:
    turns = chat(systems, pairs, ends_with_user=asks)
    theirs = run_template(v3_template, as_dicts(turns), add_generation_prompt=asks)
    assert V3.render(turns, generation_prompt=asks) == theirs


@examples(60)
@given(systems=st.lists(adversarial_text, max_size=2), pairs=plain_chats, asks=st.booleans())
def test_plain_chats_equal_the_r1_template(
    r1_template: str, systems: list[str], pairs: list[tuple[str, str]], asks: bool
) -> None:
    # The template cuts at a spelled `</think>`; to us that is text.
    pairs = [(u, a.replace("</think>", "")) for u, a in pairs]
    turns = chat(systems, pairs, ends_with_user=asks)
    theirs = run_template(r1_template, as_dicts(turns), add_generation_prompt=asks)
    assert R1.render(turns, thinking=False, generation_prompt=asks) == theirs


def test_two_calls_equal_the_v3_template_and_one_call_departs_from_it(v3_template: str) -> None:
    two = [user("u"), assistant("", None, F, G)]
    assert V3.render(two) == run_template(v3_template, as_dicts(two))
    one = [user("u"), assistant("", None, F)]
    # The template forgets to close the block of a single call.
    lost = golden("<~tool^calls^end~><~end^of^sentence~>")
    assert V3.render(one) == run_template(v3_template, as_dicts(one)) + lost


def test_calls_and_results_equal_the_r1_template_but_for_a_line_break(r1_template: str) -> None:
    turns = [user("u"), assistant("c", None, F, G), result("R1"), result("R2"), assistant("done")]
    theirs = run_template(r1_template, as_dicts(turns))
    gap = golden("<~tool^output^end~>\n<~tool^output^begin~>")
    assert R1.render(turns).replace(gap, gap.replace("\n", "")) == theirs


def test_r1_opens_the_think_block_and_drops_past_reasoning() -> None:
    past = [user("u1"), assistant("a1", "r1"), user("u2")]
    begin = golden("<~begin^of^sentence~><~User~>u1<~Assistant~>a1<~end^of^sentence~><~User~>u2")
    assert R1.render(past, generation_prompt=True) == begin + golden("<~Assistant~><think>\n")
    assert R1.render(past, generation_prompt=True, thinking=False) == begin + golden(
        "<~Assistant~>"
    )
    whole = golden("<~Assistant~><think>\nr2\n</think>\n\na2<~end^of^sentence~>")
    for thinking in (None, True, False):
        assert R1.render([*past, assistant("a2", "r2")], thinking=thinking) == begin + whole


def test_r1_thinks_by_itself_after_results() -> None:
    turns = [user("u"), assistant("", "r1", F), result("R1")]
    prompt = R1.render(turns, generation_prompt=True)
    assert prompt.endswith(golden("<~tool^outputs^end~>"))
    assert "r1" not in prompt.replace("R1", "")
    text = R1.render([*turns, assistant("a", "r2")])
    assert text == prompt + golden("<think>\nr2\n</think>\n\na<~end^of^sentence~>")
    assert R1.parse(text[len(prompt) :]) == assistant("a", "r2")


@pytest.mark.parametrize(
    ("text", "thinking", "reasoning", "content"),
    [
        ("r\n</think>\n\na", True, "r", "a"),
        ("r</think>a", True, "r", "a"),
        ("\nr\n\n</think>\n\n\na\n", True, "\nr\n", "\na\n"),
        ("<think>\nr\n</think>\n\na", False, "r", "a"),
        ("<think>r", False, "r", ""),
        ("a <think>", False, None, "a <think>"),
        ("<thin", False, None, "<thin"),
        ("a</think>b", False, None, "a</think>b"),
    ],
)
def test_r1_reads_think_blocks(
    text: str, thinking: bool, reasoning: str | None, content: str
) -> None:
    parsed = R1.parse(text, thinking=thinking)
    assert (parsed.reasoning_content, parsed.content) == (reasoning, content)


TOOL_TEXT = """You are a helpful Assistant.

## Tools

### Function

You have the following functions available:

- `get_time`:
```json
{
    "name": "get_time",
    "description": "Tell the time",
    "parameters": {
        "type": "object"
    }
}
```"""


@pytest.mark.parametrize("chat_format", [V3, R1])
def test_tools_are_described_as_in_the_model_card(chat_format: ChatFormat) -> None:
    tool = Tool("get_time", "Tell the time", {"type": "object"})
    text = chat_format.render([user("u")], tools=[tool])
    assert text == golden("<~begin^of^sentence~>") + TOOL_TEXT + golden("<~User~>u")
    given_system = chat_format.render([system("S"), user("u")], tools=[tool, Tool("g")])
    assert given_system.startswith(golden("<~begin^of^sentence~>S\n\n## Tools\n\n### Function"))
    assert "```\n\n- `g`:\n```json\n" in given_system


def test_an_answer_in_json_is_demanded_in_the_system_text() -> None:
    text = V3.render([system("S"), user("u")], reply_schema={})
    assert text == golden(
        "<~begin^of^sentence~>S\n\n## Response Format\n\nReply with JSON object ONLY.<~User~>u"
    )
