"""What training commands share: options of every run, its folder, what is said at its end."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro
from pydantic import Field, ValidationError
from rich.console import Console

import ziphius
from ziphius.cli.options import AsJson
from ziphius.core.config import explain
from ziphius.core.errors import ConfigError, OutputError
from ziphius.core.files import refuse_occupied, write_file
from ziphius.train.budget import BudgetText
from ziphius.train.config import WITHOUT_EFFECT, Dtype, TrainConfig
from ziphius.train.lock import LOCK_FILE, locked
from ziphius.train.settings import RunSettings

if TYPE_CHECKING:
    from ziphius.train.instruments import Figures
    from ziphius.train.result import TrainResult
    from ziphius.train.run import Finished, RunContext

CONFIG_FILE = "config.json"

_Bare = tyro.conf.arg(prefix_name=False)


class TrainOptions(TrainConfig):
    """How to train, with the options of every day by their bare names."""

    budget: Annotated[BudgetText, _Bare] = "10m"
    """How long: a time (90s, 10m, 2h), tokens (200M-tokens) or steps (500-steps). A time is turned
    into a number of steps, which is estimated again after every tenth of it."""
    seed: Annotated[int, Field(ge=0, lt=2**63), _Bare] = 0
    """Decides the first weights and the order of the data."""
    device: Annotated[str, _Bare] = "auto"
    """auto (an accelerator if there is one), cpu, cuda, cuda:1, ..."""
    dtype: Annotated[Dtype, _Bare] = "auto"
    """Data type of matrix products; bfloat16 is autocast over float32 weights. auto takes it on
    accelerators, and on a CPU with units for it where the model is stored in it."""


class RunOptions(RunSettings):
    """Options of a run that are no part of what it computes."""

    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of the run. The same command again resumes the run where it stopped."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Resume the run in this folder, with the settings it was started with. Settings that do not
    change its numbers may be given again: a longer budget, how often it is saved or validated."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Start a new run in `out` with the settings of another run's config.json."""
    fresh: bool = False
    """Start over; a run that is in `out` already is moved aside."""
    require_exact: bool = False
    """Refuse to resume if the numbers would differ from those of a run that never stopped."""
    as_json: AsJson = False
    """Print the result as one JSON document."""


C = TypeVar("C", bound=RunOptions)

_OF_THE_CALL = RunOptions.model_fields.keys() - RunSettings.model_fields.keys()
_SHOWN = "instruments"
"""Part of the settings that a call may change: it is no part of what is computed."""


def settle(options: C) -> tuple[C, Path]:
    """Return all settings of a run, read from a file where that was asked for, and its folder."""
    if options.resume is not None and options.config is not None:
        raise ConfigError("resume and config: give one of them.")
    if options.resume is not None:
        changes = _refuse_settings(options, "resume", besides=WITHOUT_EFFECT)
        if options.out is not None or options.fresh:
            raise ConfigError("out and fresh have no effect with resume.")
        return _read(options, options.resume / CONFIG_FILE, changes), options.resume
    missing = options.missing if options.config is None else []
    if options.out is None:
        missing = [*missing, "--out, the folder of the run"]
    if missing:
        raise ConfigError(f"Give {'; and '.join(missing)}.")
    assert options.out is not None
    if options.config is not None:
        _refuse_settings(options, "config")
        return _read(options, options.config), options.out
    return options, options.out


def run_training(
    options: C, run: "Callable[[C, Path, RunContext], Finished]", *, name: str
) -> None:
    """Do a run in the processes that share it, and report it.

    Args:
        options: of the command.
        run: prepares and trains; it claims the folder once nothing can go wrong any more.
        name: of the command.
    """
    from ziphius.core.device import resolve_device
    from ziphius.dist.world import join_world, local_device
    from ziphius.train.run import RunContext

    settings, folder = settle(options)
    device = local_device(resolve_device(settings.train.device))
    with join_world(device) as world:
        if world.is_first:
            refuse_folder(settings, folder)
        context = RunContext(
            world,
            require_exact=options.require_exact,
            console=Console(stderr=True, quiet=not world.is_first),
            claim=lambda: claim_folder(settings, folder),
        )
        finished = run(settings, folder, context)
    if finished.figures is None:
        return
    shown = Console(stderr=options.as_json)
    if finished.table is not None:
        shown.print(finished.table)
    if finished.adapter is not None:
        shown.print(f"Adapters are in {finished.adapter}", highlight=False, soft_wrap=True)
    if finished.unexported is not None:
        file, base = finished.unexported
        shown.print(
            f"PEFT loads no GGUF file. Write it the base that they name: ziphius export {file} "
            f"{base} --weight-format float32",
            highlight=False,
            soft_wrap=True,
        )
    report(finished.result, finished.figures, shown, name=name, as_json=options.as_json)


def refuse_folder(options: RunOptions, folder: Path) -> None:
    """Refuse a folder that this run could not claim, before any work; nothing is written there.

    Raises:
        ConfigError: the folder holds a run with other settings.
        OutputError: it holds something else, or nothing can be written there.
        TrainingError: another process uses it.
    """
    path = folder / CONFIG_FILE
    if path.exists():
        with locked(folder):
            if not options.fresh:
                _refuse_changes(options, folder)
        return
    if not _has_only_a_lock(folder):
        refuse_occupied(folder)
    present = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not (present.is_dir() and os.access(present, os.W_OK | os.X_OK)):
        raise OutputError(f"Cannot write {folder}: {present} is no folder that you may write to.")


