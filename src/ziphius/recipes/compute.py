"""What the arms of the main job spend: FLOPs of sampling and of training, and when they are equal.

Two floating-point operations for each parameter in a product, as in `models/cost.py`; a token that
is sampled costs a forward, one that is trained on a forward and twice that backward.
"""

from dataclasses import dataclass
from pathlib import Path

from ziphius.core.errors import ConfigError
from ziphius.models.cost import Flops
from ziphius.train.records import read_metrics

CONTROL_SHARE = 1.07
"""Of GRPO's FLOPs, what a control is given: its rows are not quite filled, and it shall not have
less."""
LEAST_SHARE = 0.97
"""Of GRPO's FLOPs; a control that spent less is none."""


class UnequalComputeError(ConfigError):
    """A control had less compute than the arm that it controls."""


@dataclass(frozen=True)
class Compute:
    """What an arm that samples has spent."""

    sampled_tokens: int
    sampling_flops: float
    training_flops: float

    @property
    def flops(self) -> float:
        """Return both together."""
        return self.sampling_flops + self.training_flops


def sft_flops(flops: Flops, tokens: int) -> float:
    """Return what a supervised stage costs, which trains the MTP layers too."""
    return float(tokens * (flops.training + flops.training_mtp))


def grpo_compute(folder: Path, flops: Flops) -> Compute:
    """Add up what a run of GRPO sampled and trained on, answers that taught nothing included."""
    steps = [entry for entry in read_metrics(folder) if entry["kind"] == "step"]
    terms = [entry["terms"] for entry in steps]
    sampled = round(sum(t["completions/mean_length"] * t["sampled_completions"] for t in terms))
    trained = sum(entry["tokens"] for entry in steps)
    return Compute(sampled, float(sampled * flops.decode), float(trained * flops.training))


def refuse_unequal(spent: float, controls: dict[str, float]) -> None:
    """Refuse to compare where a control had less compute than it is said to have.

    Args:
        spent: FLOPs of the arm that is controlled, beyond the common start.
        controls: FLOPs of the others by name, likewise.

    Raises:
        UnequalComputeError: one has less than `LEAST_SHARE` of it.
    """
    for name, flops in controls.items():
        if flops < LEAST_SHARE * spent:
            raise UnequalComputeError(
                f"{name} spent {flops:.3g} FLOPs and is to control an arm that spent {spent:.3g}: "
                f"less than {100 * LEAST_SHARE:.0f} % of it. Remove the folder of its stage, and "
                "run it again."
            )
