"""`docs/cli.md` from the commands' own help: `python -m ziphius.cli.reference docs/cli.md`.

A house test compares the file with what this module writes, so the page cannot fall behind.
"""

import contextlib
import io
import os
import sys
from pathlib import Path
from unittest import mock

from ziphius.cli.main import COMMANDS, run_command, usage
from ziphius.core.files import write_file

WIDTH = 96
INTRODUCTION = """# The command line

What each command prints for `--help`. Written by `make docs`; change the commands, not this page.
"""


def reference() -> str:
    """Write the whole page: the list of commands, then the help of each."""
    sections = [_section("ziphius", usage())]
    sections += [_section(f"ziphius {name}", help_text(name)) for name in COMMANDS]
    return "\n".join([INTRODUCTION, *sections])


def help_text(name: str) -> str:
    """Catch what a command prints for --help, at a fixed width and without colours."""
    output = io.StringIO()
    with (
        mock.patch.dict(os.environ, {"COLUMNS": str(WIDTH)}),
        contextlib.redirect_stdout(output),
        contextlib.suppress(SystemExit),
    ):
        run_command(name, ["--help"])
    return "\n".join(line.rstrip() for line in output.getvalue().strip().splitlines())


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n```text\n{text}\n```\n"


if __name__ == "__main__":
    write_file(Path(sys.argv[1]), reference())
