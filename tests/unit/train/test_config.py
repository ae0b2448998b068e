from typing import Any

import pytest
from pydantic import ValidationError

from ziphius.core.errors import ConfigError
from ziphius.train.config import TrainConfig
from ziphius.train.optimizer_config import OptimizerConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ramp_steps": 10}, "ramp_from_rows and ramp_steps: give both or neither"),
        ({"ramp_from_rows": 2}, "ramp_from_rows and ramp_steps: give both or neither"),
        (
            {"batch_rows": 8, "ramp_from_rows": 3, "ramp_steps": 10},
            "ramp_from_rows = 3: must divide batch_rows = 8",
        ),
        ({"batch_rows": 8, "micro_rows": 3}, "micro_rows = 3: must divide 8"),
        (
            {"batch_rows": 8, "ramp_from_rows": 2, "ramp_steps": 10, "micro_rows": 4},
            "micro_rows = 4: must divide 2",
        ),
        ({"validate_ema": True}, "validate_ema has no effect without ema_decay"),
    ],
)
def test_settings_that_cannot_work_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainConfig(**fields)


@pytest.mark.parametrize("field", ["momentum", "update_rms", "newton_schulz_steps"])
def test_settings_of_muon_have_no_effect_on_adamw(field: str) -> None:
    value = 7 if field == "newton_schulz_steps" else 0.5
    with pytest.raises(ValidationError, match=f"{field} has no effect with the optimizer adamw"):
        OptimizerConfig(**{field: value})
    assert getattr(OptimizerConfig(name="muon", **{field: value}), field) == value


def test_micro_batches_are_all_rows_of_a_process_unless_asked() -> None:
    assert TrainConfig(batch_rows=8).rows_at_once(1) == 8
    assert TrainConfig(batch_rows=8).rows_at_once(4) == 2
    assert TrainConfig(batch_rows=8, micro_rows=1).rows_at_once(4) == 1
    assert TrainConfig(batch_rows=8, ramp_from_rows=4, ramp_steps=9).rows_at_once(2) == 2
    with pytest.raises(ConfigError, match="8 rows cannot be shared by 3 processes"):
        TrainConfig(batch_rows=8).rows_at_once(3)


def test_a_config_comes_back_from_its_json() -> None:
    config = TrainConfig(optimizer=OptimizerConfig(name="muon", momentum=0.9), schedule="v3")
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config