def claim_folder(options: RunOptions, folder: Path) -> None:
    """Make the folder of a run and write its config.json; what a user has there is never lost.

    Raises:
        ConfigError: the folder holds a run with other settings.
        OutputError: it holds something else.
        TrainingError: another process uses it.
    """
    refuse_folder(options, folder)
    path = folder / CONFIG_FILE
    with locked(folder):
        if path.exists() and options.fresh:
            _move_aside(folder)
        elif path.exists():
            _refuse_changes(options, folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(_document(options), indent=1) + "\n")


def report(
    result: "TrainResult", figures: "Figures", console: Console, *, name: str, as_json: bool
) -> None:
    """Show how a run ended; after a signal say how to go on, and exit as the signal asks."""
    from ziphius.train.summary import result_document, summary_table, verdict, write_result

    write_result(result, figures)
    console.print(summary_table(result, figures))
    console.print(verdict(result), highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(result_document(result, figures), indent=1))
    if result.stopped_by is not None:
        which = signal.Signals(result.stopped_by).name
        print(
            f"Stopped by {which} after step {result.step}; saved. To go on:\n"
            f"  ziphius {name} --resume {result.folder}",
            file=sys.stderr,
        )
        raise SystemExit(128 + result.stopped_by)


def _document(options: RunOptions) -> dict[str, Any]:
    import torch

    settings = options.model_dump(mode="json", exclude=_OF_THE_CALL)
    versions = {"ziphius": ziphius.__version__, "torch": torch.__version__}
    return {"versions": versions, "settings": settings}


def _read(options: C, path: Path, changes: Mapping[str, Any] | None = None) -> C:
    """Read the settings of a run; options of the call stay, and instruments that it names.

    Args:
        options: of the call.
        path: of the config.json.
        changes: settings of `train` that replace those of the file, by name.
    """
    try:
        settings = json.loads(path.read_bytes())["settings"]
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. Is it a run?") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} holds no settings of a run.") from error
    if unknown := settings.keys() - type(options).model_fields.keys():
        raise ConfigError(
            f"{path} is of another command's run: {', '.join(sorted(unknown))} is no setting of "
            "this one. Runs of pretrain and of sft go on with the command that began them."
        )
    try:
        of_the_call = {name: getattr(options, name) for name in _OF_THE_CALL}
        if options.instruments != type(options).model_fields[_SHOWN].default:
            of_the_call[_SHOWN] = options.instruments
        training = settings.get("train", {}) | (changes or {})
        return type(options).model_validate({**settings, **of_the_call, "train": training})
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error)}") from error


def _refuse_settings(
    options: RunOptions, name: str, besides: Set[str] = frozenset()
) -> dict[str, Any]:
    """Refuse options beside those of the call: the file decides. Return those that may be given.

    Args:
        options: of the call.
        name: of the option that brings the settings.
        besides: settings of `train` that may be given with it.
    """
    defaults, given = _settings(type(options)()), _settings(options)
    changed = {field: value for field, value in given.items() if value != defaults.get(field)}
    if refused := changed.keys() - besides:
        raise ConfigError(
            f"{', '.join(sorted(refused))}: no effect with {name}, which brings all settings of "
            "the run."
        )
    return {field.removeprefix("train."): value for field, value in changed.items()}


def _refuse_changes(options: RunOptions, folder: Path) -> None:
    """Refuse settings that would make the rest of a run another one; its length may change."""
    before = _read(options, folder / CONFIG_FILE)
    old, new = _settings(before), _settings(options)
    changed = [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in (new | old)
        if old.get(name) != new.get(name) and name not in WITHOUT_EFFECT
    ]
    if changed:
        raise ConfigError(
            f"{folder} holds a run with other settings: {'; '.join(changed)}. Go on with it by "
            f"--resume {folder}, start anew with --fresh, or choose another --out."
        )


def _settings(options: RunOptions) -> dict[str, Any]:
    """Name every setting that decides what is computed."""
    return dict(_flat("", options.model_dump(mode="json", exclude=_OF_THE_CALL | {_SHOWN})))


def _has_only_a_lock(folder: Path) -> bool:
    """Tell whether a run was killed before it wrote its settings."""
    return folder.is_dir() and [path.name for path in folder.iterdir()] == [LOCK_FILE]


def _move_aside(folder: Path) -> None:
    """Rename the folder of an old run; nothing of it is removed."""
    for number in range(1, 10_000):
        target = folder.with_name(f"{folder.name}.old-{number}")
        if not target.exists():
            os.rename(folder, target)
            print(f"The run that was in {folder} is now in {target}.", file=sys.stderr)
            return
    raise ConfigError(f"{folder} has 9,999 old runs beside it: remove some.")


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Name every leaf of nested dictionaries by its path."""
    if isinstance(value, dict) and value:
        for name, entry in value.items():
            yield from _flat(f"{prefix}.{name}" if prefix else name, entry)
    else:
        yield prefix, value
