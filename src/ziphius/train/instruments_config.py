"""`InstrumentsConfig`: what is shown and kept of a run; to be read without torch."""

from typing import Annotated, Self

import tyro
from pydantic import model_validator

from ziphius.core.config import Config
from ziphius.core.errors import ConfigError

# On a command line without the prefix: --quiet.
_Bare = tyro.conf.arg(prefix_name=False)


class InstrumentsConfig(Config):
    """What is shown and kept of a run."""

    quiet: Annotated[bool, _Bare] = False
    """Show no live line."""
    tensorboard: Annotated[bool, _Bare] = True
    """Curves for TensorBoard in the run folder."""
    wandb: Annotated[str | None, _Bare] = None
    """Project of Weights & Biases that gets the curves too."""
    wandb_offline: Annotated[bool, _Bare] = False
    """Keep what Weights & Biases would be sent in the run folder."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.wandb_offline and self.wandb is None:
            raise ConfigError("wandb_offline has no effect without wandb, the name of a project.")
        return self
