"""R1-Zero's template: table 1 of the paper, and what models make of it."""

import json

import pytest
import tokenizers

from tests.unit.text.goldens import assistant, user
from ziphius.core.errors import ChatError
from ziphius.text.byte_level import added_token
from ziphius.text.chat import CHAT_FORMATS
from ziphius.text.parts import TokenizerParts
from ziphius.text.tokenizer import Tokenizer

PLAIN = CHAT_FORMATS["plain"]
PROMPT = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves "
    "it. The assistant first thinks about the reasoning process in the mind and then provides the "
    "user with the answer. The reasoning process and answer are enclosed within <think> </think> "
    "and <answer> </answer> tags, respectively, i.e., <think> reasoning process here </think> "
    "<answer> answer here </answer>. User: {prompt}. Assistant:"
)


def test_the_published_prompt() -> None:
    assert PLAIN.render([user("{prompt}")], generation_prompt=True) == PROMPT


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        (" <think> r </think> <answer> a </answer>", "r", "a"),
        ("<think>\nr\n</think>\n\n<answer>a</answer>\n", "\nr\n", "a"),
        ("<think> r", "r", ""),
        (" <think> r </think> a", "r", "a"),
        (" <answer>a</answer>b", None, "ab"),
        (" a <think>", None, "a <think>"),
        ("", None, ""),
    ],
)
def test_what_models_write(text: str, reasoning: str | None, content: str) -> None:
    parsed = PLAIN.parse(text)
    assert (parsed.reasoning_content, parsed.content) == (reasoning, content)


def base_model(tiny: Tokenizer, *, add_bos: bool, eos: tuple[str, ...]) -> Tokenizer:
    """The vocabulary of a model of another family: its end token has another name."""
    spec = json.loads(tiny._parts.backend.to_str())
    spec["added_tokens"].append(added_token(512, "<|endoftext|>", flagged=True))
    backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    return Tokenizer(TokenizerParts(backend, "<|endoftext|>", eos, add_bos=add_bos))


def test_a_base_model_ends_its_answer_with_its_own_token(tiny: Tokenizer) -> None:
    other = base_model(tiny, add_bos=False, eos=("<|endoftext|>",))
    encoded = PLAIN.encode([user("u"), assistant("a", "r")], other)
    assert (encoded.ids[-1], encoded.loss_mask[-1]) == (512, True)
    assert PLAIN.stop_ids(other) == (512,)
    assert not set(encoded.ids[:-1]) & other.special_ids
    with pytest.raises(ChatError, match="no token that ends a text"):
        PLAIN.encode([user("u"), assistant("a")], base_model(tiny, add_bos=False, eos=()))


def test_the_vocabulary_says_whether_a_token_begins_the_text(tiny: Tokenizer) -> None:
    other = base_model(tiny, add_bos=True, eos=("<|endoftext|>",))
    encoded = PLAIN.encode([user("u")], other, generation_prompt=True)
    assert (encoded.ids[0], encoded.loss_mask[0]) == (512, False)
    assert other.decode(encoded.ids[1:]) == PROMPT.replace("{prompt}", "u")
