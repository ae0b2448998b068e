"""`LogitConfig`: how probabilities are learned; apart from the stage, so that it needs no torch."""

from typing import Annotated

from pydantic import Field

from ziphius.core.config import Config


class LogitConfig(Config):
    """How a student is pulled towards its teacher's probabilities."""

    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divides both models' logits; above 1 the teacher's lesser choices weigh more."""
    hard_share: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of the loss on the text itself; the rest is the distance to the teacher."""
