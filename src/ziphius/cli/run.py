"""`ziphius run`: a whole run in one command."""

import json
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

import tyro
from pydantic import Field, model_validator
from rich.console import Console
from rich.table import Column, Table

from ziphius.cli.options import AsJson
from ziphius.core.config import Config
from ziphius.core.errors import ConfigError
from ziphius.train.budget import BudgetText

if TYPE_CHECKING:
    from ziphius.recipes.family_settings import FamilySettings
    from ziphius.recipes.report.sections import Arm

BUDGETS = {"family": "15m", "smollm": "2h"}


class RunConfig(Config):
    """What `ziphius run` needs to know."""

    recipe: tyro.conf.Positional[Literal["family", "smollm", "tour"]] = "family"
    """family: real text to a reasoning model, its student, and a report. smollm: the same path from
    SmolLM2-135M-Instruct instead of text. tour: a tiny model of each family, built, costed, checked
    and run, in seconds."""
    budget: BudgetText | None = None
    """Time for the whole of it: for family 2m to try it out, 15m (the default) for a result, 2h for
    a better one; for smollm 2h by default. It becomes steps before the first stage, from the speed
    of this machine, and the run keeps them in lengths.json."""
    lengths: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """lengths.json of another run, instead of a budget: the same steps, on any machine."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Decides weights, data, problems and samples."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of the run, runs/family or runs/smollm by default, where the same command goes on. The
    tour keeps its models in a new folder, or nothing without one."""
    dry_run: bool = False
    """Print what would be done, with estimates, and do nothing."""
    as_json: AsJson = False
    """Print the result as one JSON document."""

    @property
    def time(self) -> BudgetText:
        """Return the budget, or the recipe's own."""
        return self.budget or BUDGETS[self.recipe]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.recipe == "tour":
            fields = type(self).model_fields
            for name in ("budget", "lengths", "seed", "dry_run"):
                if getattr(self, name) != fields[name].default:
                    raise ConfigError(f"{name} has no effect on the tour: nothing is trained.")
        if self.budget is not None and self.lengths is not None:
            raise ConfigError("budget has no effect with lengths, which say how long all is.")
        return self


def run(config: RunConfig) -> None:
    """Go from real text to a reasoning model, a student and an honest report; or tour the family.

    Every stage is saved: after Ctrl-C, or a crash, the same command continues.

    Example:
        ziphius run
        ziphius run --budget 2m --out runs/short
        ziphius run --dry-run
        ziphius run --lengths runs/family/lengths.json --seed 1 --out runs/again
        ziphius run smollm --budget 4h
        ziphius run tour --out tour
    """
    if config.recipe == "tour":
        from ziphius.cli.tour import show_tour

        show_tour(config.out, as_json=config.as_json)
        return
    _path(config)


def _path(config: RunConfig) -> None:
    from ziphius.recipes.family import run_family
    from ziphius.recipes.family_plan import plan
    from ziphius.recipes.family_report import document, report_family
    from ziphius.recipes.lengths import LENGTHS_FILE
    from ziphius.recipes.stages import StoppedError, claimed

    folder = config.out or Path("runs") / config.recipe
    settings = _settings(config, folder)
    console = Console(stderr=True)
    if config.dry_run:
        rows = plan(settings)
        if config.as_json:
            print(json.dumps([row.document for row in rows], indent=1))
        else:
            table = Table("stage", *(Column(name, justify="right") for name in rows[0].cells))
            for row in rows:
                table.add_row(row.stage, *row.cells.values())
            Console().print(table)
        return
    with claimed(folder, settings.model_dump(mode="json"), besides=(LENGTHS_FILE,)):
        try:
            finished = run_family(settings, folder, console)
        except StoppedError as stopped:
            name = signal.Signals(stopped.signal).name
            print(
                f"Stopped by {name} in the stage {stopped.stage}; saved. To go on:\n"
                f"  {command_line(config)}",
                file=sys.stderr,
            )
            raise SystemExit(128 + stopped.signal) from None
        console.rule("measuring every arm on the same problems")
        report, path = report_family(finished, command=command_line(config))
    if config.as_json:
        print(json.dumps(document(finished, report), indent=1))
    else:
        _print_arms(report.arms)
    console.print(f"The report: {path}", markup=False, highlight=False, soft_wrap=True)


def _settings(config: RunConfig, folder: Path) -> "FamilySettings":
    from ziphius.recipes import family_settings, smollm
    from ziphius.recipes.lengths import read_lengths, settle

    is_family = config.recipe == "family"
    if config.lengths is not None:
        lengths = read_lengths(config.lengths)
    else:
        reference = family_settings.REFERENCE if is_family else smollm.REFERENCE
        shape = family_settings.FamilySettings().shape
        if not is_family:
            shape = smollm.smollm_settings(reference.lengths, config.seed).shape
        lengths = settle(folder, config.time, reference, shape, keep=not config.dry_run)
    if is_family:
        return family_settings.FamilySettings(lengths=lengths, seed=config.seed)
    return smollm.smollm_settings(lengths, config.seed)


def command_line(config: RunConfig) -> str:
    """Spell the command of a run."""
    words = ["ziphius", "run", *([config.recipe] if config.recipe != "family" else [])]
    if config.lengths is None:
        words += ["--budget", config.time]
    else:
        words += ["--lengths", str(config.lengths)]
    words += ["--seed", str(config.seed)]
    if config.out is not None:
        words += ["--out", str(config.out)]
    return shlex.join(words)


def _print_arms(arms: "Sequence[Arm]") -> None:
    """Print one row an arm: pass@1 by slice, length, speed and size."""
    if not arms:
        return
    names = ["all", "95 %", *(one.name.replace(" ", "\n") for one in arms[0].slices[1:])]
    table = Table(
        Column("", no_wrap=True),
        *(Column(name, justify="right") for name in (*names, "tokens", "tokens/s", "size")),
        title="pass@1 in %",
        caption="all: in distribution and one step harder, with its 95 % interval.\n"
        "tokens: of an answer; size: parameters. The report has pass@8 and all else.",
        show_edge=False,
        padding=(0, 0),
    )
    for arm in arms:
        first, *others = arm.slices
        share = first.pass_at_1
        table.add_row(
            arm.name,
            f"{100 * share.value:.0f}",
            f"{100 * share.low:.0f}-{100 * share.high:.0f}",
            *(f"{100 * one.pass_at_1.value:.0f}" for one in others),
            f"{first.tokens.value:.0f}",
            f"{arm.tokens_per_s:,.0f}",
            f"{(arm.parameters or 0) / 1e6:.2f}M",
        )
    Console().print(table)
