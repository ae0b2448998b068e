import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from ziphius.core.errors import ConfigError, DeviceError, TokenizerError
from ziphius.data.config import DataConfig
from ziphius.models.config import YarnScaling
from ziphius.models.lora import merge_adapters
from ziphius.models.lora_config import LoraConfig
from ziphius.models.model import Model
from ziphius.models.presets import get_preset
from ziphius.models.published import to_published
from ziphius.models.weights import load, save
from ziphius.models.weights.adapters import load_adapters
from ziphius.text.tokenizer import Tokenizer, load_tokenizer
from ziphius.text.vocabulary import deepseek_tokenizer
from ziphius.train.config import TrainConfig
from ziphius.train.errors import TrainingError
from ziphius.train.instruments_config import InstrumentsConfig
from ziphius.train.pretraining import _model_and_tokenizer, run_pretraining
from ziphius.train.records import read_metrics
from ziphius.train.run import Finished, RunContext
from ziphius.train.settings import PretrainSettings

LINES = [f"{n} and {n + 1} make {2 * n + 1}; the whale dives {n} metres.\n" for n in range(3_000)]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for part in range(60):
        (folder / f"{part}.txt").write_text("".join(LINES[50 * part : 50 * part + 50]))
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokenized text and the machine's peak are kept over the tests of this file."""
    folder = tmp_path_factory.getbasetemp() / "pretraining-cache"
    monkeypatch.setenv("ZIPHIUS_CACHE", str(folder))


def settings(text: Path, *, train: dict[str, Any] | None = None, **fields: Any) -> PretrainSettings:
    short = {
        "budget": "3-steps",
        "seq_len": 32,
        "global_batch_size": 4,
        "validate_rows": 4,
        "device": "cpu",
    }
    new = {} if "from_model" in fields else {"preset": "v3-tiny"}
    return PretrainSettings(
        **new | fields,
        data=DataConfig(own=(str(text),), processes=0),
        train=TrainConfig(**short | (train or {})),
        instruments=InstrumentsConfig(quiet=True, tensorboard=False),
    )


