from collections import Counter

import pytest

from ziphius.core.errors import ChatError
from ziphius.data.think_blocks import READ, SPELLED, has_think_block, with_reasoning
from ziphius.text.chat import CHAT_FORMATS, Message, get_chat_format
from ziphius.text.tokenizer import Tokenizer
from ziphius.text.vocabulary import deepseek_tokenizer

TOKENIZER = deepseek_tokenizer(512)
THINKING = [name for name, chat_format in CHAT_FORMATS.items() if has_think_block(chat_format)]


class NoTokens(Tokenizer):
    """A vocabulary without tokens for the tags."""

    def __init__(self) -> None:
        pass

    def has_token(self, text: str) -> bool:
        return False


def read(content: str, reasoning: str | None = None, name: str = "deepseek-r1") -> Message:
    message = Message("assistant", content, reasoning)
    return with_reasoning(message, get_chat_format(name), TOKENIZER, Counter())


@pytest.mark.parametrize("name", THINKING)
@pytest.mark.parametrize(
    ("content", "reasoning", "answer"),
    [
        ("<think>\nadd them\n</think>\n\n5", "add them", "5"),
        ("<think>add them</think>5", "add them", "5"),
        ("\n <think> add them </think> 5\n", "add them", "5\n"),
        ("<think>\r\nadd them\r\n</think>\r\n\r\n5", "add them", "5"),
        ("<think>\n\n</think>\n\n5", None, "5"),
        ("<think></think>5", None, "5"),
        ("<think>a\n\nb</think>\n    x = 1\n", "a\n\nb", "    x = 1\n"),
        ("<think>add</think>", "add", ""),
        ("add them\n</think>\n\n5", "add them", "5"),
        ("<thinking>no tag of ours</thinking>", None, "<thinking>no tag of ours</thinking>"),
        ("5", None, "5"),
    ],
)
def test_a_block_becomes_the_reasoning(
    name: str, content: str, reasoning: str | None, answer: str
) -> None:
    assert read(content, name=name) == Message("assistant", answer, reasoning)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("<think>\nadd them\n5", "never closes <think>"),
        ("<think>", "never closes"),
        ("<think>a</think>5<think>b</think>6", "more than one"),
        ("<think>a<think>b</think></think>5", "more than one"),
        ("<think>a</think>b</think>5", "more than one"),
        ("<think>a</think>write <think> first", "more than one"),
        ("Sure. <think>a</think>5", "text before <think>"),
        ("The tag </think> closes it.", "has </think> without <think>"),
        ("</think>5<think>", "text before <think>"),
    ],
)
def test_what_cannot_be_parsed_is_refused(content: str, problem: str) -> None:
    with pytest.raises(ChatError, match=problem):
        read(content)


def test_reasoning_twice_must_be_the_same() -> None:
    assert read("<think>\nadd\n</think>\n\n5", "add") == Message("assistant", "5", "add")
    with pytest.raises(ChatError, match="differs from it"):
        read("<think>\nadd\n</think>\n\n5", "multiply")
    with pytest.raises(ChatError, match="differs from it"):
        read("<think></think>5", "multiply")


def test_tags_around_a_reasoning_come_off() -> None:
    assert read("5", "<think>\nadd\n</think>") == Message("assistant", "5", "add")
    assert read("5", " as it is\n") == Message("assistant", "5", " as it is\n")
    with pytest.raises(ChatError, match="holds <think> tags"):
        read("5", "first <think> then")


def test_a_format_without_a_block_keeps_text_only_if_the_vocabulary_has_no_token() -> None:
    message, changes = Message("assistant", "<think>a</think>5"), Counter[str]()
    chatml = get_chat_format("chatml")
    with pytest.raises(ChatError, match="chat format chatml has no place"):
        with_reasoning(message, chatml, TOKENIZER, changes)
    assert with_reasoning(message, chatml, NoTokens(), changes) == message
    assert changes == {SPELLED: 1}
    with_reasoning(message, get_chat_format("chatml-think"), NoTokens(), changes)
    assert changes == {SPELLED: 1, READ: 1}
