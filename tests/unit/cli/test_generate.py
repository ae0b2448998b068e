"""`ziphius generate`: prompts, outputs and refusals, in the process."""

import io
import json

import pytest
import torch
from pydantic import ValidationError

from ziphius.cli.generate import GenerateConfig, generate
from ziphius.core.errors import ChatError, ConfigError, ZiphiusError
from ziphius.engine.load import Loaded, load_preset
from ziphius.engine.sampling_params import SamplingParams
from ziphius.engine.sequence import StepOutput
from ziphius.engine.text import TextPiece


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load_preset("v3-tiny", device=torch.device("cpu"))


@pytest.fixture(autouse=True)
def _load_once(loaded, monkeypatch):
    monkeypatch.setattr("ziphius.engine.load.load_for_inference", lambda name, **options: loaded)


@pytest.fixture
def seen(monkeypatch) -> list:
    """Let the model answer "Hm.</think>Yes." to everything, and collect what it was asked."""
    requests_seen: list = []

    def stream_text(engine, tokenizer, asked, *, keep_errors):
        for row, ask in enumerate(asked):
            if isinstance(ask, ConfigError):
                yield [TextPiece(row, 0, "", "error", None, str(ask))]
                continue
            requests_seen.append(ask.request)
            text = "Hm.</think>Yes."
            for string in ask.stop:
                text = text[: text.index(string)]
            for index, character in enumerate(text):
                reason = "stop" if index == len(text) - 1 else None
                yield [
                    TextPiece(row, n, character, reason, StepOutput(row, n, index, -0.5, reason))
                    for n in range(ask.request.n)
                ]

    monkeypatch.setattr("ziphius.engine.answering.stream_text", stream_text)
    return requests_seen


def run(capsys, *prompts: str, **options) -> tuple[str, str]:
    generate(GenerateConfig(model="v3-tiny", prompts=prompts, **options))
    return capsys.readouterr()


def test_the_answer_goes_to_stdout_and_all_else_to_stderr(seen, capsys):
    out, err = run(capsys, "Hi")
    assert out == "Yes.\n"
    assert "thinking\nHm.\n" in err
    assert "random weights: a preset, not a trained model" in err
    assert "15 tokens in" in err


def test_raw_takes_the_prompt_as_it_is(seen, loaded, capsys):
    out, _ = run(capsys, "Hi", raw=True)
    assert out == "Hm.</think>Yes.\n"
    [request] = seen
    assert request.prompt_ids == [loaded.tokenizer.bos_id, *loaded.tokenizer.encode("Hi")]


def test_a_model_without_a_chat_format_continues_text(seen, loaded, capsys, monkeypatch):
    monkeypatch.setattr(loaded.tokenizer, "chat_format", None)
    assert run(capsys, "Hi")[0] == "Hm.</think>Yes.\n"
    with pytest.raises(ConfigError, match=r"no chat format.*--thinking would have no effect"):
        run(capsys, "Hi", thinking=True)
    assert run(capsys, "Hi", chat_format="deepseek-r1")[0] == "Yes.\n"


def test_system_message_and_format_reach_the_prompt(seen, loaded, capsys):
    run(capsys, "Hi", system="Be brief.", chat_format="deepseek-v3.1", thinking=True)
    text = loaded.tokenizer.decode(seen[0].prompt_ids)
    assert "Be brief." in text
    assert text.endswith("<think>")


def test_sampling_and_stop_strings_reach_the_engine(seen, capsys):
    out, _ = run(capsys, "Hi", temperature=0.7, top_k=9, seed=5, stop=("es.",))
    assert out == "Y\n"
    assert seen[0].sampling == SamplingParams(
        temperature=0.7, top_k=9, seed=5, stop=("es.",), max_tokens=1024
    )


def test_the_models_own_ends_can_be_ignored(seen, loaded, capsys):
    run(capsys, "Hi", raw=True)
    run(capsys, "Hi", raw=True, ignore_eos=True)
    assert [request.stop_ids for request in seen] == [loaded.tokenizer.eos_ids, ()]


