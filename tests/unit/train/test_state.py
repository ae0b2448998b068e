import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import build, random_ids
from tests.training import RandomRows, moe_config, train_config
from ziphius.core.errors import OutputError
from ziphius.models import weights
from ziphius.models.lora import add_adapters, merge_adapters
from ziphius.models.lora_config import LoraConfig
from ziphius.models.weights.names import model_tensors
from ziphius.train import state as states
from ziphius.train.ema import Ema
from ziphius.train.errors import TrainingError
from ziphius.train.guard import Guard
from ziphius.train.optim import build_optimizer
from ziphius.train.seams import TrainState
from ziphius.train.stages.pretrain import Pretrain
from ziphius.train.state import FOLDER, STATE_FILE

CONFIG = train_config(ema_decay=0.9)


def started(seed: int = 1, *, lora: bool = False) -> TrainState:
    """A state after one step."""
    model = build(moe_config(), 0 if lora else seed)
    if lora:
        add_adapters(model, LoraConfig(rank=2), seed=seed)
    optimizer = build_optimizer(model, CONFIG.optimizer)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    stage = Pretrain(RandomRows(CONFIG), model.config, CONFIG)
    state = TrainState(model, optimizer, Ema(model, 0.9), stage, Guard(CONFIG.guard), step=seed)
    state.validation = {"loss": 2.0, "code/loss": float("inf")}
    return state


def written(state: TrainState, folder: Path, **notes: object) -> Path:
    folder.mkdir()
    base = folder.with_name("base")
    states.write(states.capture(state, notes, base), folder)
    return folder


@pytest.mark.parametrize("lora", [False, True])
def test_what_was_written_comes_back(tmp_path: Path, lora: bool) -> None:
    state, other = started(1, lora=lora), started(2, lora=lora)
    stored = states.read(written(state, tmp_path / "it", hello=[1, None]))
    assert stored.notes == {"hello": [1, None]}
    states.restore(other, stored)
    assert (other.step, other.validation) == (1, state.validation)
    for name, tensor in model_tensors(state.model).items():
        assert torch.equal(model_tensors(other.model)[name], tensor), name
    for name, parameter in state.model.named_parameters():
        theirs = other.optimizer.state[dict(other.model.named_parameters())[name]]
        for key, value in state.optimizer.state[parameter].items():
            assert torch.equal(theirs[key], value), (name, key)
    assert state.ema is not None
    assert other.ema is not None
    assert all(torch.equal(other.ema.tensors[name], t) for name, t in state.ema.tensors.items())


@pytest.mark.parametrize("lora", [False, True])
def test_a_checkpoint_is_a_model_folder(tmp_path: Path, lora: bool) -> None:
    state = started(lora=lora)
    folder = written(state, tmp_path / "it")
    if lora:
        weights.save(build(moe_config(), 0), tmp_path / "base")
        assert not (folder / "model.safetensors").exists()
        assert not (folder / "config.json").exists()
        merge_adapters(state.model)
    loaded = weights.load(folder)
    ids_BT = random_ids(2, 9, 61)
    state.model.eval()
    assert next(loaded.parameters()).dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(loaded(ids_BT).hidden_BTD, state.model(ids_BT).hidden_BTD)
    # Nothing beside the model's own files may look like weights to other programs.
    expected = ["adapter_model.safetensors" if lora else "model.safetensors"]
    assert [path.name for path in folder.glob("*.safetensors")] == expected


def test_a_tokenizer_goes_beside_the_model(tmp_path: Path) -> None:
    class Words:
        eos_ids = ()

        def save(self, folder: Path) -> None:
            (folder / "words.txt").write_text("a b c")

    (tmp_path / "it").mkdir()
    states.write(states.capture(started(), {}), tmp_path / "it", Words())
    assert (tmp_path / "it" / "words.txt").read_text() == "a b c"


def test_a_snapshot_does_not_follow_the_run(tmp_path: Path) -> None:
    state = started()
    snapshot = states.capture(state, {})
    expected = {name: tensor.clone() for name, tensor in model_tensors(state.model).items()}
    for tensor in model_tensors(state.model).values():
        tensor.data.zero_()
    state.guard.observe(2, 7.0)
    (tmp_path / "it").mkdir()
    states.write(snapshot, tmp_path / "it")
    loaded = model_tensors(weights.load(tmp_path / "it"))
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert states.read(tmp_path / "it").items["guard"].values["window"] == []


def test_large_models_are_cut_into_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "SHARD_BYTES", 60_000)
    state = started()
    folder = written(state, tmp_path / "it")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    other = started(2)
    states.restore(other, states.read(folder))
    assert torch.equal(other.model.lm_head.weight, state.model.lm_head.weight)


def test_files_have_the_rights_that_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = written(started(), tmp_path / "it")
    finally:
        os.umask(before)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}


def test_optimizer_tensors_are_named_after_their_weights(tmp_path: Path) -> None:
    folder = written(started(), tmp_path / "it")
    tensors = load_file(folder / FOLDER / "optimizer.safetensors")
    assert tensors["model.norm.weight|exp_avg"].shape == (24,)
    assert tensors["model.norm.weight|step"].item() == 1.0


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = written(started(), tmp_path / "it") / FOLDER / STATE_FILE
    document = json.loads(path.read_bytes())
    path.write_text(json.dumps(document | {"format": 2}))
    with pytest.raises(TrainingError, match="has the format 2; this version reads 1"):
        states.read(tmp_path / "it")


def test_a_part_that_only_one_version_knows_is_named(tmp_path: Path) -> None:
    stored = states.read(written(started(), tmp_path / "it"))
    guard = stored.items.pop("guard")
    with pytest.raises(TrainingError, match="another version: guard is in one"):
        states.restore(started(), stored)
    stored.items.update(guard=guard, moods=guard)
    with pytest.raises(TrainingError, match="another version: moods is in one"):
        states.restore(started(), stored)


def test_a_full_disk_is_an_error_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(states, "save_file", full)
    with pytest.raises(OutputError, match=r"optimizer\.safetensors: .*No space left on device"):
        written(started(), tmp_path / "it")
