"""`cli/engine_options.py`: from options to an engine that is closed however it is left."""

import errno
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from ziphius.cli.engine_options import EngineOptions, load_model, open_session
from ziphius.cli.options import parse_options
from ziphius.core.errors import CheckpointError, ConfigError, OutputError
from ziphius.engine.answer import raw_prompt
from ziphius.engine.answering import Question
from ziphius.engine.config import EngineConfig
from ziphius.engine.engine import Engine
from ziphius.engine.load import Loaded, load_preset
from ziphius.engine.sampling_params import SamplingParams
from ziphius.engine.speculation_config import SpeculationConfig
from ziphius.models.lora import adapted_layers, add_adapters
from ziphius.models.lora_config import LoraConfig
from ziphius.models.model import Model
from ziphius.models.presets import derive, get_preset
from ziphius.models.weights import save
from ziphius.models.weights.adapters import save_adapters


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load_preset("v3-tiny", device=torch.device("cpu"))


def options(*words: str) -> EngineOptions:
    return parse_options(EngineOptions, words, prog="x", description=None)


def tokens(loaded: Loaded, given: EngineOptions, text: str = "one two", adapter: str = "") -> list:
    prompt = raw_prompt(text, loaded.tokenizer)
    params = SamplingParams(max_tokens=8, seed=2, ignore_eos=True)
    with open_session(loaded, given, 2) as session:
        steps = session.answers([Question(prompt, params, adapter or given.default_adapter)])
        return [piece.piece.output.token_id for step in steps for piece in step]


def test_options_become_the_config_of_an_engine(tmp_path: Path) -> None:
    assert options().engine_config(3) == EngineConfig(max_num_seqs=3)
    words = ["--speculative", "ngram", "--num-speculative-tokens", "3", "--cache-dtype", "bfloat16"]
    words += ["--disk-cache", str(tmp_path), "--disk-cache-size", "2MB"]
    assert options(*words).engine_config(5) == EngineConfig(
        max_num_seqs=5,
        cache_dtype="bfloat16",
        disk_cache=tmp_path,
        disk_cache_bytes=2_000_000,
        speculation=SpeculationConfig(method="ngram", num_speculative_tokens=3),
    )


