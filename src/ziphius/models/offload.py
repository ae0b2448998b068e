"""Routed experts that stay in their files, and those in use kept in memory under a limit.

A model's experts are most of its weights, and a token passes few of them. Here all layers share one
pool of places in memory. An expert that is not in it is read when tokens are sent to it, and takes
the place of the one that is least in use: by how often it was used, where a use counts half as much
as one `HALF_LIFE` forward passes later (LRFU, IEEE Transactions on Computers 50 (2001), 1352; with
a half-life of nothing it would be LRU). Files are read, not mapped (`weights/tensor_reader.py` says
why); what the system keeps of them in its own memory is a second tier, and gives way.

Where the system has none of them in its memory, reads wait for the disk. So it is told of all that
a layer misses before the first of them is read, and fetches them side by side. To guess what the
next layer will ask for, and to fetch that meanwhile, did not pay for sure:
docs/lab/2026-11-28-experts-in-files.md.

Every token is computed by the same products in the same order as by `RoutedExperts`: numbers are
equal bit for bit, whatever the pool holds. For inference: no gradient passes.

Shapes: M tokens, K experts per token, E experts, D hidden, F expert width, X places in the pool,
J rows that experts gave, one for each pair of a token and an expert.
"""

import threading
import time
from collections.abc import Collection, Iterator
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ziphius.core.errors import ConfigError
from ziphius.models.config import ModelConfig
from ziphius.ops.experts import expert_rows, sum_rows

HALF_LIFE = 8
"""Forward passes; see `bench/offload.py` for others."""
_LARGE = 1e200
_NOWHERE = 2**62
"""Row of a pair that is dropped: none."""


OFFLOADED = (
    "The experts of this model are offloaded (expert_cache), which is for inference alone: to "
    "train or save it, load it without."
)
"""What to say of everything else."""


class ReadsExperts(Protocol):
    """Where the weights of experts are."""

    def read(self, layer: str, expert: int, gate_up_2FD: Tensor, down_DF: Tensor) -> None:
        """Fill both tensors with the weights of one expert of a layer."""

    def announce(self, layer: str, experts: Collection[int]) -> None:
        """Be told that these experts of a layer will be read soon; a hint."""

    def identity(self) -> str:
        """Tell these weights from others without reading them."""


