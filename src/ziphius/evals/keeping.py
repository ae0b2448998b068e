"""Measurements as JSON in the run folder: what was measured once is not measured again."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ziphius.core.config import explain
from ziphius.core.files import write_file
from ziphius.evals.errors import EvalError
from ziphius.evals.measure import Measurement


@dataclass(frozen=True)
class Kept:
    """A measurement, and what it is a measurement of."""

    identity: Mapping[str, Any]
    """All that the figures hang on, as JSON: model, problems, settings, seed."""
    measurement: Measurement


_KEPT = TypeAdapter(Kept)


def kept_measurement(
    path: Path, identity: Mapping[str, Any], measure: Callable[[], Measurement]
) -> Measurement:
    """Read the measurement of `identity` from a file, or measure and write it there.

    A file about anything else is replaced.

    Args:
        path: of the file; it appears whole or not at all.
        identity: all that the figures hang on, JSON-serialisable.
        measure: called only where the file has not got it.

    Raises:
        EvalError: there is a file that cannot be read.
    """
    wanted = json.loads(json.dumps(identity))
    if path.exists():
        kept = read_measurement(path)
        if kept.identity == wanted:
            return kept.measurement
    measurement = measure()
    write_file(path, _KEPT.dump_json(Kept(wanted, measurement)) + b"\n")
    return measurement


def read_measurement(path: Path) -> Kept:
    """Read a file of `kept_measurement`."""
    try:
        return _KEPT.validate_json(path.read_bytes())
    except OSError as error:
        raise EvalError(f"Cannot read {path}: {error.strerror}.") from error
    except ValidationError as error:
        raise EvalError(
            f"{path} is no measurement, or a damaged one ({explain(error)[:200]}). Remove it, and "
            "it is measured again."
        ) from error
