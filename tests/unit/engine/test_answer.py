"""`engine/answer.py` and `answering.py`: prompts in and out of chat formats, answers as events."""

import pytest
import torch

from ziphius.core.errors import ConfigError
from ziphius.engine.answer import Prompt, chat_prompt, raw_prompt, room_left
from ziphius.engine.answering import Question, stream_answers
from ziphius.engine.build import build_engine
from ziphius.engine.config import EngineConfig
from ziphius.engine.generate import generate
from ziphius.engine.load import Loaded, load_preset
from ziphius.engine.requests import RequestMaker
from ziphius.engine.sampling_params import SamplingParams, StructuredOutputs
from ziphius.engine.text import TextPiece
from ziphius.ops.sampling_config import SamplingConfig
from ziphius.text.chat import ContentText, Message, ReasoningText, get_chat_format


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load_preset("v3-tiny", device=torch.device("cpu"))


def answers(loaded: Loaded, prompts: list[Prompt], stop: tuple[str, ...] = ()) -> list[list]:
    events: list[list] = [[] for _ in prompts]
    params = SamplingParams(max_tokens=30, seed=1, stop=stop)
    steps = stream_answers(
        build_engine(loaded.model, EngineConfig(num_blocks=32)),
        loaded.tokenizer,
        RequestMaker(loaded.tokenizer),
        [Question(prompt, params, sequence_id=row) for row, prompt in enumerate(prompts)],
    )
    for step in steps:
        for piece in step:
            events[piece.row] += piece.events
    return events


def scripted(monkeypatch: pytest.MonkeyPatch, *texts: str) -> None:
    """Let the model write these texts, one character a token."""

    def stream_text(engine, tokenizer, asked, *, keep_errors):
        assert len(list(asked)) == len(texts)
        for index in range(max(map(len, texts))):
            pieces = []
            for row, text in enumerate(texts):
                if index < len(text):
                    reason = "stop" if index == len(text) - 1 else None
                    pieces.append(TextPiece(row, 0, text[index], reason))
            yield pieces

    monkeypatch.setattr("ziphius.engine.answering.stream_text", stream_text)


def text_of(events: list, kind: type) -> str:
    return "".join(event.text for event in events if isinstance(event, kind))


def test_a_raw_prompt_begins_with_the_token_that_begins_texts(loaded):
    tokenizer = loaded.tokenizer
    prompt = raw_prompt("Call me", tokenizer)
    assert prompt.ids == [tokenizer.bos_id, *tokenizer.encode("Call me")]
    assert prompt.stop_ids == tokenizer.eos_ids
    assert raw_prompt("", tokenizer).ids == [tokenizer.bos_id]


def test_text_that_spells_a_special_token_stays_text(loaded):
    prompt = raw_prompt("<think>", loaded.tokenizer)
    assert not set(prompt.ids[1:]) & loaded.tokenizer.special_ids


def test_a_raw_answer_is_all_content(loaded):
    prompt = raw_prompt("Call me", loaded.tokenizer)
    [events] = answers(loaded, [prompt])
    [text] = [text_of(events, ContentText)]
    assert text
    assert text_of(events, ReasoningText) == ""


def test_a_chat_prompt_is_what_the_format_encodes(loaded):
    chat_format = get_chat_format("deepseek-v3.1")
    messages = [Message("system", "Be brief."), Message("user", "Hi")]
    prompt = chat_prompt(messages, loaded.tokenizer, chat_format, thinking=True)
    encoded = chat_format.encode(messages, loaded.tokenizer, thinking=True, generation_prompt=True)
    assert prompt.ids == encoded.ids
    assert prompt.thinking
    assert not chat_prompt(messages, loaded.tokenizer, chat_format).thinking
    assert set(loaded.tokenizer.eos_ids) <= set(prompt.stop_ids)


def test_thinking_and_answer_are_told_apart_in_each_row(loaded, monkeypatch):
    prompt = chat_prompt([Message("user", "Hi")], loaded.tokenizer, get_chat_format("deepseek-r1"))
    scripted(monkeypatch, "Hm.</think>Yes.", "No end", "</think>x <")
    first, second, third = answers(loaded, [prompt] * 3)
    assert text_of(first, ReasoningText) == "Hm."
    assert text_of(first, ContentText) == "Yes."
    assert text_of(second, ReasoningText) == "No end"
    assert text_of(second, ContentText) == ""
    assert text_of(third, ContentText) == "x <"


def test_events_join_to_what_the_model_wrote(loaded):
    prompts = [raw_prompt(text, loaded.tokenizer) for text in ("One", "Two")]
    texts = [text_of(events, ContentText) for events in answers(loaded, prompts)]
    from ziphius.engine.generate import Request

    requests = [
        Request(prompt.ids, 30, row, SamplingConfig(seed=1), prompt.stop_ids)
        for row, prompt in enumerate(prompts)
    ]
    for text, completion in zip(texts, generate(loaded.model, requests), strict=True):
        ids = [i for i in completion.token_ids if i not in loaded.tokenizer.eos_ids]
        assert text == loaded.tokenizer.decode(ids)


def test_room_is_what_the_context_leaves(loaded):
    context = loaded.model.config.max_position_embeddings
    assert room_left(loaded, Prompt([1] * 10, (), None)) == context - 10
    with pytest.raises(ConfigError, match=r"2,048 tokens and fills"):
        room_left(loaded, Prompt([1] * context, (), None))


def test_closing_an_answer_early_leaves_an_engine_that_can_answer_again(loaded):
    engine = build_engine(loaded.model, EngineConfig(num_blocks=8))
    for _ in range(2):
        steps = stream_answers(
            engine,
            loaded.tokenizer,
            RequestMaker(loaded.tokenizer),
            [Question(raw_prompt("x", loaded.tokenizer), SamplingParams(max_tokens=30))],
        )
        next(steps)
        assert engine.has_work
        steps.close()
        assert not engine.has_work
        engine.check()


def test_a_question_that_cannot_be_asked_costs_itself_alone(loaded):
    pytest.importorskip("llguidance")
    prompt = raw_prompt("x", loaded.tokenizer)
    wrong = [
        SamplingParams(structured_outputs=StructuredOutputs(regex="(")),
        SamplingParams(structured_outputs=StructuredOutputs(regex="a"), ignore_eos=True),
        SamplingParams(thinking_token_budget=3),
        SamplingParams(max_tokens=0, prompt_logprobs=0, n=2),
    ]
    engine = build_engine(loaded.model, EngineConfig(num_blocks=8))
    with RequestMaker(loaded.tokenizer) as maker:
        questions = [Question(prompt, params) for params in (*wrong, SamplingParams(max_tokens=3))]
        steps = stream_answers(engine, loaded.tokenizer, maker, questions, keep_errors=True)
        pieces = [piece for step in steps for piece in step]
    errors = [piece.piece.error for piece in pieces[:4]]
    words = ["regex", "leave out ignore_eos", "thinking_token_budget has no", "set n to 1"]
    assert all(word in error for word, error in zip(words, errors, strict=True))
    assert [piece.row for piece in pieces[4:]] == [4] * 3
