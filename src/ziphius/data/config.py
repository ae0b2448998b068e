"""What text a run learns from: the options of every command that prepares data."""

import os
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ziphius.core.config import Config
from ziphius.data.mathematics import remaining
from ziphius.data.mixes import MATHEMATICS, Mix, get_mix

OverLong = Literal["skip", "cut", "refuse"]
"""What happens to a conversation that no row holds."""


class DataConfig(Config):
    """Which text, how much of it, and how it is tokenized."""

    mix: str = "v2"
    """Mix of the embedded corpora: v2, r1 or coder."""
    own: tuple[str, ...] = ()
    """Own text: files or folders of text, .jsonl or .parquet, or hf:NAME for a data set of the
    hub, which is streamed."""
    own_share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the own text; what is left of 1 comes from the mix."""
    column: str = "text"
    """Column of the text in .jsonl, .parquet and data sets of the hub."""
    domain_megabytes: Annotated[float, Field(gt=0.0)] = 64.0
    """Most text that is taken from one domain; a sample where there is more."""
    mathematics_without: tuple[str, ...] = ()
    """Exercises that the made mathematics leaves out, such as greatest_divisor: what a model is to
    meet for the first time later."""
    fim_rate: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """Share of the code documents that are filled in the middle; the mix's own when not given."""
    fim_spm_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of those with the suffix first (SPM) instead of the prefix (PSM)."""
    processes: Annotated[int, Field(ge=-1, le=512)] = -1
    """Processes that tokenize beside this one; 0 for none, -1 for one per core."""

    @model_validator(mode="after")
    def _settings_with_effect(self) -> Self:
        get_mix(self.mix)
        if not self.own and self.own_share != 1.0:
            raise ValueError("own_share: there is no own text. Name it with own.")
        if not self.own and self.column != "text":
            raise ValueError("column: there is no own text. Name it with own.")
        remaining(self.mathematics_without)
        if self.mathematics_without and MATHEMATICS not in self.resolved_mix.shares:
            raise ValueError(
                "mathematics_without: the mix has no mathematics. Take the mix r1, or leave it out."
            )
        if self.fim_spm_share > 0.0 and self.resolved_fim_rate == 0.0:
            raise ValueError("fim_spm_share: nothing is filled in the middle. Set fim_rate too.")
        return self

    def left_out(self, domain: str) -> tuple[str, ...]:
        """Give the exercises that a domain leaves out, each once."""
        return tuple(sorted(set(self.mathematics_without))) if domain == MATHEMATICS else ()

    @property
    def resolved_mix(self) -> Mix:
        """Give the mix with the own text in it."""
        mix = get_mix(self.mix)
        return mix.with_own(self.own_share) if self.own else mix

    @property
    def resolved_fim_rate(self) -> float:
        """Give the share of code that is filled in the middle."""
        return self.resolved_mix.fim_rate if self.fim_rate is None else self.fim_rate

    @property
    def resolved_processes(self) -> int:
        """Give the number of processes for this machine."""
        return (os.cpu_count() or 1) if self.processes < 0 else self.processes
