"""The arm of this project: a model folder behind its engine, as `LLM` and the rollouts run it.

    python bench/engine_ziphius.py FOLDER DTYPE

The engine's settings are its defaults.
"""

import sys
from itertools import groupby
from typing import Any

import torch
from engine_load import Request, serve

from ziphius.core.memory import keep_freed_memory
from ziphius.engine.build import build_engine
from ziphius.engine.config import EngineConfig
from ziphius.engine.sequence import Request as Prompt
from ziphius.models.weights import load
from ziphius.ops.sampling_config import SamplingConfig


class Ziphius:
    """Our scheduler and runner. Samples of one prompt that come together are one request."""

    def __init__(self, folder: str, dtype: str) -> None:
        keep_freed_memory()
        model = load(folder, dtype=getattr(torch, dtype))
        self.engine = build_engine(model, EngineConfig())
        self.facts: dict[str, Any] = {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "runner": type(self.engine.runner).__name__,
        }
        self.added: list[tuple[int, Request]] = []
        self.numbers: dict[tuple[int, int], int] = {}
        """Of the request and sample that the engine knows."""

    def add(self, number: int, request: Request) -> None:
        self.added.append((number, request))

    def step(self) -> list[tuple[int, list[int]]]:
        for asked, group in groupby(self.added, _alike):
            self._ask(asked, [number for number, _ in group])
        self.added = []
        stepped = []
        for output in self.engine.step():
            if output.error is not None or output.token_id is None:
                raise RuntimeError(f"a request ended with an error: {output.error}")
            number = self.numbers[output.request_id, output.sample]
            stepped.append((number, [output.token_id]))
        return stepped

    def _ask(self, asked: tuple[tuple[int, ...], int, float], numbers: list[int]) -> None:
        prompt_ids, new_tokens, temperature = asked
        sampling = SamplingConfig(temperature=temperature)
        request_id = self.engine.add(
            Prompt(prompt_ids, new_tokens, numbers[0], sampling, n=len(numbers))
        )
        self.numbers |= {(request_id, sample): number for sample, number in enumerate(numbers)}

    def cancel(self, number: int) -> None:
        request_id, sample = next(key for key, value in self.numbers.items() if value == number)
        self.engine.end(request_id, sample, "cancelled")

    def state(self) -> dict[str, float]:
        """Look for leaks; nothing runs between jobs."""
        self.engine.check()
        self.numbers = {}
        metrics = self.engine.metrics()
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        return {name: float(metrics[name]) for name in names}


def _alike(added: tuple[int, Request]) -> tuple[tuple[int, ...], int, float]:
    _, request = added
    return tuple(request.prompt_ids), request.max_new_tokens, request.temperature


if __name__ == "__main__":
    folder, dtype = sys.argv[1:]
    serve(lambda: Ziphius(folder, dtype))