def test_every_prompt_gets_n_answers_in_order(seen, capsys):
    out, _ = run(capsys, "One", "Two", n=2)
    headings = [line.split("\u2500")[0].strip() for line in out.splitlines()[::2]]
    assert headings == [
        "prompt 1, answer 1",
        "prompt 1, answer 2",
        "prompt 2, answer 1",
        "prompt 2, answer 2",
    ]
    assert out.splitlines()[1::2] == ["Yes."] * 4
    assert [(request.sequence_id, request.n) for request in seen] == [(0, 2)] * 2
    assert seen[0].prompt_ids != seen[1].prompt_ids


def test_json_holds_text_tokens_and_logprobs(seen, capsys):
    out, _ = run(capsys, "Hi", as_json=True, n=2)
    document = json.loads(out)
    assert document["random_weights"] is True
    assert document["chat_format"] == "deepseek-r1"
    first, second = document["answers"]
    assert (first["text"], first["reasoning"], first["finish_reason"]) == ("Yes.", "Hm.", "stop")
    assert first["token_ids"] == list(range(15))
    assert first["logprobs"] == [-0.5] * 15
    assert (second["prompt"], second["sample"]) == (0, 1)


def test_the_same_command_gives_the_same_answer_and_a_seed_another(capsys):
    first = run(capsys, "Hi", max_new_tokens=12)
    assert run(capsys, "Hi", max_new_tokens=12)[0] == first[0]
    second = run(capsys, "Hi", "Ho", as_json=True, max_new_tokens=12, seed=1)
    alone = run(capsys, "Hi", as_json=True, max_new_tokens=12, seed=1)
    zero = run(capsys, "Hi", as_json=True, max_new_tokens=12, seed=0)
    tokens = [json.loads(out)["answers"][0]["token_ids"] for out, _ in (second, alone, zero)]
    assert tokens[0] == tokens[1] != tokens[2]


def test_max_new_tokens_is_kept_and_defaults_to_what_fits(seen, loaded, capsys):
    run(capsys, "Hi", max_new_tokens=7)
    run(capsys, "Hi")
    run(capsys, "word " * 500)
    context = loaded.model.config.max_position_embeddings
    room = context - len(seen[2].prompt_ids)
    assert [request.max_new_tokens for request in seen] == [7, 1024, room]
    assert room < 1024


def test_a_dash_reads_standard_input(seen, loaded, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe\n"))
    run(capsys, "-", raw=True)
    assert loaded.tokenizer.decode(seen[0].prompt_ids[1:]) == "from a pipe"


def test_standard_input_that_is_no_text_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), encoding="utf-8"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        run(capsys, "-")


