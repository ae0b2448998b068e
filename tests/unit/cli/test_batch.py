"""`cli/batch.py`: files of prompts, answered by a real tiny model, stopped and gone on with."""

import json
from pathlib import Path

import pytest
import torch

from ziphius.cli.generate import GenerateConfig, generate
from ziphius.core.errors import ConfigError, OutputError
from ziphius.core.journal import Journal
from ziphius.engine.engine import Engine
from ziphius.engine.load import Loaded, load_preset

SETTINGS = {"raw": True, "max_new_tokens": 6, "ignore_eos": True, "batch_size": 3, "logprobs": 0}


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load_preset("v3-tiny", device=torch.device("cpu"))


@pytest.fixture(autouse=True)
def _load_once(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ziphius.engine.load.load_for_inference", lambda name, **options: loaded)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [{"id": n, "prompt": f"Whale {n % 5} dives"} for n in range(12)]
    rows[3]["sampling_params"] = {"n": 2, "max_tokens": 2}
    return write(tmp_path / "in.jsonl", rows)


def write(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answered(source: Path, out: Path, **options) -> list[dict]:
    generate(GenerateConfig(model="v3-tiny", file=source, out=out, **SETTINGS | options))
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_every_row_has_a_line_in_its_place(questions: Path, tmp_path: Path) -> None:
    rows = answered(questions, tmp_path / "out.jsonl")
    assert [(row["row"], row["id"]) for row in rows] == [(n, n) for n in range(12)]
    assert [len(row["outputs"]) for row in rows] == [1, 1, 1, 2, *[1] * 8]
    lengths = [len(output["token_ids"]) for row in rows for output in row["outputs"]]
    assert lengths == [6, 6, 6, 2, 2, *[6] * 8]
    assert all(len(o["logprobs"]) == len(o["token_ids"]) for r in rows for o in r["outputs"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_equal_prompts_have_other_answers_unless_they_bring_a_seed(tmp_path: Path) -> None:
    seeded = {"prompt": "a", "sampling_params": {"seed": 4}}
    source = write(tmp_path / "in", [{"prompt": "a"}, seeded, {"prompt": "a"}, seeded])
    ids = [row["outputs"][0]["token_ids"] for row in answered(source, tmp_path / "out")]
    assert ids[0] != ids[2]
    assert ids[1] == ids[3]
    # The second is what a second sample of the first would have been.
    source = write(tmp_path / "in", [{"prompt": "a", "sampling_params": {"n": 2}}])
    [both] = answered(source, tmp_path / "both")
    assert [output["token_ids"] for output in both["outputs"]] == [ids[0], ids[2]]


class Stopped(Exception):
    """Stands for a crash."""


@pytest.mark.parametrize("steps", [1, 7, 9, 20])
def test_what_was_stopped_goes_on_and_asks_nothing_twice(
    questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    expected = answered(questions, tmp_path / "whole", batch_size=1)
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    step, add = Engine.step, Engine.add
    left, asked = [steps], []

    def failing(self):
        left[0] -= 1
        if left[0] < 0:
            raise Stopped
        return step(self)

    def counted(self, request):
        asked.append(request)
        return add(self, request)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", failing)
        with pytest.raises(Stopped):
            answered(questions, out)
    assert not out.exists()
    done = partial.read_text().count("\n") - 1
    monkeypatch.setattr(Engine, "add", counted)
    assert answered(questions, out, batch_size=16) == expected
    assert len(asked) == 12 - done
    assert not partial.exists()


def test_all_was_asked_but_the_end_is_missing(questions: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("ziphius.cli.batch._finish", lambda journal, path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            answered(questions, out)
    monkeypatch.setattr("ziphius.cli.batch.load_model", lambda *_: 1 / 0)
    assert len(answered(questions, out)) == 12


def test_other_work_is_refused(questions: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            answered(questions, out)
    assert "0 of 12 rows are in" in capsys.readouterr().err
    changed = [
        ({"seed": 1}, "another seed"),
        ({"n": 2}, "another n"),
        ({"system": "x", "raw": False}, "another raw, another system"),
        ({"choice": ("a",), "ignore_eos": False}, "another ignore_eos, another choice"),
        ({"cache_dtype": "bfloat16"}, "another cache_dtype"),
    ]
    for options, words in changed:
        with pytest.raises(ConfigError, match=words):
            answered(questions, out, **options)
    questions.write_text(questions.read_text() + '{"prompt": "new"}\n')
    with pytest.raises(ConfigError, match="another file of prompts"):
        answered(questions, out)


def test_what_changes_no_answer_may_change(questions: Path, tmp_path: Path, monkeypatch) -> None:
    expected = answered(questions, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            answered(questions, tmp_path / "out")
    others = {"batch_size": 7, "speculative": "ngram", "disk_cache": tmp_path / "cache"}
    assert answered(questions, tmp_path / "out", verbose=True, **others) == expected


def test_the_schema_in_a_file_counts_by_what_it_says(questions: Path, tmp_path: Path) -> None:
    schema, out = tmp_path / "schema", tmp_path / "out"
    schema.write_text('{"type": "object"}')
    options = {"json_schema": schema, "ignore_eos": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ziphius.cli.batch.load_model", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            answered(questions, out, **options)
        schema.rename(tmp_path / "moved")
        options["json_schema"] = tmp_path / "moved"
        with pytest.raises(ZeroDivisionError):
            answered(questions, out, **options)
    (tmp_path / "moved").write_text('{"type": "array"}')
    with pytest.raises(ConfigError, match="another form"):
        answered(questions, out, **options)


def test_a_row_that_goes_wrong_costs_itself_alone(tmp_path: Path, capsys) -> None:
    rows = [
        {"prompt": "a"},
        {"prompt": "w " * 3000, "id": "long"},
        {"prompt": "b", "sampling_params": {"temprature": 1}},
        {"prompt": "c", "sampling_params": {"n": 10**30}},
        {"messages": [{"role": "user", "content": "a"}]},
        {"prompt": "b", "adapter": "none"},
        {"prompt": "b", "sampling_params": {"thinking_token_budget": 3}},
        3,
        {"prompt": "c"},
    ]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        answered(source, out)
    assert ended.value.code == 1
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [n for n, row in enumerate(found) if "outputs" in row] == [0, 8]
    words = ["context", "temprature", "n: ", "chat format", "adapter", "thinking", "must be"]
    for number, word in enumerate(words, 1):
        assert found[number]["error"].startswith(f"{source}, line {number + 1}: ")
        assert word in found[number]["error"]
    assert found[1]["id"] == "long"
    told = capsys.readouterr().err
    assert all(f"Skipped: {row['error']}\n" in told for row in found[1:8])
    assert f'7 of 9 rows have an "error" in {out}' in told
    alone = answered(write(tmp_path / "in2", [rows[0], rows[8]]), tmp_path / "out2")
    assert [row["outputs"] for row in alone] == [found[0]["outputs"], found[8]["outputs"]]


def test_one_answer_may_go_wrong_beside_a_good_one(tmp_path: Path, monkeypatch, capsys) -> None:
    source = write(tmp_path / "in", [{"prompt": "a", "sampling_params": {"n": 2}}])
    step = Engine.step

    def failing(self):
        return [
            output._replace(token_id=None, finish_reason="error", error="broke")
            if output.sample == 1 and output.finish_reason
            else output
            for output in step(self)
        ]

    monkeypatch.setattr(Engine, "step", failing)
    with pytest.raises(SystemExit):
        answered(source, tmp_path / "out")
    [row] = map(json.loads, (tmp_path / "out").read_text().splitlines())
    first, second = row["outputs"]
    assert first["finish_reason"] == "length"
    assert (second["finish_reason"], second["error"]) == ("error", "broke")
    assert '1 of 1 rows have an "error"' in capsys.readouterr().err


def test_scores_and_the_best_of_several_are_rows_settings(tmp_path: Path) -> None:
    rows = [
        {"prompt": "one two", "sampling_params": {"max_tokens": 0, "prompt_logprobs": 2}},
        {"prompt": "one", "sampling_params": {"best_of": 4, "n": 2, "logprobs": 3}},
        {"prompt": "one", "sampling_params": {"n": 4, "seed": 0}},
    ]
    scored, best, all_four = answered(write(tmp_path / "in", rows), tmp_path / "out")
    assert scored["outputs"][0]["token_ids"] == []
    assert len(scored["prompt_logprobs"]) == scored["prompt_tokens"] - 1
    logprob, top = scored["prompt_logprobs"][0]
    assert logprob <= top[0][1]
    assert len(top) == 2
    means = [sum(o["logprobs"]) / len(o["logprobs"]) for o in all_four["outputs"]]
    likeliest = sorted(all_four["outputs"], key=lambda o: -means[all_four["outputs"].index(o)])[:2]
    assert [o["token_ids"] for o in best["outputs"]] == [o["token_ids"] for o in likeliest]
    assert [len(top) for top in best["outputs"][0]["top_logprobs"]] == [3] * 6


def test_tokens_are_written_where_they_are_asked_for(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": "a", "sampling_params": {"logprobs": 1}}]
    source = write(tmp_path / "in", rows)
    first, second = answered(source, tmp_path / "out", logprobs=None)
    assert not {"token_ids", "logprobs", "top_logprobs"} & first["outputs"][0].keys()
    assert {"token_ids", "logprobs", "top_logprobs"} <= second["outputs"][0].keys()


def test_standard_output_has_the_same_lines(questions: Path, tmp_path: Path, capsys) -> None:
    answered(questions, tmp_path / "out")
    capsys.readouterr()
    generate(GenerateConfig(model="v3-tiny", file=questions, out="-", **SETTINGS))
    out, err = capsys.readouterr()
    assert out == (tmp_path / "out").read_text()
    assert "12 of 12 rows" in err
    assert "tokens/s" in err
    assert "ETA 0:00" in err


def test_ids_that_stand_twice_are_noted(tmp_path: Path, capsys) -> None:
    source = write(tmp_path / "in", [{"prompt": "a", "id": n} for n in (1, 1, 2)])
    answered(source, tmp_path / "out")
    assert 'id 1 stands on several rows: "row" tells them apart' in capsys.readouterr().err


def test_a_file_that_is_there_is_kept(questions: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="out is there already"):
        answered(questions, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"
    (tmp_path / "new.partial").write_text("mine")
    with pytest.raises(ConfigError, match=r"new.partial is in the way"):
        answered(questions, tmp_path / "new")


def test_a_second_process_is_refused(questions: Path, tmp_path: Path) -> None:
    with Journal(tmp_path / "out.partial", {}), pytest.raises(OutputError, match="in use"):
        answered(questions, tmp_path / "out")


def test_prompts_of_the_command_line_become_a_file_too(tmp_path: Path) -> None:
    out = tmp_path / "out"
    generate(GenerateConfig(model="v3-tiny", prompts=("a", "b"), out=out, **SETTINGS))
    assert [json.loads(line)["row"] for line in out.read_text().splitlines()] == [0, 1]