@pytest.fixture(scope="module")
def trained(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.getbasetemp() / "pretraining-cache"
        patch.setenv("ZIPHIUS_CACHE", str(folder))
        return run_pretraining(settings(text), tmp_path_factory.mktemp("run") / "first")


def test_a_run_leaves_a_model_with_its_tokenizer(trained: Finished) -> None:
    result = trained.result
    assert (result.stage, result.step, result.is_complete) == ("pretrain", 3, True)
    assert result.tokens == 3 * 4 * 32
    assert set(result.baselines) == {"uniform", "unigram", "bigram"}
    assert result.baselines["bigram"] < result.baselines["unigram"] < result.baselines["uniform"]
    assert {"loss", "loss/own", "bits_per_byte", "mtp1"} <= result.validation.keys()
    model = load(result.checkpoint, dtype=torch.float32)
    assert model.config.num_nextn_predict_layers == 1
    tokenizer = load_tokenizer(result.checkpoint)
    assert tokenizer.encode("the whale") == deepseek_tokenizer(512).encode("the whale")
    assert trained.figures is not None
    assert trained.figures.speed.tokens_per_s > 0.0


def test_a_trained_model_goes_on_in_another_run(
    trained: Finished, text: Path, tmp_path: Path
) -> None:
    more = settings(text, from_model=trained.result.checkpoint, train={"budget": "1-steps"})
    finished = run_pretraining(more, tmp_path)
    assert finished.result.loss is not None
    assert trained.result.loss is not None
    assert finished.result.loss < trained.result.baselines["uniform"] - 0.1
    assert highest_rate(tmp_path) == pytest.approx(3e-4)
    assert "Peak learning rate 3.0e-04" in finished.text


def highest_rate(folder: Path) -> float:
    """Read the highest learning rate of a run."""
    return max(entry["learning_rate"] for entry in read_metrics(folder) if entry["kind"] == "step")


def test_a_rate_that_is_given_is_taken(trained: Finished, text: Path, tmp_path: Path) -> None:
    train = {"budget": "1-steps", "learning_rate": 3e-3}
    again = settings(text, from_model=trained.result.checkpoint, train=train)
    finished = run_pretraining(again, tmp_path)
    assert highest_rate(tmp_path) == 3e-3
    assert finished.text == ""


def test_a_vocabulary_without_special_tokens_of_holes_learns_code_in_its_order(
    trained: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "whale.py").write_text("".join(f"dive({n})\n" for n in range(900)))
    has_token = Tokenizer.has_token
    monkeypatch.setattr(
        Tokenizer, "has_token", lambda self, token: "fim" not in token and has_token(self, token)
    )
    more = settings(code, from_model=trained.result.checkpoint, train={"budget": "1-steps"})
    finished = run_pretraining(more, tmp_path / "run")
    assert "No code is filled in the middle" in finished.text
    asked = more.model_copy(update={"data": more.data.model_copy(update={"fim_rate": 0.5})})
    with pytest.raises(TokenizerError, match="no fill-in-the-middle tokens"):
        run_pretraining(asked, tmp_path / "asked")


def test_a_smaller_budget_is_refused_before_anything_is_written(text: Path, tmp_path: Path) -> None:
    run_pretraining(settings(text), tmp_path)

    def claim() -> None:
        raise AssertionError("the folder was claimed")

    for budget in ("2-steps", "100-tokens", "0.001s"):
        shorter = settings(text, train={"budget": budget})
        with pytest.raises(TrainingError, match=r"more than --budget .* Nothing was changed"):
            run_pretraining(shorter, tmp_path, RunContext(claim=claim))


def test_a_run_that_left_no_checkpoint_says_that_it_begins_anew(text: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind":"step","step":1}\n')
    finished = run_pretraining(settings(text, train={"budget": "1-steps"}), tmp_path)
    assert finished.figures is not None
    assert "has left no checkpoint, so it begins anew" in finished.figures.warnings[0]


def test_the_context_is_extended(text: Path, tmp_path: Path) -> None:
    plain = get_preset("v3-tiny").model_copy(update={"rope_scaling": None})
    path = tmp_path / "config.json"
    path.write_text(json.dumps(to_published(plain)))
    first = run_pretraining(settings(text, preset=str(path)), tmp_path / "short").result
    longer = settings(
        text, from_model=first.checkpoint, extend_context=64, yarn_factor=8.0, train={"seq_len": 32}
    )
    result = run_pretraining(longer, tmp_path / "long").result
    assert (result.stage, result.tokens) == ("extend", 3 * 2 * 64)
    start = Model(plain)
    start.initialize(0)
    begin, trained, after = (
        model.lm_head.weight for model in (start, load(first.checkpoint), load(result.checkpoint))
    )
    assert (after - trained).norm() < 0.2 * (trained - begin).norm()
    scaling = load(result.checkpoint).config.rope_scaling
    assert isinstance(scaling, YarnScaling)
    assert (scaling.original_max_position_embeddings, scaling.factor) == (32, 8.0)
    assert highest_rate(tmp_path / "long") == pytest.approx(3e-3 * 7.3 / 220)


def test_adapters_are_trained_instead_of_the_weights(
    trained: Finished, text: Path, tmp_path: Path
) -> None:
    checkpoint = trained.result.checkpoint
    lora = LoraConfig(rank=2, targets=("o_proj",))
    train = {"budget": "2-steps", "warmup_steps": 0}
    finished = run_pretraining(
        settings(text, from_model=checkpoint, lora=lora, train=train), tmp_path
    )
    before, after = load(checkpoint).state_dict(), load(finished.result.checkpoint).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    # Router biases are in the state, and stand still.
    assert changed == {f"model.layers.{index}.self_attn.o_proj.weight" for index in range(4)}
    assert finished.figures is not None
    assert finished.figures.speed.mfu is None
    assert_adapters_make(after, checkpoint, finished.adapter)
    longer = settings(text, from_model=checkpoint, lora=lora, train=train | {"budget": "3-steps"})
    more = run_pretraining(longer, tmp_path)
    assert more.result.step == 3
    assert_adapters_make(load(more.result.checkpoint).state_dict(), checkpoint, more.adapter)


def assert_adapters_make(merged: dict[str, torch.Tensor], base: Path, adapter: Path | None) -> None:
    """Hold the folder of adapters to the merged weights of a checkpoint."""
    assert adapter is not None
    model = load(base, dtype=torch.float32)
    load_adapters(model, adapter)
    merge_adapters(model)
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor, merged[name], atol=1e-6), name


def test_a_damaged_checkpoint_is_told_of_on_the_console_of_the_run(
    text: Path, tmp_path: Path
) -> None:
    run = settings(text, train={"save_every": "1-steps", "budget": "2-steps"})
    run_pretraining(run, tmp_path)
    (tmp_path / "checkpoints" / "step-2" / "config.json").unlink()
    console = Console(file=io.StringIO(), width=200)
    finished = run_pretraining(run, tmp_path, RunContext(console=console))
    assert finished.figures is not None
    [warning] = finished.figures.warnings
    assert "Ignored a damaged checkpoint, step-2" in warning
    assert warning in console.file.getvalue()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"extend_context": 64}, "extend_context needs from_model"),
        ({"lora": {"rank": 2}}, "lora.rank needs from_model"),
        ({"from_model": "a", "tokenizer": "b"}, "tokenizer has no effect with from_model"),
        ({"from_model": "a", "preset": "v3-tiny"}, "preset has no effect with from_model"),
        ({"yarn_factor": 2.0}, "yarn_factor has no effect without extend_context"),
    ],
)
def test_settings_without_effect_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PretrainSettings(**fields)


def test_a_model_larger_than_memory_is_refused_before_it_takes_any(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: Any) -> None:
        raise AssertionError("the model was built")

    monkeypatch.setattr("ziphius.train.pretraining.Model", build)
    message = r"To train all weights of v2-lite .* takes 2\d\d\.\d GB, and .* GB are free on cpu"
    with pytest.raises(DeviceError, match=message):
        run_pretraining(settings(text, preset="v2-lite"), tmp_path)


def test_what_does_not_fit_the_model_is_refused(text: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"seq_len = 4096: the model is made for 2048 tokens"):
        run_pretraining(settings(text, train={"seq_len": 4_096}), tmp_path)
    deepseek_tokenizer(600).save(tmp_path)
    with pytest.raises(ConfigError, match="The tokenizer has 600 tokens, the model only 512 rows"):
        run_pretraining(settings(text, tokenizer=tmp_path), tmp_path)


def test_mtp_layers_of_the_model_to_go_on_from_are_left_out_on_request(
    text: Path, tmp_path: Path
) -> None:
    model = Model(get_preset("v3-tiny"))
    model.initialize(0)
    save(model, tmp_path / "model", deepseek_tokenizer(512), weight_format="float32")
    for drop_mtp in (False, True):
        asked = settings(text, from_model=tmp_path / "model", drop_mtp=drop_mtp)
        found, _ = _model_and_tokenizer(asked)
        assert found.config.num_nextn_predict_layers == (not drop_mtp)
    with pytest.raises(ValueError, match="drop_mtp needs from_model"):
        settings(text, drop_mtp=True)
