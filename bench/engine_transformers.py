"""The arm of transformers: a plain loop over a model's forward pass with its own cache.

    python bench/engine_transformers.py FOLDER DTYPE [EXPERTS]

One static batch at a time: `generate` without what it does around a step. Prompts of a batch have
one length, so there is no padding. EXPERTS is `grouped_mm` or `eager`.
"""

import sys
from typing import Any

import torch
import transformers
from engine_load import Request, serve
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

CHUNK_TOKENS = 512
LONG_PROMPT = 4_096
"""Prompts from here on are read in pieces, once: what a step behind them costs is the question."""


class Static:
    """A batch that starts with the first step after requests were added."""

    def __init__(self, folder: str, dtype: str, experts: str | None) -> None:
        chosen = {} if experts is None else {"experts_implementation": experts}
        load: Any = AutoModelForCausalLM.from_pretrained  # has no types
        self.model = load(folder, dtype=getattr(torch, dtype), **chosen).eval()
        self.facts: dict[str, Any] = {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }
        self.added: list[tuple[int, Request]] = []
        self.rows: list[tuple[int, Request]] = []
        self.long: dict[tuple[int, ...], DynamicCache] = {}
        self.made = 0
        self.cache: DynamicCache
        self.ids_BT: Tensor

    def add(self, number: int, request: Request) -> None:
        assert not self.rows, "a static batch takes nobody in"
        self.added.append((number, request))

    @torch.inference_mode()
    def step(self) -> list[tuple[int, list[int]]]:
        if self.added:
            self._begin()
        output = self.model(self.ids_BT, past_key_values=self.cache, logits_to_keep=1)
        self.ids_BT = self._next(output.logits[:, -1])
        numbers = [number for number, _ in self.rows]
        self.made += 1
        if self.made == self.rows[0][1].max_new_tokens:
            self.rows = []
        return list(zip(numbers, self.ids_BT.tolist(), strict=True))

    def _begin(self) -> None:
        self.rows, self.added, self.made = self.added, [], 0
        assert len({(len(r.prompt_ids), r.max_new_tokens) for _, r in self.rows}) == 1
        self.ids_BT = torch.tensor([list(request.prompt_ids) for _, request in self.rows])
        self.cache = DynamicCache(config=self.model.config)
        if self.ids_BT.shape[1] >= LONG_PROMPT:
            self.cache = self._read(self.ids_BT[:, :-1])
            self.ids_BT = self.ids_BT[:, -1:]

    def _read(self, ids_BT: Tensor) -> DynamicCache:
        """Read a long prompt, or go back to the end of it where it was read before."""
        assert len(ids_BT) == 1
        prompt = tuple(ids_BT[0].tolist())
        if prompt not in self.long:
            self.long[prompt] = cache = DynamicCache(config=self.model.config)
            for piece_BT in ids_BT.split(CHUNK_TOKENS, dim=1):
                self.model(piece_BT, past_key_values=cache, logits_to_keep=1)
        cache = self.long[prompt]
        if behind := cache.get_seq_length() - len(prompt):
            cache.crop(-behind)
        return cache

    def _next(self, logits_BW: Tensor) -> Tensor:
        temperature = self.rows[0][1].temperature
        if temperature == 0:
            return logits_BW.argmax(-1, keepdim=True)
        return torch.multinomial((logits_BW.float() / temperature).softmax(-1), 1)

    def cancel(self, number: int) -> None:
        raise NotImplementedError("a static batch lets nobody go")

    def state(self) -> dict[str, float]:
        return {}


if __name__ == "__main__":
    folder, dtype, *experts = sys.argv[1:]
    serve(lambda: Static(folder, dtype, experts[0] if experts else None))