def test_an_interruption_keeps_what_was_written(monkeypatch, capsys):
    def stream_text(engine, tokenizer, asked, *, keep_errors):
        assert len(list(asked)) == 1
        yield [TextPiece(0, 0, "half an ans", None, StepOutput(0, 0, 1, 0.0, None))]
        raise KeyboardInterrupt

    monkeypatch.setattr("ziphius.engine.answering.stream_text", stream_text)
    with pytest.raises(KeyboardInterrupt):
        run(capsys, "Hi", raw=True)
    out, err = capsys.readouterr()
    assert out == "half an ans\n"
    assert "1 tokens in" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompts": ()}, "give a prompt"),
        ({"file": "questions.txt"}, "give a prompt"),
        ({"as_json": True, "out": "answers.jsonl"}, "give one of them"),
        ({"logprobs": 0}, "--logprobs would have no effect"),
        ({"adapter": ("a=b",)}, "give the folder alone"),
        ({"adapter": ("a", "b")}, "needs a name of its own"),
        ({"adapter": ("=b",)}, "give a folder, or NAME=FOLDER"),
        ({"adapter": ("a",), "speculative": "ngram"}, "drafts know no adapters"),
        ({"speculative": "model"}, "need each other"),
        ({"draft_model": "v3-tiny"}, "need each other"),
        ({"num_speculative_tokens": 3}, "no effect without --speculative"),
        ({"disk_cache_size": "1GB"}, "no effect without --disk-cache"),
        ({"disk_cache": "x", "disk_cache_size": "huge"}, "give a size such as"),
        ({"cache_dtype": "float12"}, "cache_dtype"),
        ({"regex": "a", "choice": ("b",)}, "regex and choice: an answer has one form"),
        ({"regex": "a", "ignore_eos": True}, "does not let it end"),
        ({"batch_size": 0}, "greater than or equal to 1"),
        ({"prompts": ("-", "-")}, "give it once"),
        ({"n": 0}, "greater than or equal to 1"),
        ({"n": 2, "temperature": 0.0}, "would all be the same"),
        ({"raw": True, "thinking": True}, "--thinking would have no effect"),
        ({"raw": True, "chat_format": "chatml"}, "--chat-format would have no effect"),
        ({"raw": True, "system": "x"}, "--system would have no effect"),
        ({"max_new_tokens": 0}, "greater than or equal to 1"),
        ({"temperature": 0.0, "min_p": 0.1}, "min_p would have no effect"),
    ],
)
def test_options_without_sense_are_refused(options, words):
    with pytest.raises(ValidationError, match=words):
        GenerateConfig(**{"model": "v3-tiny", "prompts": ("x",)} | options)


def test_unknown_formats_and_thinking_without_one_are_refused(capsys):
    with pytest.raises(ChatError, match=r"'v9'.*deepseek-r1"):
        run(capsys, "Hi", chat_format="v9")
    with pytest.raises(ChatError, match="does not think"):
        run(capsys, "Hi", chat_format="deepseek-v3", thinking=True)


def test_a_file_of_texts_has_a_prompt_on_each_line(seen, loaded, capsys, tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n\ntwo\n  three".encode())
    out, _ = run(capsys, file=tmp_path / "a.txt", raw=True, out="-")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["row"], line["outputs"][0]["text"]) for line in lines] == [
        (n, "Hm.</think>Yes.") for n in range(3)
    ]
    encode = loaded.tokenizer.encode
    assert [request.prompt_ids[1:] for request in seen] == [
        encode("one"),
        encode("two"),
        encode("  three"),
    ]


def test_without_out_a_bad_row_is_refused_before_anything_is_asked(seen, capsys, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\nb\n')
    with pytest.raises(ConfigError, match=r"in.jsonl, line 2: no JSON"):
        run(capsys, file=tmp_path / "in.jsonl")
    assert seen == []


def test_standard_input_may_hold_a_prompt_a_line(seen, loaded, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"one\ntwo\n")))
    run(capsys, file="-", raw=True)
    assert len(seen) == 2
    rows = b'{"prompt": "one", "id": 7}\n'
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(rows)))
    out, _ = run(capsys, file="-", out="-")
    assert json.loads(out)["id"] == 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"", "holds no prompts"),
        (b"\xff", "line 1: no UTF-8"),
        (b'{"prompt": "a"}\nb\n', "line 2: no JSON"),
        (b'{"text": "a"}\n', "line 1: must be"),
        (b'{"messages": []}\n', "line 1: must be"),
        (b'{"messages": [{"content": "a"}]}\n', "line 1: A message has no role"),
        (b'{"messages": [{"role": "user", "content": 3}]}\n', "line 1: The content of a message"),
        (b'{"messages": [{"role": "user", "content": "a"}], "tools": [1]}\n', "have no tools"),
        (b'{"messages": [{"role": "x", "content": ""}]}\n', "line 1: Unknown role 'x'"),
        (b'{"prompt": "a", "messages": []}\n', "line 1: has a prompt and messages"),
    ],
)
def test_a_file_of_prompts_that_cannot_be_read(capsys, tmp_path, content, message):
    path = tmp_path / "in.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ZiphiusError, match=message):
        run(capsys, file=path)