def test_an_adapter_has_a_name_or_is_that_of_all(tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    odd = str(tmp_path / "a=b")
    given = options("--adapter", "x=/one", "--adapter", "/two", "--adapter", "y=/three=3")
    assert given.adapters == {
        "x": Path("/one"),
        "adapter": Path("/two"),
        "y": Path("/three=3"),
    }
    assert given.default_adapter == "adapter"
    assert options("--adapter", odd).adapters == {"adapter": Path(odd)}
    assert options("--adapter", "x=/one").default_adapter == ""
    for wrong in ("=/one", "x="):
        with pytest.raises(ValidationError, match="NAME=FOLDER"):
            EngineOptions(adapter=(wrong,))


def test_guesses_change_no_token(loaded: Loaded, capsys: pytest.CaptureFixture[str]) -> None:
    plain = tokens(loaded, options())
    assert len(plain) == 8
    for words in (
        ["ngram"],
        ["mtp", "--num-speculative-tokens", "2"],
        ["model", "--draft-model", "v3-tiny", "--device", "cpu"],
    ):
        capsys.readouterr()
        assert tokens(loaded, options("--verbose", "--speculative", *words)) == plain
        assert "guesses: " in capsys.readouterr().err


def test_what_does_not_suit_the_model_is_refused(loaded: Loaded, tmp_path: Path) -> None:
    config = derive(get_preset("v3-tiny"), num_nextn_predict_layers=0)
    without = loaded._replace(model=Model(config).eval())
    with pytest.raises(ConfigError, match="no MTP layer"):
        tokens(without, options("--speculative", "mtp"))
    with pytest.raises(ConfigError, match="same vocabulary"):
        tokens(loaded, options("--speculative", "model", "--draft-model", "bench-v3"))
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        tokens(loaded, options("--adapter", str(tmp_path)))
    with pytest.raises(ConfigError, match="disk_cache_bytes"):
        tokens(loaded, options("--disk-cache", str(tmp_path), "--disk-cache-size", "10"))


def test_an_adapter_answers_those_that_name_it(loaded: Loaded, tmp_path: Path) -> None:
    model = load_preset("v3-tiny", device=torch.device("cpu")).model
    add_adapters(model, LoraConfig(rank=2), seed=0)
    for _, layer in adapted_layers(model):
        torch.nn.init.normal_(layer.lora_B.weight, std=0.5)
    folder = tmp_path / "lora"
    save_adapters(model, folder, base="v3-tiny")
    plain = tokens(loaded, options())
    with_it = tokens(loaded, options("--adapter", str(folder)))
    assert with_it != plain
    named = options("--adapter", f"a={folder}")
    assert tokens(loaded, named, adapter="a") == with_it
    assert tokens(loaded, named) == plain


def test_the_disk_cache_is_found_by_the_next_command(
    loaded: Loaded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = options("--disk-cache", str(tmp_path / "cache"), "--verbose")
    first = tokens(loaded, given, "word " * 60)
    assert "0 of them found" in capsys.readouterr().err
    assert tokens(loaded, given, "word " * 60) == first
    told = capsys.readouterr().err
    assert "disk cache: " in told
    assert "disk cache: 0 blocks" not in told


def test_verbose_tells_of_a_disk_that_is_full(
    loaded: Loaded,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def is_full(*given: object, **others: object) -> None:
        raise OutputError("Cannot write.") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ziphius.engine.disk_tier.write_file", is_full)
    tokens(loaded, options("--disk-cache", str(tmp_path / "cache"), "--verbose"), "word " * 60)
    found = re.search(
        r"disk cache: 0 blocks read, 0 written, 0 given up as the disk was behind, "
        r"(\d+) failures of the disk\n",
        capsys.readouterr().err,
    )
    assert found is not None
    assert int(found[1]) > 0


def test_verbose_tells_what_the_expert_cache_was_good_for(
    loaded: Loaded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(loaded.model, tmp_path / "model", loaded.tokenizer)
    given = options("--expert-cache", "4MiB", "--verbose")
    tokens(load_model(str(tmp_path / "model"), given), given)
    assert re.search(
        r"expert cache: [\d,]+ experts asked for, [\d,]+ of them found in memory, \d+%; "
        r"[\d,]+ of 294,912 bytes used, [1-9][\d,]* read, [\d,]+ ms waited for them\n",
        capsys.readouterr().err,
    )


def test_verbose_says_what_runs_the_model(
    loaded: Loaded, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_session(loaded, options("--verbose"), 1) as session:
        session.engine.not_native = None
    assert "runner: " in capsys.readouterr().err
    with torch.autocast("cpu", torch.bfloat16), open_session(loaded, options("--verbose"), 1):
        pass
    assert "runner: modules of PyTorch, as autocast rounds" in capsys.readouterr().err
    with open_session(loaded, options(), 1):
        pass
    assert capsys.readouterr().err == ""


def test_an_engine_is_closed_however_it_is_left(loaded: Loaded, monkeypatch) -> None:
    closed = []
    monkeypatch.setattr(Engine, "close", lambda self: closed.append(self))
    for error in (KeyboardInterrupt, SystemExit, ConfigError):
        with pytest.raises(error), open_session(loaded, options(), 1):
            raise error
    assert len(closed) == 3


def test_ctrl_c_comes_between_steps(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    step, whole = Engine.step, []

    def interrupted(self):
        os.kill(os.getpid(), signal.SIGINT)
        outputs = step(self)
        whole.append(outputs)
        return outputs

    monkeypatch.setattr(Engine, "step", interrupted)
    with open_session(loaded, options(), 1) as session:
        question = Question(raw_prompt("x", loaded.tokenizer), SamplingParams(max_tokens=8))
        with pytest.raises(KeyboardInterrupt):
            list(session.answers([question]))
        assert len(whole) == 1
        assert not session.engine.has_work
        session.engine.check()
