"""The arms of the engine benchmark: which there are, how each is started, and what it answers."""

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import turns
from engine_load import Answer, Job
from engine_models import MAX_LENGTH, Written

from ziphius.models.cost import Dtype

HERE = Path(__file__).parent
DTYPES: dict[str, Dtype] = {"fp32": "float32", "bf16": "bfloat16"}
LONGEST_S = 900.0
"""An arm that has no answer by then is ended."""
LLAMA_CPP_CONTEXT = 8_192
"""Tokens of all requests together."""


@dataclass(frozen=True)
class Spec:
    """One arm that can be started."""

    name: str
    family: str
    """Whose it is: `ziphius` or a peer's name."""
    command: Sequence[str]
    dtype: Dtype | None = None
    """Of the weights, where it is one that torch has."""
    takes_in: bool = True
    """Whether requests may come while others run."""


def specs(name: str, model: Written, vllm: str | None, llama_cpp: str | None) -> list[Spec]:
    """List the arms for one model; a peer without an interpreter has none."""
    folder, found = str(model.folder), []
    for short, dtype in DTYPES.items():
        command = _ours("ziphius", folder, dtype)
        found.append(Spec(f"ziphius {short}", "ziphius", command, dtype))
    for short, dtype in DTYPES.items():
        for experts in ("grouped_mm", "eager") if model.config.n_routed_experts else ("",):
            command = _ours("transformers", folder, dtype, *filter(None, [experts]))
            arm = f"transformers {short} {experts}".rstrip()
            found.append(Spec(arm, "transformers", command, dtype, takes_in=False))
    if vllm and _has(vllm, "vllm"):
        for short, dtype in DTYPES.items():
            script = str(HERE / "engine_vllm.py")
            command = [*_preloaded(vllm), vllm, script, folder, dtype, str(MAX_LENGTH[name])]
            found.append(Spec(f"vllm {short}", "vllm", command, dtype))
    if llama_cpp and model.ggufs and _has(llama_cpp, "xllamacpp"):
        for number_format, file in model.ggufs.items():
            script, context = str(HERE / "engine_llama_cpp.py"), str(LLAMA_CPP_CONTEXT)
            command = [llama_cpp, script, str(file), context]
            found.append(Spec(f"llama.cpp {number_format}", "llama.cpp", command))
    return found


def _ours(script: str, *words: str) -> list[str]:
    return [sys.executable, str(HERE / f"engine_{script}.py"), *words]


def _preloaded(python: str) -> list[str]:
    """Load Intel's OpenMP first, as vLLM's documentation asks for, where its environment has it."""
    library = Path(python).absolute().parents[1] / "lib" / "libiomp5.so"
    return ["env", f"LD_PRELOAD={library}"] if library.exists() else []


def _has(python: str, package: str) -> bool:
    """Tell whether an interpreter has a package, and say so if it has not."""
    look = f"import importlib.util, sys; sys.exit(not importlib.util.find_spec('{package}'))"
    found = subprocess.run([python, "-c", look]).returncode == 0
    if not found:
        print(f"left out: {python} has no {package}")
    return found


class Arm(turns.Process):
    """One arm at the other end of a pipe."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.ended_in: str | None = None
        """The cell in which the process died, if it did."""
        started = time.perf_counter()
        super().__init__(spec.name, spec.command)
        self.ready_s = time.perf_counter() - started
        """From the start of the process, imports included."""

    def ask(self, cell: str, job: Job) -> Answer | None:
        """Let the arm do a job while all others wait; None if it is dead."""
        if self.ended_in is not None:
            return None
        assert self.process.stdin is not None
        watch = threading.Timer(LONGEST_S, self.process.kill)
        watch.start()
        try:
            self.process.stdin.write(job.to_line() + "\n")
            self.process.stdin.flush()
            return Answer(**self._read())
        except (SystemExit, BrokenPipeError) as error:
            print(f"{self.name} died in '{cell}': {error}", flush=True)
            self.ended_in = cell
            return None
        finally:
            watch.cancel()

    def close(self) -> None:
        """Let the process end by itself."""
        assert self.process.stdin is not None
        if self.process.poll() is None:
            self.process.stdin.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
