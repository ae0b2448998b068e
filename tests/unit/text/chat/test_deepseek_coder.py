"""The published strings of Coder v1."""

from tests.unit.text.goldens import assistant, golden, system, user
from ziphius.text.chat import CHAT_FORMATS

CODER = CHAT_FORMATS["deepseek-coder"]
SYSTEM = (
    "You are an AI programming assistant, utilizing the DeepSeek Coder model, developed by DeepSeek"
    " Company, and you only answer questions related to computer science. For politically sensitive"
    " questions, security and privacy issues, and other non-computer science questions, you will"
    " refuse to answer.\n"
)


def test_a_conversation_with_the_default_system_text() -> None:
    turns = [user("{u}"), assistant("{a}"), user("{u2}")]
    assert CODER.render(turns, generation_prompt=True) == golden("<~begin^of^sentence~>") + (
        f"{SYSTEM}### Instruction:\n{{u}}\n### Response:\n{{a}}\n<|EOT|>\n"
        "### Instruction:\n{u2}\n### Response:\n"
    )


def test_a_system_text_ends_its_line_and_an_empty_one_leaves_the_default_out() -> None:
    begin, rest = golden("<~begin^of^sentence~>"), "### Instruction:\nu\n"
    assert CODER.render([system("{system}\n"), user("u")]) == f"{begin}{{system}}\n{rest}"
    assert CODER.render([system("{system}"), user("u")]) == f"{begin}{{system}}\n{rest}"
    assert CODER.render([system(""), user("u")]) == begin + rest


def test_the_line_break_before_the_end_token_is_not_part_of_the_answer() -> None:
    assert CODER.parse("a\n\n<|EOT|>x").content == "a\n"
    assert CODER.parse("a<|EOT|>").content == "a"
    assert CODER.parse("a\n").content == "a\n"
