"""`train/loading.py`: in which numbers a model that is there is trained, and what does not fit."""

from pathlib import Path

import pytest
import torch

from tests.tiny import build, grouped_config
from ziphius.core import memory
from ziphius.core.errors import DeviceError
from ziphius.models.adapter_cost import adapter_memory
from ziphius.models.lora_config import LoraConfig
from ziphius.models.model import Model
from ziphius.models.weights import WeightFormat, save
from ziphius.train.config import TrainConfig
from ziphius.train.loading import load_to_train, settle_dtype

CONFIG = grouped_config()
PARAMETERS = sum(parameter.numel() for parameter in build(CONFIG).parameters())
PLAIN, ADAPTED = LoraConfig(), LoraConfig(rank=2)


@pytest.fixture
def has_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ziphius.core.device.multiplies_bfloat16", lambda: True)


def folder_of(tmp_path: Path, weight_format: WeightFormat) -> Path:
    save(build(CONFIG), tmp_path / "model", weight_format=weight_format)
    return tmp_path / "model"


def loaded(folder: Path, lora: LoraConfig, dtype: str = "auto") -> tuple[str, Model]:
    training = settle_dtype(TrainConfig(device="cpu", dtype=dtype), folder)
    return training.dtype, load_to_train(folder, training, lora)


def dtypes(model: Model) -> set[torch.dtype]:
    return {parameter.dtype for parameter in model.parameters()}


@pytest.mark.usefixtures("has_units")
@pytest.mark.parametrize(
    ("weight_format", "asked", "settled", "frozen"),
    [
        ("bfloat16", "auto", "bfloat16", torch.bfloat16),
        ("bfloat16", "bfloat16", "bfloat16", torch.bfloat16),
        ("bfloat16", "float32", "float32", torch.float32),
        ("fp8", "auto", "bfloat16", torch.bfloat16),
        ("float32", "auto", "auto", torch.float32),
        ("float32", "bfloat16", "bfloat16", torch.float32),
    ],
)
def test_frozen_weights_stay_as_they_are_stored_and_trained_ones_are_float32(
    tmp_path: Path,
    weight_format: WeightFormat,
    asked: str,
    settled: str,
    frozen: torch.dtype,
) -> None:
    folder = folder_of(tmp_path, weight_format)
    dtype, model = loaded(folder, ADAPTED, asked)
    assert (dtype, dtypes(model)) == (settled, {frozen})
    dtype, model = loaded(folder, PLAIN, asked)
    assert (dtype, dtypes(model)) == (settled, {torch.float32})


def test_without_units_for_it_auto_stays_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ziphius.core.device.multiplies_bfloat16", lambda: False)
    dtype, model = loaded(folder_of(tmp_path, "bfloat16"), ADAPTED)
    assert (dtype, dtypes(model)) == ("auto", {torch.float32})


def test_what_cannot_be_trained_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All weights take 16 bytes each; adapters leave most of them as they are."""
    folder = folder_of(tmp_path, "bfloat16")
    needed = {
        dtype: adapter_memory(CONFIG, tokens=1, dtype=dtype, rank=2).without_activations
        for dtype in ("float32", "bfloat16")
    }

    def free(size: int) -> None:
        monkeypatch.setattr(memory, "free_bytes", lambda device: size)

    free(16 * PARAMETERS)
    loaded(folder, PLAIN)
    free(16 * PARAMETERS - 1)
    with pytest.raises(DeviceError, match=r"train all weights of .*: adapters on it, lora.rank 16"):
        loaded(folder, PLAIN)
    free(needed["bfloat16"])
    loaded(folder, ADAPTED, "bfloat16")
    with pytest.raises(DeviceError, match=r"which stays float32, .* What fits: a bfloat16 checkpo"):
        loaded(folder, ADAPTED, "float32")
    free(needed["bfloat16"] - 1)
    monkeypatch.setattr("ziphius.train.loading.load", None)
    with pytest.raises(
        DeviceError, match=r"rank 2 on .* which stays bfloat16, takes .* smaller mod"
    ):
        loaded(folder, ADAPTED, "bfloat16")
