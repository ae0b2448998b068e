"""What is learned of a conversation is what its prompts ask for, in every format."""

import json
from collections import Counter
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from tests.unit.text.strategies import adversarial_text, clean_text
from ziphius.core.errors import ChatError
from ziphius.data.turns import MASKED, OPENINGS, Sample, fitted, mode, text_sample, turn_samples
from ziphius.text import special
from ziphius.text.byte_level import added_token
from ziphius.text.chat import CHAT_FORMATS, ChatFormat, Message, ToolCall, get_chat_format
from ziphius.text.parts import TokenizerParts
from ziphius.text.tokenizer import Tokenizer
from ziphius.text.vocabulary import deepseek_tokenizer

LLAMA = (special.BEGIN_OF_TEXT, special.START_HEADER, special.END_HEADER, special.EOT_ID)
NAMES = list(CHAT_FORMATS)
MANY_TURNS = [name for name in NAMES if name != "plain"]
THINKING = [name for name in MANY_TURNS if True in CHAT_FORMATS[name].thinking_modes]
WITH_TOOLS = [name for name in NAMES if CHAT_FORMATS[name].has_tools]


def _everyone() -> Tokenizer:
    """A vocabulary with the marks of all formats."""
    spec = json.loads(deepseek_tokenizer(512)._parts.backend.to_str())
    spec["added_tokens"] += [
        added_token(512, special.IM_START, flagged=True),
        added_token(513, special.IM_END, flagged=True),
        *(added_token(514 + i, token, flagged=True) for i, token in enumerate(LLAMA)),
    ]
    backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    return Tokenizer(TokenizerParts(backend, special.BOS, (special.EOS,), special.PAD, True))


TOKENIZER = _everyone()


def user(content: str = "u") -> Message:
    return Message("user", content)


def assistant(content: str = "a", reasoning: str | None = None, *calls: str) -> Message:
    return Message("assistant", content, reasoning, tuple(map(ToolCall, calls)))


def samples(messages: list[Message], name: str, **options: Any) -> list[Sample]:
    options.setdefault("changes", Counter())
    return turn_samples(messages, (), TOKENIZER, get_chat_format(name), **options)


def spans(sample: Sample) -> list[tuple[int, int]]:
    """Where the learned runs of a sample begin and end."""
    ids, mask = sample
    borders = [i for i in range(len(ids) + 1) if [False, *mask, False][i : i + 2] in BORDERS]
    return list(zip(borders[::2], borders[1::2], strict=True))


BORDERS = ([False, True], [True, False])


def learned(sample: Sample) -> list[str]:
    return [TOKENIZER.decode(sample[0][start:end]) for start, end in spans(sample)]


def asked(messages: list[Message], place: int, chat_format: ChatFormat) -> list[list[int]]:
    """The prompts that inference shows before a turn, one for each way of thinking."""
    return [
        chat_format.encode(
            messages[:place], TOKENIZER, thinking=thinking, generation_prompt=True
        ).ids
        for thinking in chat_format.thinking_modes
    ]


@st.composite
def conversations(draw: st.DrawFn, chat_format: ChatFormat) -> list[Message]:
    """Turns as people store them: reasoning in some, and rounds of calls where there are tools."""
    thinks = chat_format.opens_own_thinking or True in chat_format.thinking_modes
    calls = chat_format.has_tools and chat_format.thinks_with_tools
    text = adversarial_text.filter(lambda text: bool(text.strip()))
    reasons = st.one_of(st.none(), clean_text) if thinks else st.none()
    messages = [Message("system", draw(text))] if "system" in chat_format.roles else []
    for _ in range(1 if chat_format.name == "plain" else draw(st.integers(1, 4))):
        messages.append(user(draw(text)))
        while calls and draw(st.booleans()):
            messages.append(assistant(draw(text), draw(reasons), "f"))
            messages.append(Message("tool", draw(text)))
        messages.append(assistant(draw(text), draw(reasons)))
    return messages


@pytest.mark.parametrize("name", NAMES)
@examples(25)
@given(data=st.data())
def test_every_learned_turn_follows_the_prompt_that_inference_shows(
    name: str, data: st.DataObject
) -> None:
    chat_format = get_chat_format(name)
    messages = data.draw(conversations(chat_format))
    spoken = [place for place, message in enumerate(messages) if message.role == "assistant"]
    completions = {}
    for place in spoken:
        thinking = mode(messages, place, chat_format, None)
        own = chat_format.encode(messages[: place + 1], TOKENIZER, thinking=thinking)
        start, end = spans((own.ids, own.loss_mask))[-1]
        assert own.ids[:start] in asked(messages, place, chat_format)
        completions[place] = own.ids[:end]
        if reasoning := (messages[place].reasoning_content or "").strip("\n"):
            assert reasoning in chat_format.render(messages[: place + 1], thinking=thinking)
    for earlier_turns in ("expand", "mask"):
        found = [
            sample[0][:end]
            for sample in samples(messages, name, earlier_turns=earlier_turns)
            for _, end in spans(sample)
        ]
        if earlier_turns == "expand":
            assert sorted(found) == sorted(completions.values())
        else:
            assert all(ids in completions.values() for ids in found)
            assert completions[spoken[-1]] in found
        assert len(found) == len({tuple(ids) for ids in found})


