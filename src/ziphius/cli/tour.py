"""What `ziphius run tour` shows: tables of what the tour found about each tiny model."""

import dataclasses
import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

import ziphius
from ziphius.core.files import new_folder, write_file

if TYPE_CHECKING:
    from ziphius.recipes.tour import FamilyReport


def show_tour(out: Path | None, *, as_json: bool) -> None:
    """Visit the tiny models, show what was found, keep it in a new folder if one is given.

    Exits with 1 if a check is over its bound.
    """
    from ziphius.recipes.tour import tour

    console = Console(stderr=as_json)
    if out is None:
        reports = _watch(tour(None), console)
    else:
        with new_folder(out) as folder:
            reports = _watch(tour(folder), console)
            write_file(folder / "tour.json", _as_json(reports))
    if as_json:
        print(_as_json(reports))
    else:
        _print_cost(reports, console)
        _print_text(reports, console)
        _print_checks(reports, console)
        if out is not None:
            console.print(f"Saved in {out}", markup=False, highlight=False, soft_wrap=True)
    if not all(check.passed for report in reports for check in report.checks):
        raise SystemExit(1)


def _watch(reports: "Iterator[FamilyReport]", console: Console) -> "list[FamilyReport]":
    seen = []
    with console.status("building the tiny models") as status:
        for report in reports:
            seen.append(report)
            status.update(f"{report.preset} done")
    return seen


def _print_cost(reports: "list[FamilyReport]", console: Console) -> None:
    context = reports[0].cost.context
    titles = ("parameters", "MTP", "active", "train", "decode", "cache", "MHA")
    table = Table(
        Column("preset", no_wrap=True),
        *(Column(title, justify="right", no_wrap=True) for title in titles),
        title=f"Tiny models of the family, context {context:,} tokens",
        caption="train, decode: MFLOP per token; cache, MHA: bytes per token in bfloat16, "
        "the model's own and with a key and value for every head",
        padding=(0, 0),
    )
    for report in reports:
        parameters, flops = report.cost.parameters, report.cost.flops
        cache_bytes = report.cost.cache_bytes
        table.add_row(
            report.preset,
            f"{parameters.main:,}",
            f"{parameters.mtp:,}",
            f"{parameters.active:,}",
            f"{(flops.training + flops.training_mtp) / 1e6:.2f}",
            f"{flops.decode / 1e6:.2f}",
            f"{cache_bytes.own:,}",
            f"{cache_bytes.mha:,}",
        )
    console.print(table)


def _print_text(reports: "list[FamilyReport]", console: Console) -> None:
    from ziphius.recipes.tour import PROMPT

    table = Table(
        Column("preset", no_wrap=True),
        f"continues {PROMPT!r}",
        title="Random weights: presets, not trained models",
    )
    for report in reports:
        # repr, because random bytes may move the cursor of a terminal.
        table.add_row(report.preset, Text(repr(report.text)))
    console.print(table)


def _print_checks(reports: "list[FamilyReport]", console: Console) -> None:
    bounds = {check.name: check.bound for report in reports for check in report.checks}
    titles = [name.replace(" = ", "\n= ") + f"\n<= {bound:g}" for name, bound in bounds.items()]
    table = Table(
        Column("preset", no_wrap=True),
        *(Column(title, no_wrap=True) for title in titles),
        title="Largest difference, relative to the largest value",
    )
    for report in reports:
        cells = {
            check.name: f"{check.difference:.1e} " + ("ok" if check.passed else "[bold red]FAILED")
            for check in report.checks
        }
        table.add_row(report.preset, *(cells.get(name, "-") for name in bounds))
    console.print(table)


def _as_json(reports: "list[FamilyReport]") -> str:
    families = [
        {
            "preset": report.preset,
            "random_weights": True,
            "text": report.text,
            "cost": dataclasses.asdict(report.cost),
            "checks": [
                {**dataclasses.asdict(check), "passed": check.passed} for check in report.checks
            ],
        }
        for report in reports
    ]
    versions = {"ziphius": ziphius.__version__, "torch": importlib.metadata.version("torch")}
    return json.dumps({"recipe": "tour", "versions": versions, "families": families}, indent=2)
