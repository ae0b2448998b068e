"""The published strings of V2 and Coder-V2."""

from tests.unit.text.goldens import assistant, golden, system, user
from ziphius.text.chat import CHAT_FORMATS

V2 = CHAT_FORMATS["deepseek-v2"]
TURNS = [system("{system}"), user("{u}"), assistant("{a}"), user("{u2}")]


def test_a_conversation() -> None:
    assert V2.render(TURNS, generation_prompt=True) == golden(
        "<~begin^of^sentence~>{system}\n\nUser: {u}\n\nAssistant: {a}<~end^of^sentence~>"
        "User: {u2}\n\nAssistant:"
    )


def test_without_a_system_text() -> None:
    assert V2.render([user("u")]) == golden("<~begin^of^sentence~>User: u\n\n")


def test_the_space_before_the_answer_is_not_part_of_it() -> None:
    assert V2.parse(" a b").content == "a b"
    assert V2.parse("  a").content == " a"
    assert V2.parse("a").content == "a"


def test_fill_in_the_middle() -> None:
    assert V2.render_fim("{prefix}", "{suffix}") == golden(
        "<~fim^begin~>{prefix}<~fim^hole~>{suffix}<~fim^end~>"
    )
