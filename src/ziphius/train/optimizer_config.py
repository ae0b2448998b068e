"""`OptimizerConfig`: which optimizer, and the constants of DeepSeek's reports."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ziphius.core.config import Config
from ziphius.core.errors import ConfigError


class OptimizerConfig(Config):
    """What turns gradients into steps."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw for all weights, or muon for matrices and adamw for embedding, head, routers and
    norms."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of AdamW's mean of gradients."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of AdamW's mean of squared gradients."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the mean square."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Share of a weight, times the learning rate, taken off each step; norms and biases keep
    theirs."""
    moments: Literal["float32", "bfloat16"] = "float32"
    """Data type of AdamW's two moments; V3 kept them in bfloat16."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay of Muon's mean of gradients."""
    update_rms: Annotated[float, Field(gt=0)] = 0.18
    """Root mean square of Muon's update, near that of AdamW's, so that one learning rate suits
    both."""
    newton_schulz_steps: Annotated[int, Field(ge=1, le=20)] = 5
    """Iterations that bring Muon's update near an orthogonal matrix."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for field in _NO_EFFECT[self.name]:
            if getattr(self, field) != type(self).model_fields[field].default:
                raise ConfigError(f"{field} has no effect with the optimizer {self.name}.")
        return self


_MUON = ("momentum", "update_rms", "newton_schulz_steps")
_NO_EFFECT: dict[str, tuple[str, ...]] = {"adamw": _MUON, "muon": ()}
"""Settings that belong to other optimizers, by name; Muon leaves some weights to AdamW."""
