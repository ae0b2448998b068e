"""What is made of data once and kept: the name of a folder is a hash of all that it depends on.

A second run with the same data, tokenizer and settings finds the folder and starts at once. It
appears whole or not at all (`core.files`), beside the assets in the cache.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ziphius.core.assets import CACHE_REMEDY, cache_folder
from ziphius.core.errors import OutputError
from ziphius.core.files import new_folder
from ziphius.text.tokenizer import Tokenizer


def tokens_folder() -> Path:
    """Name the folder that tokenized data are kept in."""
    return cache_folder() / "tokens"


def made_once(name: str, made_of: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
    """Return the folder of what is made of these, made now if it is not there.

    Args:
        name: of the folder, before the hash.
        made_of: all that the content depends on.
        make: fills a folder that is not yet visible.

    Raises:
        OutputError: it cannot be written.
    """
    folder = tokens_folder() / f"{name}-{digest(made_of)[:20]}"
    if not folder.is_dir():
        try:
            with new_folder(folder) as unfinished:
                make(unfinished)
        except OutputError as error:
            # Another process may have been faster with the same content.
            if not folder.is_dir():
                hint = "" if "ZIPHIUS_CACHE" in str(error) else f" {CACHE_REMEDY}"
                raise OutputError(f"{error}{hint}") from error
    return folder


def tokenizer_digest(tokenizer: Tokenizer) -> str:
    """Name all that ids depend on by the files that the tokenizer writes."""
    with tempfile.TemporaryDirectory(prefix="ziphius-") as name:
        tokenizer.save(Path(name))
        files = sorted(Path(name).iterdir())
        return digest(
            [(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]
        )


def file_stats(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Name files by what changes when they do: sizes and times."""
    return sorted((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in paths)


def digest(content: Any) -> str:
    """Return a hash of anything that JSON can say."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
