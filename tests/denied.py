"""Files that may not be read: the superuser, who runs tests too, is refused nothing."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest


def deny(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Let the system refuse to open or to list `path`."""

    def denied(function: Any) -> Any:
        def wrapper(name: Any, *args: Any, **options: Any) -> Any:
            if Path(name) == path:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return function(name, *args, **options)

        return wrapper

    monkeypatch.setattr(os, "open", denied(os.open))
    monkeypatch.setattr(os, "listdir", denied(os.listdir))
