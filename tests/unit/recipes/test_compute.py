"""`recipes/compute.py`: what arms spend, and that a control with less is none."""

import json
from pathlib import Path

import pytest

from ziphius.models.cost import model_cost
from ziphius.models.presets import get_preset
from ziphius.recipes.compute import (
    CONTROL_SHARE,
    UnequalComputeError,
    grpo_compute,
    refuse_unequal,
    sft_flops,
)

FLOPS = model_cost(get_preset("v3-1m"), context=256).flops


def test_a_control_with_less_compute_than_stated_is_refused_by_name() -> None:
    refuse_unequal(100.0, {"more SFT": 97.0, "RFT": 140.0})
    with pytest.raises(UnequalComputeError, match="RFT spent 96 FLOPs"):
        refuse_unequal(100.0, {"more SFT": 100.0, "RFT": 96.0})


def test_controls_are_given_more_than_they_must_have() -> None:
    assert CONTROL_SHARE > 1.0


def test_grpo_is_charged_for_all_that_it_sampled(tmp_path: Path) -> None:
    """Answers that taught nothing, and refills, are sampled too."""
    steps = [
        {"kind": "step", "step": 1, "tokens": 900, "terms": terms(completion=20.0, answers=64.0)},
        {"kind": "validation", "step": 1, "figures": {}},
        {"kind": "step", "step": 2, "tokens": 0, "terms": terms(completion=10.0, answers=80.0)},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in steps))
    found = grpo_compute(tmp_path, FLOPS)
    assert found.sampled_tokens == 20 * 64 + 10 * 80
    assert found.sampling_flops == found.sampled_tokens * FLOPS.decode
    assert found.training_flops == 900 * FLOPS.training
    assert found.flops == found.sampling_flops + found.training_flops


def terms(completion: float, answers: float) -> dict[str, float]:
    return {"completions/mean_length": completion, "sampled_completions": answers}


def test_supervised_stages_pay_for_their_mtp_layers() -> None:
    assert FLOPS.training_mtp > 0
    assert sft_flops(FLOPS, 10) == 10 * (FLOPS.training + FLOPS.training_mtp)