class ExpertCache:
    """A pool of experts in memory, of all layers of a model.

    Args:
        source: reads experts.
        config: of the model.
        layers: names of the modules that the experts belong to.
        dtype: of the weights.
        limit_bytes: of the pool at most.

    Raises:
        ConfigError: the pool would not hold the experts of one token.
    """

    def __init__(
        self,
        source: ReadsExperts,
        config: ModelConfig,
        layers: Collection[str],
        dtype: torch.dtype,
        limit_bytes: int,
    ) -> None:
        self.num_experts = experts = config.n_routed_experts
        hidden, width = config.hidden_size, config.moe_intermediate_size
        self._shapes = (2 * width, hidden), (hidden, width)
        self._expert_bytes = 3 * width * hidden * dtype.itemsize
        self.num_places = min(limit_bytes // self._expert_bytes, experts * len(layers))
        if self.num_places < config.num_experts_per_tok:
            needed = config.num_experts_per_tok * self._expert_bytes
            raise ConfigError(
                f"expert_cache = {limit_bytes:,} bytes holds {self.num_places} experts, and each "
                f"token needs {config.num_experts_per_tok} in a layer: give it {needed:,} or more."
            )
        self.hits = self.queries = self.read_bytes = 0
        self.wait_s = 0.0
        self.lock = threading.Lock()
        self.source, self._dtype = source, dtype
        self._layers = {name: number for number, name in enumerate(layers)}
        self._pool: tuple[Tensor, Tensor] | None = None
        self._places: dict[int, int] = {}
        self._owners: npt.NDArray[np.int64] = np.full(self.num_places, -1)
        # The last one is that of an empty place, below all others.
        self._scores: npt.NDArray[np.float64] = np.zeros(experts * len(layers) + 1)
        self._scores[-1] = -1.0
        self._worth, self._growth = 1.0, 2.0 ** (1 / (HALF_LIFE * len(layers)))

    @property
    def size_bytes(self) -> int:
        """Memory of the pool when it is full."""
        return self.num_places * self._expert_bytes

    @property
    def pool(self) -> tuple[Tensor, Tensor]:
        """The weights, [X, 2F, D] and [X, D, F]; memory is used as places are filled."""
        if self._pool is None:
            first, second = (
                torch.empty(self.num_places, *shape, dtype=self._dtype) for shape in self._shapes
            )
            self._pool = first, second
        return self._pool

    def waves(self, layer: str, experts: Collection[int]) -> Iterator[dict[int, int]]:
        """Bring experts of a layer into the pool, as many at a time as it holds.

        Yields the places of some of them, which hold until the next ones are asked for; in the end
        each has been in one wave.

        Args:
            layer: name of the module.
            experts: each once.

        Raises:
            CheckpointError: the files cannot be read.
        """
        start = time.perf_counter()
        first = self._layers[layer] * self.num_experts
        wanted = [first + expert for expert in experts]
        self._count(wanted)
        wave = {key: place for key in wanted if (place := self._places.get(key)) is not None}
        missing = [key for key in wanted if key not in wave]
        self.hits += len(wave)
        self.source.announce(layer, [key - first for key in missing])
        while wave or missing:
            batch = missing[: self.num_places - len(wave)]
            missing = missing[len(batch) :]
            for key, place in zip(batch, self._victims(len(batch), wave.values()), strict=True):
                self._load(layer, key - first, key, place)
                wave[key] = place
            self.wait_s += time.perf_counter() - start
            yield {key - first: place for key, place in wave.items()}
            start = time.perf_counter()
            wave = {}

    def _count(self, keys: list[int]) -> None:
        """Put one use of these experts down; later uses are worth more, so that none has to age."""
        self.queries += len(keys)
        self._worth *= self._growth
        self._scores[keys] += self._worth
        if self._worth > _LARGE:
            self._scores[:-1] /= self._worth
            self._worth = 1.0

    def _victims(self, count: int, taken: Collection[int]) -> list[int]:
        """Choose the places of the experts that are least in use, empty ones first."""
        if not count:
            return []
        scores = self._scores[self._owners]
        scores[list(taken)] = np.inf
        return [int(place) for place in np.argpartition(scores, count - 1)[:count]]

    def _load(self, layer: str, expert: int, key: int, place: int) -> None:
        owner = int(self._owners[place])
        if owner >= 0:
            del self._places[owner]
        self._owners[place] = -1  # until it is whole
        gate_up_X2FD, down_XDF = self.pool
        self.source.read(layer, expert, gate_up_X2FD[place], down_XDF[place])
        self.read_bytes += self._expert_bytes
        self._owners[place] = key
        self._places[key] = place

    def metrics(self) -> dict[str, int]:
        """Return figures: how many experts were asked for, were there, and what was read.

        `wait_ms` is what layers stood still for experts.
        """
        return {
            "expert_cache_bytes": len(self._places) * self._expert_bytes,
            "expert_cache_limit_bytes": self.size_bytes,
            "expert_cache_queries": self.queries,
            "expert_cache_hits": self.hits,
            "expert_cache_read_bytes": self.read_bytes,
            "expert_cache_wait_ms": round(1e3 * self.wait_s),
        }


class OffloadedExperts(nn.Module):
    """Takes the place of a layer's `RoutedExperts`; it has no parameters.

    Args:
        layer: name of this module in the model.
        cache: of the model.
    """

    def __init__(self, layer: str, cache: ExpertCache) -> None:
        super().__init__()
        self._layer = layer
        self.cache = cache

    def forward(
        self, x_MD: Tensor, experts_MK: Tensor, weights_MK: Tensor, base_MD: Tensor | None = None
    ) -> Tensor:
        """Add up each token's experts by weight, on top of `base_MD`, [M, D]."""
        if torch.is_grad_enabled() and x_MD.requires_grad:
            raise ConfigError(OFFLOADED)
        cache = self.cache
        used = np.unique(experts_MK.numpy()).tolist()
        used = used[: -1 if used and used[-1] == cache.num_experts else None]
        rows: list[Tensor] = []
        row_MK = torch.full_like(experts_MK, _NOWHERE)
        with cache.lock:
            for wave in cache.waves(self._layer, used):
                place_E1 = torch.full((cache.num_experts + 1,), cache.num_places)
                place_E1[list(wave)] = torch.tensor(list(wave.values()))
                place_MK = place_E1[experts_MK]
                found_JD, found_MK = expert_rows(x_MD, place_MK, *cache.pool)
                found_MK += sum(map(len, rows))
                row_MK = torch.where(place_MK < cache.num_places, found_MK, row_MK)
                rows.append(found_JD)
        return sum_rows(rows, row_MK, weights_MK, base_MD, x_MD)

    def train(self, mode: bool = True) -> Self:
        """Refuse training: there is nothing here that could learn."""
        if mode:
            raise ConfigError(OFFLOADED)
        return super().train(mode)


def expert_cache(model: nn.Module) -> ExpertCache | None:
    """Return the pool of a model whose experts are offloaded."""
    found = (module for module in model.modules() if isinstance(module, OffloadedExperts))
    layer = next(found, None)
    return None if layer is None else layer.cache
