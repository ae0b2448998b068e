"""What tests of training share: rows to learn, a model that takes every branch, runs in memory."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.tiny import V3_EXPERTS, latent_config
from ziphius.data.batch import Batch
from ziphius.dist.world import ALONE, World
from ziphius.models.config import ModelConfig
from ziphius.models.model import Model
from ziphius.train.config import TrainConfig
from ziphius.train.loop import train
from ziphius.train.result import TrainResult
from ziphius.train.seams import StepRecord, TrainState, ValidationRecord
from ziphius.train.stages.pretrain import Pretrain

SEQ_LEN = 16


def moe_config(**changes: Any) -> ModelConfig:
    """A V3 of one dense and one expert layer, with MTP and a balance loss, 61 tokens."""
    fields = V3_EXPERTS | {"num_nextn_predict_layers": 1, "aux_loss_alpha": 0.01}
    return latent_config(**(fields | changes))


def train_config(**changes: Any) -> TrainConfig:
    """Eight short rows a step, nothing measured and nothing saved on the way."""
    fields: dict[str, Any] = {
        "budget": "10-steps",
        "seq_len": SEQ_LEN,
        "dtype": "float32",
        "warmup_steps": 2,
        "validate_every": 0,
        "save_every": "1000000-steps",
    }
    return TrainConfig(**(fields | changes))


class RandomRows:
    """A loader of random tokens in documents of random length.

    Args:
        config: batch sizes and seq_len.
        vocab_size: ids are below it.
        repeat: the same first rows in every step.
        micro_batch_size: rows of a micro-batch; by default what the config says.
    """

    def __init__(
        self,
        config: TrainConfig,
        vocab_size: int = 61,
        *,
        repeat: bool = False,
        micro_batch_size: int | None = None,
    ) -> None:
        self.config, self.vocab_size, self.repeat = config, vocab_size, repeat
        self.micro_batch_size = micro_batch_size or config.resolved_micro_batch_size(1)

    def micros(self, step: int, world_size: int) -> int:
        return self.config.batch_sizes.count(step) // (self.micro_batch_size * world_size)

    def tokens_per_step(self, step: int) -> int:
        return self.config.batch_sizes.count(step) * self.config.seq_len

    def batch(self, step: int, micro: int, rank: int, world_size: int) -> Batch:
        numbers = self.config.batch_sizes(0 if self.repeat else step)
        first = (micro * world_size + rank) * self.micro_batch_size
        rows = [self.row(number) for number in numbers[first : first + self.micro_batch_size]]
        ids_BT, documents_BT = (torch.stack(parts) for parts in zip(*rows, strict=True))
        return Batch(ids_BT, documents_BT, bytes_count=2 * ids_BT.numel())

    def row(self, number: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1_000 * self.config.seed + number)
        length = self.config.seq_len
        ids_T = torch.randint(0, self.vocab_size, (length,), generator=generator)
        begins_T = torch.rand(length, generator=generator) < 0.15
        return ids_T, begins_T.long().cumsum(0)


class MemoryStore:
    """Keeps the newest state of a run in memory."""

    def __init__(self) -> None:
        self.saved: list[dict[str, Any]] = []

    @contextmanager
    def lock(self) -> Iterator[None]:
        yield

    def latest(self) -> Path | None:
        return Path(f"step-{self.saved[-1]['step']}") if self.saved else None

    def save_async(self, state: TrainState) -> None:
        self.saved.append(
            {
                "step": state.step,
                "model": copy.deepcopy(state.model.state_dict()),
                "optimizer": copy.deepcopy(state.optimizer.state_dict()),
                "ema": None if state.ema is None else copy.deepcopy(state.ema.tensors),
                "guard": copy.deepcopy(state.guard.state()),
                "plan": dict(state.plan),
                "tokens_seen": state.tokens_seen,
                "seconds": state.seconds,
                "validation": dict(state.validation),
            }
        )

    def restore(self, state: TrainState, checkpoint: Path) -> str:
        saved = copy.deepcopy(self.saved[-1])
        assert checkpoint.name == f"step-{saved['step']}"
        state.model.load_state_dict(saved["model"])
        state.optimizer.load_state_dict(saved["optimizer"])
        if state.ema is not None:
            state.ema.tensors = saved["ema"]
        state.guard.restore(saved["guard"])
        for name in ("step", "tokens_seen", "seconds", "validation"):
            setattr(state, name, saved[name])
        if saved["plan"]["budget"] == state.plan["budget"]:
            state.plan = saved["plan"]
        return "yes"

    def wait(self) -> Path:
        path = self.latest()
        assert path is not None
        return path


class ListRecorder:
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []
        self.validations: list[ValidationRecord] = []
        self.warnings: list[str] = []
        self.resumed_at: list[int] = []
        self.is_closed = False

    def resumed(self, step: int, exact: str) -> None:
        assert exact == "yes"
        self.resumed_at.append(step)

    def step(self, record: StepRecord) -> None:
        self.steps.append(record)

    def validation(self, record: ValidationRecord) -> None:
        self.validations.append(record)

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def close(self) -> None:
        self.is_closed = True

    @property
    def losses(self) -> list[float]:
        return [record.loss for record in self.steps]


class Run:
    """A run of the loop on random rows, with what it left."""

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        model_config: ModelConfig | None = None,
        *,
        store: MemoryStore | None = None,
        stage: Pretrain | None = None,
        world: World = ALONE,
    ) -> None:
        model_config = model_config or moe_config()
        self.model = Model(model_config)
        self.model.initialize(config.seed)
        self.store = store or MemoryStore()
        self.recorder = ListRecorder()
        rows = RandomRows(config, model_config.vocab_size)
        self.stage = stage or Pretrain(rows, model_config, config)
        self.folder, self.config, self.world = folder, config, world

    def go(self) -> TrainResult:
        return train(
            self.stage,
            self.model,
            self.config,
            self.folder,
            store=self.store,
            recorder=self.recorder if self.world.is_first else None,
            world=self.world,
        )
