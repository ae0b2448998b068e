"""The arm of this project: a model folder behind its engine.

python bench/engine_ziphius.py FOLDER DTYPE
"""

import sys

import torch
from engine_load import Request, serve

from ziphius.core.memory import keep_freed_memory
from ziphius.engine.generate import Generation
from ziphius.engine.generate import Request as Prompt
from ziphius.models.weights import load
from ziphius.ops.sampling_config import SamplingConfig


class Ziphius:
    """One batch at a time, which starts with the first step after requests were added."""

    TAKES_IN = False
    """Whether requests may come while others run."""

    def __init__(self, folder: str, dtype: str) -> None:
        keep_freed_memory()
        self.model = load(folder, dtype=getattr(torch, dtype))
        self.facts = {"torch": torch.__version__, "threads": torch.get_num_threads()}
        self.added: list[tuple[int, Request]] = []
        self.numbers: list[int] = []
        self.generation: Generation | None = None

    def add(self, number: int, request: Request) -> None:
        assert self.generation is None, "a static batch takes nobody in"
        self.added.append((number, request))

    def step(self) -> list[tuple[int, list[int]]]:
        if self.generation is None:
            prompts = [
                Prompt(
                    request.prompt_ids,
                    request.max_new_tokens,
                    number,
                    SamplingConfig(temperature=request.temperature, seed=0),
                )
                for number, request in self.added
            ]
            self.numbers, self.added = [number for number, _ in self.added], []
            self.left = prompts[0].max_new_tokens
            self.generation = Generation(self.model, prompts).__enter__()
        drawn = self.generation.draw()
        assert drawn is not None
        self.left -= 1
        if not self.left:
            self.generation.close()
            self.generation = None
        ids = drawn.ids_B.unsqueeze(-1).tolist()
        return [(self.numbers[row], new) for row, new in zip(drawn.rows, ids, strict=True)]

    def cancel(self, number: int) -> None:
        raise NotImplementedError("a static batch lets nobody go")

    def state(self) -> dict[str, float]:
        return {}


if __name__ == "__main__":
    folder, dtype = sys.argv[1:]
    serve(lambda: Ziphius(folder, dtype))
