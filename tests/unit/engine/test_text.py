"""`engine/text.py`: no half characters, nothing of a stop string, however the text is cut."""

import dataclasses
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ziphius.core.device import resolve_device
from ziphius.core.errors import ConfigError
from ziphius.engine.build import build_engine
from ziphius.engine.config import EngineConfig
from ziphius.engine.drafts.ngram import NgramProposer
from ziphius.engine.generate import Completion, Request, generate
from ziphius.engine.load import Loaded, load_preset
from ziphius.engine.speculation_config import SpeculationConfig
from ziphius.engine.text import Ask, StopStrings, TextPiece, stream_text
from ziphius.ops.sampling_config import SamplingConfig

LETTERS = st.text("ab\n", max_size=12)


def shown(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    watcher = StopStrings(stops)
    text = "".join(map(watcher.push, pieces)) + watcher.flush()
    return text, watcher.found


def plainly(stops: list[str], text: str) -> tuple[str, bool]:
    """Look at every beginning of the text in turn, which is the definition."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@given(st.lists(LETTERS, max_size=8), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3))
def test_any_cut_shows_the_text_before_the_first_complete_stop_string(pieces, stops):
    assert shown(stops, pieces) == plainly(stops, "".join(pieces))


def test_only_what_may_still_become_a_stop_string_is_held_back():
    watcher = StopStrings(["STOP", "\n\n"])
    assert watcher.push("a\nS") == "a\n"
    assert watcher.push("T") == ""
    assert watcher.push("x") == "STx"
    assert watcher.push("\n") == ""
    assert watcher.flush() == "\n"
    assert watcher.push("one\n\ntwo") == "one"
    assert watcher.found
    assert watcher.push("three") + watcher.flush() == ""


def test_an_empty_stop_string_is_an_error():
    with pytest.raises(ConfigError, match="stop string is empty"):
        StopStrings(["a", ""])


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load_preset("v3-tiny", device=resolve_device("cpu"))


def requests(loaded: Loaded, max_new_tokens: int = 40) -> list[Request]:
    return [
        Request(
            loaded.tokenizer.encode(prompt),
            max_new_tokens,
            sequence_id=row,
            sampling=SamplingConfig(seed=2),
        )
        for row, prompt in enumerate(["Call me Ishmael.", "\u9cb8"])
    ]


def streamed(
    loaded: Loaded, asked: list[Request], stop=(), limit: int | None = None, speculation=None
) -> Iterator:
    limit = limit or loaded.tokenizer.vocab_size
    config = EngineConfig(num_blocks=32, speculation=speculation)
    engine = build_engine(loaded.model, config, vocab_limit=limit)
    return stream_text(engine, loaded.tokenizer, [Ask(request, stop) for request in asked])


def collect(
    loaded: Loaded, stop: list[str], max_new_tokens: int = 40, speculation=None
) -> list[tuple[str, str]]:
    texts, reasons = ["", ""], ["", ""]
    asked = requests(loaded, max_new_tokens)
    for step in streamed(loaded, asked, stop, speculation=speculation):
        for piece in step:
            assert reasons[piece.row] == "", "nothing comes after the last piece"
            texts[piece.row] += piece.text
            reasons[piece.row] = piece.finish_reason or ""
    return list(zip(texts, reasons, strict=True))


def test_the_stream_joins_to_the_decoded_completion(loaded):
    completions = generate(loaded.model, requests(loaded))
    assert collect(loaded, []) == [
        (loaded.tokenizer.decode(completion.token_ids), "length") for completion in completions
    ]


def test_a_stop_string_ends_its_sequence_alone(loaded):
    (first, _), (second, _) = collect(loaded, [])
    windows = (first[start : start + 4] for start in range(10, len(first) - 4))
    stop = next(window for window in windows if window not in second)
    (cut, reason), (whole, other_reason) = collect(loaded, [stop])
    assert cut == first[: first.index(stop)]
    assert (reason, other_reason) == ("stop", "length")
    assert whole == second


def test_a_stop_string_ends_its_sequence_in_the_engine_too(loaded):
    request = requests(loaded)[0]
    engine = build_engine(loaded.model, EngineConfig(num_blocks=32))
    [(text, _), _] = collect(loaded, [])
    asked = [Ask(request, [text[5:8]])]
    pieces = [p for step in stream_text(engine, loaded.tokenizer, asked) for p in step]
    assert pieces[-1].finish_reason == "stop"
    assert engine.metrics()["generation_tokens"] == len(pieces) < request.max_new_tokens


class Foreseeing(NgramProposer):
    """Drafts the very tokens that come."""

    def __init__(self, completions: Sequence[Completion]) -> None:
        super().__init__(1, 1)
        self.completions = completions

    def propose(self, sequences, lengths, draw):
        done = [len(s.tokens) - s.num_prompt for s in sequences]
        return [
            list(self.completions[s.sequence_id].token_ids[start : start + length])
            for s, start, length in zip(sequences, done, lengths, strict=True)
        ]


def test_tokens_that_come_with_the_end_of_a_stop_string_show_nothing(loaded, monkeypatch):
    completions = generate(loaded.model, requests(loaded))
    (first, _), (second, _) = collect(loaded, [])
    foreseeing = Foreseeing(completions)
    monkeypatch.setattr("ziphius.engine.build.build_proposer", lambda *_: foreseeing)
    settings = {"method": "ngram", "num_speculative_tokens": 8, "adaptive": False}
    speculation = SpeculationConfig.model_validate(settings)
    for start in (10, 13, 16, 19):
        stop = first[start : start + 4]
        if stop in second:
            continue
        (cut, reason), other = collect(loaded, [stop], speculation=speculation)
        assert (cut, reason) == (first[: first.index(stop)], "stop")
        assert other == (second, "length")


def test_text_held_back_for_a_stop_string_comes_out_at_the_end(loaded):
    (text, _), _ = collect(loaded, [])
    assert collect(loaded, [text[-2:] + "never"])[0] == (text, "length")


def test_a_stop_token_shows_no_text(loaded):
    model, tokenizer, _ = loaded
    [full] = generate(model, requests(loaded)[:1])
    stop_id = full.token_ids[6]
    first = full.token_ids.index(stop_id)
    [request] = [
        Request(r.prompt_ids, 40, sequence_id=0, sampling=r.sampling, stop_ids=(stop_id,))
        for r in requests(loaded)[:1]
    ]
    pieces = [step[0] for step in streamed(loaded, [request])]
    assert pieces[-1].finish_reason == "stop"
    assert "".join(piece.text for piece in pieces) == tokenizer.decode(full.token_ids[:first])


def test_ids_the_tokenizer_lacks_are_never_drawn(loaded):
    model, _, _ = load_preset("v3-tiny", device=torch.device("cpu"))
    with torch.no_grad():
        model.lm_head.weight[500:] = 50.0  # what padding rows of an embedding could hold

    damaged = loaded._replace(model=model)
    for step in streamed(damaged, requests(loaded), limit=500):
        assert all(piece.output.token_id < 500 for piece in step)


def test_a_stop_string_does_not_count_in_the_first_pieces():
    watcher = StopStrings(["ab"], min_pushes=2)
    assert [watcher.push(piece) for piece in ("ab", "a", "b", "ab")] == ["ab", "a", "b", ""]
    assert watcher.found


def test_samples_of_one_request_have_their_own_text(loaded):
    [request] = requests(loaded)[:1]
    engine = build_engine(loaded.model, EngineConfig(num_blocks=32))
    asked = [Ask(dataclasses.replace(request, n=3))]
    texts = ["", "", ""]
    for step in stream_text(engine, loaded.tokenizer, asked):
        for piece in step:
            texts[piece.sample] += piece.text
    alone = [dataclasses.replace(request, sequence_id=number) for number in range(3)]
    completions = generate(loaded.model, alone)
    assert texts == [loaded.tokenizer.decode(one.token_ids) for one in completions]
    assert len(set(texts)) == 3


def test_what_is_asked_is_taken_as_there_is_room(loaded):
    taken = []

    def asked() -> Iterator[Ask]:
        for number in range(20):
            taken.append(number)
            yield Ask(requests(loaded, 4)[0])

    engine = build_engine(loaded.model, EngineConfig(max_num_seqs=2, num_blocks=32))
    steps = stream_text(engine, loaded.tokenizer, asked())
    next(steps)
    assert len(taken) <= 4
    rows = {piece.row for step in steps for piece in step}
    assert rows == set(range(20))
    assert not engine.has_work


def test_a_refused_request_is_told_in_its_place_or_raised(loaded):
    good = requests(loaded, 4)[0]
    asked = [
        Ask(dataclasses.replace(good, max_new_tokens=10**6)),
        ConfigError("no such row"),
        Ask(good),
    ]
    engine = build_engine(loaded.model, EngineConfig(num_blocks=32))
    pieces = [
        piece
        for step in stream_text(engine, loaded.tokenizer, asked, keep_errors=True)
        for piece in step
    ]
    first, second, *rest = pieces
    assert (first.row, first.finish_reason) == (0, "error")
    assert "context" in first.error
    assert second == TextPiece(1, 0, "", "error", None, "no such row")
    assert [piece.row for piece in rest] == [2] * 4
    for place in range(2):
        with pytest.raises(ConfigError, match=["context", "no such row"][place]):
            list(stream_text(engine, loaded.tokenizer, asked[place:]))
        engine.check()
        assert not engine.has_work
