"""The arm of llama.cpp: its server inside this process, without HTTP, through xllamacpp.

    PYTHON bench/engine_llama_cpp.py FILE.gguf CONTEXT

PYTHON is an interpreter with xllamacpp. Every request is a call on a thread of its own that waits
inside the server; the server makes the steps.
"""

import importlib
import os
import queue
import sys
import threading
from importlib.metadata import version
from typing import Any

from engine_load import Request, serve

SLOTS = 64


class LlamaCpp:
    """One model behind the server."""

    def __init__(self, file: str, context: int) -> None:
        xllamacpp: Any = importlib.import_module("xllamacpp")
        params = xllamacpp.CommonParams()
        params.model.path = file
        params.n_ctx, params.n_parallel, params.kv_unified = context, SLOTS, True
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = len(os.sched_getaffinity(0))
        params.cache_ram_mib, params.verbosity = 0, -1
        self.server = xllamacpp.Server(params)
        self.facts = {
            "xllamacpp": version("xllamacpp"),
            "system": xllamacpp.get_system_info().strip(),
            "threads": params.cpuparams.n_threads,
        }
        self.news: queue.SimpleQueue[tuple[int, list[int]]] = queue.SimpleQueue()
        self.running: dict[int, threading.Thread] = {}
        self.cancelled: set[int] = set()

    def add(self, number: int, request: Request) -> None:
        self.running[number] = threading.Thread(target=self._ask, args=(number, request))
        self.running[number].start()

    def _ask(self, number: int, request: Request) -> None:
        known = 0

        def hear(piece: dict[str, Any]) -> bool:
            # A token that ends within a character has no piece; the next one counts it.
            nonlocal known
            done = piece["timings"]["predicted_n"]
            if done > known:
                self.news.put((number, [-1] * (done - known)))
            known = done
            return number in self.cancelled

        asked = {
            "prompt": list(request.prompt_ids),
            "n_predict": request.max_new_tokens,
            "temperature": request.temperature,
            "ignore_eos": True,
            "cache_prompt": False,
            "stream": True,
            "timings_per_token": True,
        }
        self.server.handle_completions(asked, hear)

    def step(self) -> list[tuple[int, list[int]]]:
        found = [self.news.get()]
        while not self.news.empty():
            found.append(self.news.get())
        return found

    def cancel(self, number: int) -> None:
        self.cancelled.add(number)

    def state(self) -> dict[str, float]:
        for thread in self.running.values():
            thread.join()
        self.running, self.cancelled = {}, set()
        return {}


if __name__ == "__main__":
    file, context = sys.argv[1:]
    serve(lambda: LlamaCpp(file, int(context)))
