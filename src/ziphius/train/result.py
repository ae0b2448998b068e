"""What a run of training leaves for its caller."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class TrainResult:
    """How far a run came, and where its model is."""

    stage: str
    folder: Path
    checkpoint: Path
    """The last one: a model folder with the state of the run beside it."""
    step: int
    total_steps: int | None
    """None if a run of a given time ended before its steps were counted."""
    tokens: int
    seconds: float
    """Of training, measurements included, over all starts of the run."""
    loss: float | None
    """Of the last step; None if this start did none."""
    validation: dict[str, float] = field(default_factory=dict)
    """The last figures on held-out text."""
    validation_step: int = 0
    """Steps that were done when they were measured."""
    validation_at_start: dict[str, float] = field(default_factory=dict)
    """The figures of before the first step."""
    baselines: dict[str, float] = field(default_factory=dict)
    spikes: list[dict[str, float]] = field(default_factory=list)
    skipped_steps: int = 0
    """Steps in which there was nothing to learn, so that nothing moved."""
    stopped_by: int | None = None
    """Number of the signal that ended the run early."""

    @property
    def is_measured(self) -> bool:
        """Tell whether the last figures on held-out text are of the model as it is."""
        return self.is_complete or self.validation_step == self.step

    @property
    def is_complete(self) -> bool:
        """Tell whether all steps are done."""
        return self.step == self.total_steps
