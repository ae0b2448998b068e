from typing import Any

import pytest
from pydantic import ValidationError

from ziphius.core.errors import ConfigError
from ziphius.train.config import TrainConfig
from ziphius.train.optimizer_config import OptimizerConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rampup_steps": 10}, "rampup_batch_size and rampup_steps: give both or neither"),
        ({"rampup_batch_size": 2}, "rampup_batch_size and rampup_steps: give both or neither"),
        (
            {"global_batch_size": 8, "rampup_batch_size": 3, "rampup_steps": 10},
            "rampup_batch_size = 3: must divide global_batch_size = 8",
        ),
        ({"global_batch_size": 8, "micro_batch_size": 3}, "micro_batch_size = 3: must divide 8"),
        (
            {
                "global_batch_size": 8,
                "rampup_batch_size": 2,
                "rampup_steps": 10,
                "micro_batch_size": 4,
            },
            "micro_batch_size = 4: must divide 2",
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
    assert TrainConfig(global_batch_size=8).resolved_micro_batch_size(1) == 8
    assert TrainConfig(global_batch_size=8).resolved_micro_batch_size(4) == 2
    assert TrainConfig(global_batch_size=8, micro_batch_size=1).resolved_micro_batch_size(4) == 1
    assert (
        TrainConfig(
            global_batch_size=8, rampup_batch_size=4, rampup_steps=9
        ).resolved_micro_batch_size(2)
        == 2
    )
    with pytest.raises(ConfigError, match="8 rows cannot be shared by 3 processes"):
        TrainConfig(global_batch_size=8).resolved_micro_batch_size(3)


def test_a_config_comes_back_from_its_json() -> None:
    config = TrainConfig(optimizer=OptimizerConfig(name="muon", momentum=0.9), schedule="v3")
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config