@pytest.mark.parametrize("name", THINKING)
def test_a_turn_that_thought_is_never_learned_bare(name: str) -> None:
    messages = [user(), assistant("5", "first"), user(), assistant("6", "second")]
    first, second = samples(messages, name)
    assert "first" in learned(first)[-1]
    assert [("second" in text, "first" in text) for text in learned(second)] == [(True, False)]
    changes = Counter[str]()
    [only] = samples(messages, name, earlier_turns="mask", changes=changes)
    assert only == second
    assert changes == {MASKED: 1, OPENINGS: 0}


def test_a_turn_that_a_past_one_does_not_look_like_has_its_own_sample() -> None:
    """Qwen3 asks for a direct answer behind an empty think block, which past turns do not have."""
    messages = [user("1"), assistant("2"), user("3"), assistant("4")]
    first, second = samples(messages, "qwen3")
    assert [len(learned(one)) for one in (first, second)] == [1, 1]
    assert second[0][: len(first[0])] != first[0]


@pytest.mark.parametrize("name", [name for name in MANY_TURNS if name != "qwen3"])
def test_a_conversation_without_reasoning_is_one_sample_as_it_always_was(name: str) -> None:
    messages = [user("1"), assistant("2"), user("3"), assistant("4"), user("5"), assistant("6")]
    whole = get_chat_format(name).encode(messages, TOKENIZER)
    assert samples(messages, name) == [(whole.ids, whole.loss_mask)]


def test_turns_that_answer_at_once_are_learned_beside_one_that_thinks() -> None:
    messages = [user(), assistant("1"), user(), assistant("2", "why"), user(), assistant("3")]
    thinks, direct = samples(messages, "deepseek-v3.1")
    assert len(learned(thinks)) == 1
    assert [text[0] for text in learned(direct)] == ["1", "3"]


def test_a_round_of_calls_is_one_sample_where_reasoning_stays() -> None:
    messages = [
        *(user(), assistant("look", "must look", "f"), Message("tool", "4")),
        *(assistant("four"), user("thanks"), assistant("welcome")),
    ]
    first, second = samples(messages, "deepseek-v3.2")
    assert [text[:3] for text in learned(first)] == ["mus", "</t"]
    assert "must look" not in TOKENIZER.decode(second[0])
    assert len(learned(second)) == 1


@pytest.mark.parametrize("name", MANY_TURNS)
def test_what_is_not_to_be_learned_is_context(name: str) -> None:
    messages = [user("1"), assistant("bad"), user("2"), assistant("good"), user("3")]
    [(ids, mask)] = samples(messages, name, masked_turns=frozenset((1,)))
    assert [text.strip()[:4] for text in learned((ids, mask))] == ["good"]
    assert "bad" in TOKENIZER.decode(ids)
    assert samples(messages, name, masked_turns=frozenset((1, 3))) == []


def test_a_greeting_before_any_question_is_context() -> None:
    messages = [Message("system", "s"), assistant("hello"), user("hi"), assistant("yes?")]
    changes = Counter[str]()
    [sample] = samples(messages, "deepseek-v3", changes=changes)
    assert [text[:4] for text in learned(sample)] == ["yes?"]
    assert changes[OPENINGS] == 1
    assert samples(messages[:2], "deepseek-v3") == []


def test_reasoning_that_a_format_cannot_say_is_refused_in_every_turn() -> None:
    messages = [user(), assistant("5", "lost"), user(), assistant("6")]
    with pytest.raises(ChatError, match="would be lost: chat format deepseek-v3 does not think"):
        samples(messages, "deepseek-v3")
    with pytest.raises(ChatError, match="was asked not to think"):
        samples(messages, "deepseek-v3.1", thinking=False)


def test_a_developer_is_the_system_where_a_format_has_no_such_role() -> None:
    messages = [Message("developer", "be brief"), user(), assistant()]
    for name, role in (("deepseek-v3", "system"), ("deepseek-v3.2", "developer")):
        changes = Counter[str]()
        chat_format = get_chat_format(name)
        said = fitted(messages, chat_format, TOKENIZER, reads_blocks=True, changes=changes)
        assert said[0].role == role
        assert changes.total() == (role == "system")


def test_running_text_is_learned_whole_unless_a_template_has_been_over_it() -> None:
    ids, mask = text_sample("Whales dive.", TOKENIZER)
    assert TOKENIZER.decode(ids) == f"{special.BOS}Whales dive.{special.EOS}"
    assert mask == [False] + [True] * (len(ids) - 1)
    with pytest.raises(ChatError, match=r"spells the special token '<\|im_start\|>'"):
        text_sample("<|im_start|>user\nhi<|im_end|>", TOKENIZER)
