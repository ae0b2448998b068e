"""What text a run learns from: the options of every command that prepares data."""

import os
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ziphius.core.config import Config
from ziphius.data.mathematics import remaining
from ziphius.data.mixes import MATHEMATICS, Mix, get_mix

HUB = "hf:"
"""What stands before the name of a data set of the hub."""
DOMAIN_MEGABYTES = 64.0
OverLong = Literal["skip", "cut", "refuse"]
"""What happens to a conversation that no row holds."""


class DataConfig(Config):
    """Which text, how much of it, and how it is tokenized."""

    mix: str = "v2"
    """Mix of the embedded corpora: v2, r1 or coder."""
    own: tuple[str, ...] = ()
    """Own text: files of text, code, JSON Lines, JSON, CSV, parquet or Arrow, also compressed,
    folders of them, or hf:NAME for a data set of the hub, which is streamed."""
    own_share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the own text; what is left of 1 comes from the mix."""
    column: str = "text"
    """Column of the text where own text comes in rows, and in data sets of the hub."""
    own_megabytes: Annotated[float, Field(gt=0.0)] | None = None
    """Most own text: a random sample of all of it where there is more. By default all of it. With
    a data set of the hub it must be given: its files are shuffled and read so far."""
    own_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Decides which documents own_megabytes takes."""
    domain_megabytes: Annotated[float, Field(gt=0.0)] = DOMAIN_MEGABYTES
    """Most text that is taken from one domain of the mix; a sample where there is more."""
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
        if not self.own and self.own_megabytes is not None:
            raise ValueError("own_megabytes: there is no own text. Name it with own.")
        if self.own_seed and self.own_megabytes is None:
            raise ValueError("own_seed: all own text is taken. Set own_megabytes too.")
        if self.own and self.own_share == 1.0 and self.domain_megabytes != DOMAIN_MEGABYTES:
            raise ValueError(
                "domain_megabytes: nothing comes from the mix. Limit your own text with "
                "own_megabytes."
            )
        if self.own_megabytes is None and any(name.startswith(HUB) for name in self.own):
            raise ValueError(
                "own_megabytes: a data set of the hub may be larger than any disk. Say how much of "
                "it to take."
            )
        if self.own_megabytes is not None and len({name.startswith(HUB) for name in self.own}) > 1:
            raise ValueError(
                "own_megabytes: one sample cannot be drawn from files and from a data set of the "
                "hub, which is not read whole. Give one of them, or leave it out."
            )
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
