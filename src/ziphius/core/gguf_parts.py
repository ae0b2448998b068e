"""A GGUF model in several files, as llama.cpp splits one: `name-00002-of-00003.gguf`.

Every part is a whole GGUF file and says which one it is (`split.no`, from 0), of how many
(`split.count`), and how many tensors all hold together (`split.tensors.count`). The first has the
metadata of the model.
"""

import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from ziphius.core.errors import CheckpointError
from ziphius.core.gguf_header import GgufHeader, read_gguf_header
from ziphius.core.reading import ErrorKind

_NAME = re.compile(r"(.+-)(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE)


def read_first_part(
    file: Path, *, keep: Collection[str] = (), error: ErrorKind = CheckpointError
) -> GgufHeader:
    """Read the header that has the metadata, whichever part of the model is named.

    Args:
        file: the only file of a model, or any of its parts.
        keep: see `read_gguf_header`.
        error: what to raise if a header makes no sense, or the first part is missing.
    """
    header = read_gguf_header(file, keep=keep, error=error)
    first, *_ = _paths(header, error)
    return header if first == file else _read_part(first, 0, keep, error)


def read_parts(file: Path, error: ErrorKind = CheckpointError) -> list[GgufHeader]:
    """Read the headers of all files of a model, of which any may be named, in their order."""
    header = read_gguf_header(file, error=error)
    paths = _paths(header, error)
    missing = [path for path in paths if not path.exists()]
    if missing:
        others = f" (and {len(missing) - 1} more)" * (len(missing) > 1)
        raise error(
            f"{missing[0]}{others} is missing: the model is split into {len(paths)} files, which "
            "have to lie in one folder."
        )
    return [
        header if path == file else _read_part(path, number, (), error)
        for number, path in enumerate(paths)
    ]


def joined(parts: list[GgufHeader], error: ErrorKind = CheckpointError) -> GgufHeader:
    """Put the tensors of all parts beside the metadata of the first."""
    first = parts[0]
    tensors = dict(first.tensors)
    for part in parts[1:]:
        for name, entry in part.tensors.items():
            if name in tensors:
                _refuse(part, f"holds {name}, which {tensors[name].file.name} holds too", error)
            tensors[name] = entry
    expected = first.metadata.get("split.tensors.count", len(tensors))
    if len(parts) > 1 and expected != len(tensors):
        _refuse(
            first, f"speaks of {expected} tensors in all parts; they hold {len(tensors)}", error
        )
    return replace(first, size_bytes=sum(part.size_bytes for part in parts), tensors=tensors)


def _paths(header: GgufHeader, error: ErrorKind) -> list[Path]:
    """Name all parts of the model that a header belongs to, there or not."""
    number, count = _place(header, error)
    if count == 1:
        return [header.file]
    name = _NAME.fullmatch(header.file.name)
    if name is None or (int(name[2]), int(name[3])) != (number + 1, count):
        _refuse(
            header,
            f"is part {number + 1} of a model in {count} files, by whose names they find each "
            f"other: this one's has to end in -{number + 1:05}-of-{count:05}.gguf",
            error,
        )
    return [
        header.file.with_name(f"{name[1]}{part:05}-of-{name[3]}{name[4]}")
        for part in range(1, count + 1)
    ]


def _read_part(path: Path, number: int, keep: Collection[str], error: ErrorKind) -> GgufHeader:
    header = read_gguf_header(path, keep=keep, error=error)
    found, count = _place(header, error)
    if found != number or len(_paths(header, error)) != count:
        _refuse(header, f"says that it is part {found + 1} of {count}; its name says else", error)
    return header


def _place(header: GgufHeader, error: ErrorKind) -> tuple[int, int]:
    """Read which part of how many a file is; the only one says nothing."""
    number, count = header.metadata.get("split.no", 0), header.metadata.get("split.count", 1)
    if not isinstance(number, int) or not isinstance(count, int) or not 0 <= number < count:
        _refuse(header, f"has split.no = {number} and split.count = {count}", error)
    return number, count


def _refuse(header: GgufHeader, reason: str, error: ErrorKind) -> NoReturn:
    raise error(f"{header.file} {reason}.")
