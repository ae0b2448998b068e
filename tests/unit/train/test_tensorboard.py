import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.train.test_records import step_record
from ziphius.core.errors import MissingExtraError
from ziphius.train import tensorboard
from ziphius.train.records import Speed
from ziphius.train.seams import ValidationRecord
from ziphius.train.tensorboard import (
    TensorBoardCurves,
    WandbCurves,
    scalars_of,
    validation_scalars,
)


def test_scalars_cover_what_the_design_promises() -> None:
    scalars = scalars_of(step_record(1), Speed(256.0, 0.4))
    assert scalars == {
        "loss": 1.0 / 3.0 + 1,
        "learning_rate": 1e-3,
        "terms/next_token": 2.0,
        "terms/mtp1": 3.0,
        "grad_norm/all": 0.1,
        "grad_norm/attention": 0.06,
        "grad_norm/experts": 0.08,
        "max_vio/layer 1": 2.0,
        "load of the busiest expert/layer 1": 3.0,
        "load of the idlest expert/layer 1": 0.0,
        "gate_entropy/layer 1": 1.25,
        "speed/tokens_per_s": 256.0,
        "speed/mfu": 0.4,
    }
    assert "speed/mfu" not in scalars_of(step_record(1), Speed(256.0))
    figures = {"loss": 1.0, "bits_per_byte/code": 2.0}
    assert validation_scalars(ValidationRecord(1, figures, 0.0)) == {
        "validation/loss": 1.0,
        "validation/bits_per_byte/code": 2.0,
    }


def points(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_a_reader_sees_each_step_once_after_a_resume(tmp_path: Path) -> None:
    curves = TensorBoardCurves(tmp_path)
    for step in (1, 2, 3, 4):
        curves.write({"loss": float(step)}, step)
    curves.close()
    curves = TensorBoardCurves(tmp_path)
    curves.cut_after(2)
    curves.write({"loss": 30.0}, 3)
    curves.close()
    assert points(tmp_path, "loss") == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_without_tensorboard_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorboard, "has_tensorboard", lambda: False)
    with pytest.raises(MissingExtraError, match="pip install tensorboard"):
        TensorBoardCurves(tmp_path)


class FakeWandb:
    """The two calls that are made, kept."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.logged: list[tuple[dict[str, float], int]] = []
        self.is_finished = False

    def init(self, **settings: Any) -> SimpleNamespace:
        self.settings = settings
        return SimpleNamespace(log=self._log, finish=self._finish)

    def _log(self, scalars: dict[str, float], step: int) -> None:
        self.logged.append((scalars, step))

    def _finish(self) -> None:
        self.is_finished = True


def test_wandb_gets_the_curves_under_one_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identities = []
    for folder in ("a", "a", "b"):
        fake = FakeWandb()
        monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
        curves = WandbCurves(tmp_path / folder, "whales", is_offline=True, config={"x": 1})
        curves.write({"loss": 1.0}, 3)
        curves.close()
        assert fake.settings["mode"] == "offline"
        assert fake.settings["project"] == "whales"
        assert fake.settings["config"] == {"x": 1}
        assert fake.logged == [({"loss": 1.0}, 3)]
        assert fake.is_finished
        identities.append(fake.settings["id"])
    assert identities[0] == identities[1] != identities[2]


def test_without_wandb_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match="pip install wandb"):
        WandbCurves(tmp_path, "whales", is_offline=False, config={})
