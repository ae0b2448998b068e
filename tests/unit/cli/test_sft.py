"""`ziphius sft` from a model folder and a file of conversations to a model that can be used."""

import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from tests.tiny import build, grouped_config, random_ids
from ziphius.cli.main import main
from ziphius.core.errors import ConfigError
from ziphius.data.conversations import ConversationLoader
from ziphius.models.lora import merge_adapters
from ziphius.models.model import Model
from ziphius.models.presets import derive, get_preset
from ziphius.models.weights import load, save, save_gguf
from ziphius.models.weights.adapters import load_adapters
from ziphius.text.tokenizer import load_tokenizer
from ziphius.text.vocabulary import deepseek_tokenizer
from ziphius.train.config import TrainConfig
from ziphius.train.records import metrics_hash, read_metrics
from ziphius.train.settings import SftSettings, SftTraining


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny V3 and its tokenizer."""
    folder = tmp_path_factory.mktemp("sft") / "base"
    model = Model(get_preset("v3-tiny"))
    model.initialize(0)
    save(model, folder, deepseek_tokenizer(512), weight_format="float32")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four short conversations, and one that no row holds."""
    path = tmp_path_factory.mktemp("sft") / "sums.jsonl"
    answers = [str(2 * i) for i in range(24)] + ["1" * 400]
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"{i}+{i}?"},
                {"role": "assistant", "content": a},
            ]
        }
        for i, a in enumerate(answers)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peak of this machine that need not be measured, and a place for tokens."""
    monkeypatch.setattr("ziphius.data.cache.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr("ziphius.train.instruments.matrix_peak", lambda device, dtype: 1e12)


SHORT = "--epochs 2 --train.global-batch-size 2 --learning-rate 0.003"


def arguments(base: Path, data: Path, out: Path, *more: str, settings: str = SHORT) -> list[str]:
    files = ["sft", str(base), "--data", str(data), "--out", str(out)]
    return [*files, *f"--seq-len 48 --quiet --no-tensorboard {settings}".split(), *more]


@pytest.mark.parametrize(
    ("answer", "options", "spoken"),
    [
        ({"content": "4"}, (), "deepseek-v3"),
        ({"content": "4", "reasoning_content": "2 and 2"}, (), "deepseek-r1"),
        ({"content": "<think>2 and 2</think>4"}, (), "deepseek-r1"),
        ({"content": "4"}, ("--chat-format", "deepseek-r1"), "deepseek-r1"),
        ({"content": "4"}, ("--thinking", "False"), "deepseek-r1"),
    ],
)
def test_data_without_reasoning_teaches_a_format_without_a_think_block(
    base: Path, tmp_path: Path, answer: dict[str, str], options: tuple[str, ...], spoken: str
) -> None:
    line = {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", **answer}]}
    (tmp_path / "data.jsonl").write_text(f"{json.dumps(line)}\n" * 4)
    out = tmp_path / "run"
    more = ("--hold-out", "0", *options)
    assert main(arguments(base, tmp_path / "data.jsonl", out, *more)) == 0
    [checkpoint] = (out / "checkpoints").iterdir()
    assert load_tokenizer(checkpoint).chat_format == spoken


def test_a_run_from_conversations_to_a_model(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    line = arguments(base, data, out, "--hold-out", "0.3", "--chat-format", "deepseek-v3", "--json")
    assert main(line) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["is_complete"]
    assert result["stage"] == "sft"
    steps = [entry for entry in read_metrics(out) if entry["kind"] == "step"]
    assert len(steps) == result["total_steps"]
    assert {"loss", "mtp1", "bits_per_byte"} <= set(result["validation"])
    assert result["baselines"]["uniform"] > result["baselines"]["bigram"]
    assert result["beats_bigram"] is False
    assert "1 longer than a row of 48" in captured.err
    assert "in the format deepseek-v3" in captured.err
    assert json.loads((out / "result.json").read_text()) == result
    checkpoint = Path(result["checkpoint"])
    assert load_tokenizer(checkpoint).chat_format == "deepseek-v3"
    before, after = load(base), load(checkpoint)
    assert not torch.equal(before.lm_head.weight, after.lm_head.weight)

    assert main(line) == 0  # done already: nothing is done again
    again = json.loads(capsys.readouterr().out)
    assert again == result | {"exact_resume": "yes"}


def test_adapters_of_a_gguf_file_name_a_folder_and_how_to_write_it(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build(grouped_config(vocab_size=512, max_position_embeddings=64))
    file, out = tmp_path / "base.gguf", tmp_path / "run"
    save_gguf(model, file, deepseek_tokenizer(512).gguf_fields(512), weight_format="float32")
    assert main(arguments(file, data, out, "--lora.rank", "4", "--hold-out", "0")) == 0
    settings = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(out / "base")
    unexported = load(out / "adapter")  # here the file itself serves as long as nobody wrote that
    line = next(line for line in capsys.readouterr().out.splitlines() if "PEFT" in line)
    assert main(line.partition("ziphius ")[2].split()) == 0
    based = load(out / "base")
    assert torch.equal(based.model.norm.weight, model.model.norm.weight)
    load_adapters(based, out / "adapter")
    [checkpoint] = (out / "checkpoints").iterdir()
    ids_BT = random_ids(1, 9, 512)
    merged = load(checkpoint)
    ours_BTW = merged.logits(merged(ids_BT).hidden_BTD)
    assert torch.equal(unexported.logits(unexported(ids_BT).hidden_BTD), ours_BTW)
    assert torch.allclose(based.logits(based(ids_BT).hidden_BTD), ours_BTW, atol=1e-4)


def test_adapters_and_the_merged_model_are_the_same(base: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(arguments(base, data, out, "--lora.rank", "4", "--hold-out", "0")) == 0
    [checkpoint] = (out / "checkpoints").iterdir()
    model = load(base, dtype=torch.float32)
    frozen = model.model.embed_tokens.weight.detach().clone()
    load_adapters(model, out / "adapter")
    merge_adapters(model)
    merged = load(checkpoint)
    assert merged.state_dict().keys() == model.state_dict().keys()
    changed = 0
    for name, tensor in merged.state_dict().items():
        assert torch.allclose(tensor, model.state_dict()[name], atol=1e-6), name
        changed += not torch.equal(tensor, load_tensor(base, name))
    assert changed > 10
    assert torch.equal(merged.model.embed_tokens.weight, frozen)


def load_tensor(folder: Path, name: str) -> torch.Tensor:
    return _loaded.setdefault(folder, load(folder).state_dict())[name]


_loaded: dict[Path, Any] = {}


@pytest.mark.parametrize("options", [(), ("--lora.rank", "4")])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    base: Path,
    data: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = (*options, "--hold-out", "0", "--train.workers", "0")
    assert main(arguments(base, data, tmp_path / "whole", *options)) == 0
    batch = ConversationLoader.batch

    def batch_with_a_signal(self: ConversationLoader, step: int, *place: int) -> Any:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(self, step, *place)

    line = arguments(base, data, tmp_path / "stopped", *options)
    with monkeypatch.context() as patch:
        patch.setattr(ConversationLoader, "batch", batch_with_a_signal)
        with pytest.raises(SystemExit) as stopped:
            main(line)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert "ziphius sft --resume" in capsys.readouterr().err
    assert main(["sft", "--resume", str(tmp_path / "stopped")]) == 0
    assert "Going on from step 3. exact: yes" in capsys.readouterr().err
    assert metrics_hash(tmp_path / "stopped") == metrics_hash(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("--seq-len", "1000000"), "the model is made for"),
        (("--seq-len", "4"), "No conversation is left to learn from"),
        (("--chat-format", "morse"), "Unknown chat format 'morse'"),
        (("--over-long", "refuse"), "line 25: "),
        (("--lora.rank", "2", "--lora.targets", "w_proj"), "no projection 'w_proj'"),
        (("--validation", "nothing.jsonl"), "nothing.jsonl cannot be read"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    base: Path,
    data: Path,
    tmp_path: Path,
    change: tuple[str, ...],
    problem: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(arguments(base, data, tmp_path / "run", "--hold-out", "0.05", *change)) == 2
    error = capsys.readouterr().err
    assert problem in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_a_bad_line_is_named(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"messages": [{"role": "assistant", "content": "a"}]}\n{"messages": 1}\n')
    assert main(arguments(base, path, tmp_path / "run")) == 2
    assert "bad.jsonl, line 2: must be" in capsys.readouterr().err


def rows(path: Path, good: int, *bad: str) -> Path:
    """A file whose last rows are bad."""
    talk = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path.write_text("".join(line + "\n" for line in (*[json.dumps(talk)] * good, *bad)))
    return path


def prepare(
    monkeypatch: pytest.MonkeyPatch,
    base: Path,
    data: Path,
    out: Path,
    *more: str,
    settings: str = SHORT,
) -> tuple[int, dict[str, Any]]:
    """Run the command up to where it would train."""
    seen: dict[str, Any] = {}

    def run_stage(*args: Any, **given: Any) -> Any:
        seen.update(given)
        raise ConfigError("prepared")

    monkeypatch.setattr("ziphius.train.finetuning.run_stage", run_stage)
    line = arguments(base, data, out, "--hold-out", "0", *more, settings=settings)
    return main(line), seen


def test_a_bad_row_is_skipped_and_said_up_to_a_share(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unclosed = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>b"}]
    path = rows(tmp_path / "rows.jsonl", 19, '{"messages": 1}', json.dumps({"messages": unclosed}))
    _, seen = prepare(monkeypatch, base, path, tmp_path / "run")
    error = capsys.readouterr().err
    assert "Skipped: " in error
    assert "rows.jsonl, line 20: must be" in error
    assert "rows.jsonl, line 21: An answer never closes <think>" in error
    assert "2 of 21 rows skipped" in seen["text"]
    assert "19 conversations in the format" in seen["text"]
    assert len(seen["loader"].conversations.kept) == 19
    for more, problem in (
        (
            ("--max-bad-share", "0.05"),
            "2 of 21 rows cannot be used, more than --max-bad-share 0.05",
        ),
        (("--strict",), "line 20: must be"),
    ):
        code, seen = prepare(monkeypatch, base, path, tmp_path / "run", *more)
        assert (code, seen) == (2, {})
        assert problem in capsys.readouterr().err
    with pytest.raises(ValidationError, match="--max-bad-share has no effect with --strict"):
        SftSettings(strict=True, max_bad_share=0.5)


def test_turns_that_think_become_samples_and_are_counted(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    thoughts = [
        {"role": role, "content": content}
        for content in ("<think>x</think>1", "<think>y</think>2")
        for role, content in (("user", "q"), ("assistant", content))
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": thoughts}) + "\n")
    _, seen = prepare(monkeypatch, base, path, tmp_path / "run")
    assert "1 conversations as 2 samples in the format" in seen["text"]
    assert "2 think blocks in contents were read as reasoning" in seen["text"]
    learned = sum(int(entry.loss_mask_T.sum()) for entry in seen["loader"].conversations.kept)
    assert f"{learned} tokens a conversation learned" in seen["text"]
    _, seen = prepare(monkeypatch, base, path, tmp_path / "run", "--earlier-turns", "mask")
    assert "1 earlier turns were not learned" in seen["text"]
    assert len(seen["loader"].conversations.kept) == 1


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ([], ["MODEL", "--data", "--out"]),
        (["--out", "run"], ["MODEL", "--data"]),
        (["some/model"], ["--data", "--out"]),
        (["some/model", "--data", "a.jsonl"], ["--out"]),
    ],
)
def test_all_that_is_missing_is_named_at_once(
    line: list[str], missing: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sft", *line]) == 2
    error = capsys.readouterr().err
    assert [name for name in ("MODEL", "--data", "--out") if name in error] == missing


@pytest.mark.parametrize(
    ("settings", "chosen", "said"),
    [
        (
            "",
            (1, "102-steps", 3e-4),
            "global_batch_size 1, epochs 17 (6 rows an epoch make 102-steps), "
            "learning_rate 3.0e-04 (all weights of a model of this size)",
        ),
        (
            "--lora.rank 4",
            (1, "102-steps", 3e-3),
            "learning_rate 3.0e-03 (adapters, ten times that of all weights, of a model",
        ),
        (
            "--epochs 2 --learning-rate 0.1",
            (1, "12-steps", 0.1),
            "not given: global_batch_size 1 (6 rows",
        ),
        (
            "--train.global-batch-size 3 --learning-rate 0.1",
            (3, "34-steps", 0.1),
            "not given: epochs 17 (",
        ),
        (
            "--train.micro-batch-size 2 --learning-rate 0.1",
            (2, "51-steps", 0.1),
            "global_batch_size 2, epochs",
        ),
        ("--epochs 0 --budget 7-steps", (1, "7-steps", 3e-4), "global_batch_size 1, learning_rate"),
        (SHORT, (2, "6-steps", 0.003), None),
    ],
)
def test_what_is_not_given_follows_from_data_and_method_and_is_said(
    base: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: str,
    chosen: tuple[int, str, float],
    said: str | None,
) -> None:
    _, seen = prepare(monkeypatch, base, data, tmp_path / "run", settings=settings)
    config = seen["config"]
    assert (config.global_batch_size, config.budget) == chosen[:2]
    assert config.learning_rate == pytest.approx(chosen[2])
    _, *lines = seen["text"].splitlines()
    assert len(lines) == (said is not None)
    assert said is None or said in lines[0]


def test_a_ramp_needs_the_batch_that_it_grows_to() -> None:
    with pytest.raises(ValidationError, match="rampup_batch_size: give global_batch_size too"):
        SftTraining(rampup_batch_size=2, rampup_steps=10)
    with pytest.raises(ConfigError, match="global_batch_size: give a number"):
        TrainConfig(global_batch_size=None).batch_sizes.count(0)


def test_a_limit_and_a_second_start_are_said(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--max-conversations", "10")
    _, first = prepare(monkeypatch, base, data, tmp_path / "run", *options)
    monkeypatch.setattr("ziphius.data.conversation_shards.read_conversations", None)
    _, second = prepare(monkeypatch, base, data, tmp_path / "again", *options)
    assert first["text"] == second["text"]
    assert first["text"].startswith("Of 25 conversations 10 are learned, a random sample")


def test_a_budget_needs_epochs_without_end() -> None:
    with pytest.raises(ValidationError, match="Set epochs to 0 to go by the budget"):
        SftSettings(train=SftTraining(budget="5-steps"))
    assert SftSettings(epochs=0, train=SftTraining(budget="5-steps")).train.budget == "5-steps"


def without_mtp_layer(base: Path, folder: Path) -> Path:
    """The model as transformers saves it: the config names the layer, and no file holds it."""
    shutil.copytree(base, folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: t for name, t in weights.items() if not name.startswith("model.layers.3.")}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_model_whose_mtp_layers_are_missing_is_taught_without(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = without_mtp_layer(base, tmp_path / "base")
    line = arguments(model, data, tmp_path / "run", "--json", "--epochs", "1")
    assert main(line) == 0
    assert "mtp1" not in json.loads(capsys.readouterr().out)["validation"]
    line = arguments(model, data, tmp_path / "asked", "--train.mtp.early", "0.5")
    assert main(line) == 2
    assert "the model has no MTP layers" in capsys.readouterr().err


def test_mtp_layers_are_left_out_on_request(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = arguments(base, data, tmp_path / "run", "--drop-mtp", "--epochs", "1", "--json")
    assert main(line) == 0
    assert "mtp1" not in json.loads(capsys.readouterr().out)["validation"]


def test_more_tokens_than_rows_are_refused_before_the_run(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "base"
    model = Model(derive(get_preset("v3-tiny"), vocab_size=500))
    model.initialize(0)
    save(model, folder, deepseek_tokenizer(512), weight_format="float32")
    assert main(arguments(folder, data, tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert "The tokenizer has 512 tokens, the model only 500 rows" in error
    assert not (tmp_path / "run").exists()


def test_adapters_on_a_bfloat16_model_are_all_that_is_written(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a checkpoint nor the result holds the model; both are loaded as what it became."""
    half, out = tmp_path / "half", tmp_path / "run"
    save(load(base), half, load_tokenizer(base), weight_format="bfloat16")
    options = ("--lora.rank", "4", "--hold-out", "0", "--dtype", "bfloat16")
    assert main(arguments(half, data, out, *options)) == 0
    weight_bytes = (half / "model.safetensors").stat().st_size
    [checkpoint] = (out / "checkpoints").iterdir()
    for folder in (checkpoint, out / "adapter"):
        assert not list(folder.glob("model*.safetensors"))
        settings = json.loads((folder / "adapter_config.json").read_text())
        assert settings["base_model_name_or_path"] == str(half)
        merged = load(folder, dtype=torch.float32)
        expected = load(half, dtype=torch.float32)
        load_adapters(expected, folder)
        merge_adapters(expected)
        for name, tensor in merged.state_dict().items():
            assert torch.equal(tensor, expected.state_dict()[name]), name
    written = sum(f.stat().st_size for f in checkpoint.rglob("*.safetensors"))
    assert 0 < written < 2 * weight_bytes
    capsys.readouterr()
    line = ["generate", str(out / "adapter"), "1+1?", "--max-new-tokens", "3", "--json"]
    assert main(line) == 0
    assert json.loads(capsys.readouterr().out)["answers"][0]["token_ids"]
    assert main(["export", str(checkpoint), str(tmp_path / "whole")]) == 0
    exported = load(tmp_path / "whole").state_dict()
    for name, tensor in load(checkpoint, dtype=torch.bfloat16).state_dict().items():
        assert torch.equal(exported[name], tensor), name


