"""Stages of a recipe: each is done once, keeps what it found, and can be interrupted.

A stage's folder holds `stage.json`: what the stage hung on, and what came out. The same stage asked
for again answers from there; one that was asked otherwise is refused, so that figures of two runs
never meet in one report.
"""

import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import ziphius
from ziphius.core.errors import ConfigError
from ziphius.core.files import refuse_occupied, write_file
from ziphius.train.lock import locked

CONFIG_FILE, STAGE_FILE = "config.json", "stage.json"


class StoppedError(Exception):
    """A signal ended a stage after it had saved: the same command goes on."""

    def __init__(self, stage: str, signal: int) -> None:
        super().__init__(f"stopped in the stage {stage}")
        self.stage, self.signal = stage, signal


@dataclass(frozen=True)
class StageResult:
    """What a stage leaves for those after it and for the report."""

    name: str
    folder: Path
    seconds: float
    """Of training over all starts; of stages that do not train, of the start that finished them."""
    checkpoint: Path | None = None
    """Folder of the model that it made."""
    flops: float | None = None
    tokens: int | None = None
    peak_memory_bytes: int | None = None
    """Largest resident memory of the process until the end of the stage."""
    note: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    baselines: dict[str, float] = field(default_factory=dict)
    """Losses to beat, of a stage that trains on text."""
    is_usable: bool = True
    """False where the stage found that it has nothing to do; `note` says why."""
    was_done: bool = False
    """It was found in the folder of the run, not done now."""


def done_once(
    name: str, folder: Path, identity: Mapping[str, Any], do: Callable[[Path], StageResult]
) -> StageResult:
    """Return what a stage found, doing it only if the folder has no result of it.

    Args:
        name: of the stage.
        folder: of the stage; it may hold a run that was interrupted, which `do` goes on with.
        identity: all that the result hangs on, JSON-serialisable.
        do: does the stage in the folder, which is there.

    Raises:
        ConfigError: the folder holds the same stage of another identity.
    """
    path, wanted = folder / STAGE_FILE, json.loads(json.dumps(identity, default=str))
    if path.exists():
        kept = _read(path)
        if kept["identity"] != wanted:
            changed = [key for key in wanted if kept["identity"].get(key) != wanted[key]]
            raise ConfigError(
                f"{folder} holds the stage {name} of another run ({', '.join(changed)} differ): "
                "choose another --out, or remove it."
            )
        return _result(kept["result"], folder)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    result = do(folder)
    elapsed = time.monotonic() - started
    if not result.seconds:
        result = replace(result, seconds=elapsed)
    print(f"{name}: done in {elapsed:.0f} s", file=sys.stderr, flush=True)
    document = {"identity": wanted, "result": asdict(result) | {"was_done": False}}
    write_file(path, json.dumps(document, indent=1, default=str) + "\n")
    return result


def sum_of(folder: Path, pattern: str) -> str:
    """Return the SHA-256 of the files that fit a pattern: what a result hangs on, by content."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob(pattern)):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


@contextmanager
def claimed(
    folder: Path, settings: Mapping[str, Any], besides: Sequence[str] = ()
) -> Iterator[None]:
    """Keep a run's folder to one process and one set of settings, for the length of a block.

    Args:
        folder: of the run.
        settings: all of them, JSON-serialisable.
        besides: names of files that a new run's folder may have already.

    Raises:
        ConfigError: the folder holds a run with other settings.
        OutputError: it holds something else, or cannot be written.
        TrainingError: another process uses it.
    """
    path = folder / CONFIG_FILE
    if not path.exists() and any(one.name not in besides for one in folder.glob("*")):
        refuse_occupied(folder)
    with locked(folder):
        wanted = json.loads(json.dumps(settings))
        if path.exists():
            kept = _settings_in(path)
            if changed := [name for name in wanted if kept.get(name) != wanted[name]]:
                raise ConfigError(
                    f"{folder} holds a run with other settings: "
                    + "; ".join(f"{n} was {kept.get(n)!r} and is {wanted[n]!r}" for n in changed)
                    + ". Choose another --out, or remove it."
                )
        else:
            document = {"versions": {"ziphius": ziphius.__version__}, "settings": wanted}
            write_file(path, json.dumps(document, indent=1) + "\n")
        yield


def _settings_in(path: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = json.loads(path.read_bytes())["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} holds no settings of a run ({error}).") from error
    return settings


def peak_memory_bytes() -> int:
    """Return the largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def _read(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_bytes())
        return {"identity": document["identity"], "result": document["result"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}): remove the folder of the stage."
        ) from error


def _result(fields: dict[str, Any], folder: Path) -> StageResult:
    """Read a result; paths are those of the folder as it lies now, should it have been moved."""
    checkpoint = fields.pop("checkpoint")
    moved = None if checkpoint is None else folder / Path(checkpoint).relative_to(fields["folder"])
    return StageResult(**(fields | {"folder": folder, "checkpoint": moved, "was_done": True}))
