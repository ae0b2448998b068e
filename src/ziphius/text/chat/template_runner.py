"""The parent of `template_worker.py`: one process per template, bounded, and ended when it must be.

What a checkpoint brings as its chat template is a program, if a small one. It runs beside this
process, never in it: without its memory, with limits of its own, and killed at a deadline.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from ziphius.core.errors import ChatError

SWITCH = "ZIPHIUS_CHAT_TEMPLATES"
"""Environment variable; `off` lets no template of a checkpoint run."""
ADVICE = "Give another chat format (--chat-format)."
MOST_PROCESSES = 4
"""That wait for their next run; the one that has waited longest is ended for a new one."""
_SCRIPT = Path(__file__).with_name("template_worker.py")


class Limits(NamedTuple):
    """What one run of a template may take."""

    cpu_s: int = 5
    wall_s: float = 60.0
    """Far more than the CPU time: a machine may be busy with other things."""
    memory: int = 512 * 1024 * 1024
    output: int = 8 * 1024 * 1024
    """Characters."""


_waiting: "list[TemplateRunner]" = []


class TemplateRunner:
    """Runs of one template, in a process that is started when it is needed first."""

    def __init__(self, source: str, limits: Limits | None = None) -> None:
        self._source = source
        self._limits = limits or Limits()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._turn = threading.Lock()

    def run(
        self,
        variables: Mapping[str, Any],
        *,
        hide: Mapping[str, str] | None = None,
        track: tuple[str, str] = ("", ""),
    ) -> str:
        """Return what the template writes.

        Args:
            variables: what it is given, of JSON's kinds.
            hide: letter -> its stand-in, in texts that the template compares with others.
            track: what to put around a `{% generation %}` block.

        Raises:
            ChatError: the template raised, or took more than it may.
        """
        job = {"variables": dict(variables), "hide": dict(hide or {}), "track": track}
        with self._turn:
            reply = self._ask(json.dumps(job))
        if "error" in reply:
            raise ChatError(
                f"The model's chat template cannot write this: {reply['error']}. {ADVICE}"
            )
        return str(reply["text"])

    def _ask(self, line: str) -> dict[str, Any]:
        # A forked child must not share the pipes of its parent.
        if self._process is None or self._owner != os.getpid():
            self._process, self._owner = self._started(), os.getpid()
            _make_room_for(self)
        process, late = self._process, threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        clock = threading.Timer(self._limits.wall_s, end)
        clock.daemon = True
        clock.start()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        finally:
            clock.cancel()
        if answer.endswith(b"\n"):
            found: dict[str, Any] = json.loads(answer)
            return found
        self._end(process)
        if late.is_set() or process.returncode < 0:
            return {"error": f"it ran longer than {self._limits.cpu_s} s and was ended"}
        return {"error": "its process could not be started, or broke"}

    def _started(self) -> "subprocess.Popen[bytes]":
        packages = Path(jinja2.__file__).parents[1]
        # -I -S: nothing of the environment, the working folder or the site is imported.
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_SCRIPT), str(packages)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"LC_ALL": "C.UTF-8"},
            cwd="/",
        )
        assert process.stdin is not None
        limits = self._limits
        first = {"source": self._source, "cpu_s": limits.cpu_s, "memory": limits.memory}
        process.stdin.write(json.dumps({**first, "output": limits.output}).encode() + b"\n")
        return process

    def _end(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = None
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue  # what was not sent belongs to a process that is gone

    def close(self, *, wait: bool = True) -> None:
        """End the process, if there is one; without waiting, only if it has nothing to do."""
        if not self._turn.acquire(blocking=wait):
            return
        try:
            if self._process is not None and self._owner == os.getpid():
                self._end(self._process)
        finally:
            self._turn.release()


def _make_room_for(runner: TemplateRunner) -> None:
    if runner in _waiting:
        _waiting.remove(runner)
    _waiting.append(runner)
    while len(_waiting) > MOST_PROCESSES:
        _waiting.pop(0).close(wait=False)  # one that is at work goes on, and ends with us


@atexit.register
def _end_all() -> None:
    while _waiting:
        _waiting.pop().close()


def templates_may_run() -> bool:
    """Say whether the user lets templates of checkpoints run."""
    return os.environ.get(SWITCH, "").lower() != "off"