def test_a_disk_without_room_is_told_of_before_the_first_step(
    base: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**20))
    assert main(arguments(base, data, tmp_path / "run", "--hold-out", "0")) == 2
    assert "its first checkpoint takes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_is_given_rows_for_added_tokens(
    data: Path, tmp_path: Path, tied: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Model(derive(get_preset("r1-distill-qwen-tiny"), tie_word_embeddings=tied))
    model.initialize(0)
    rows = model.config.vocab_size
    save(model, tmp_path / "model", deepseek_tokenizer(rows + 3))
    line = arguments(tmp_path / "model", data, tmp_path / "run", "--hold-out", "0")
    assert main(line) == 2
    assert f"has {rows + 3} tokens, the model only {rows} rows" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*line, "--resize-embeddings", "--lora.rank", "2"])
    assert "resize_embeddings and lora.rank: adapters alone are" in capsys.readouterr().err
    assert main([*line, "--resize-embeddings"]) == 0
    [checkpoint] = (tmp_path / "run" / "checkpoints").iterdir()
    assert load(checkpoint).config.vocab_size == rows + 3
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(checkpoint, local_files_only=True)
    assert theirs.get_input_embeddings().weight.shape[0] == rows + 3
    assert torch.equal(
        theirs.get_output_embeddings().weight.float(), load(checkpoint).head.weight.float()
    )
    export = ["export", str(tmp_path / "model"), str(tmp_path / "out"), "--resize-embeddings"]
    assert main(export) == 0
    assert load(tmp_path / "out").config.vocab_size == rows + 3
    assert main(["export", str(checkpoint), str(tmp_path / "more"), "--resize-embeddings"]) == 2
    assert "resize_embeddings has no effect" in capsys.readouterr().err
