import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import build, grouped_config, latent_config, random_ids
from tests.training import Run, train_config
from ziphius.core.errors import ConfigError
from ziphius.data.batch import Batch
from ziphius.models.config import LinearScaling, YarnScaling
from ziphius.models.forward_batch import ForwardBatch
from ziphius.models.losses import next_token_loss
from ziphius.train.config import TrainConfig
from ziphius.train.settings import extension_training
from ziphius.train.stages.extend import (
    Extend,
    extended,
    loss_by_position,
)
from ziphius.train.stages.pretrain import Pretrain

SHORT = latent_config(rope_scaling=None, max_position_embeddings=64)


def test_yarn_is_put_on_plain_rope() -> None:
    config = extended(SHORT, 256)
    assert config.max_position_embeddings == 256
    assert config.rope_scaling == YarnScaling(
        factor=4.0, original_max_position_embeddings=64, mscale=1.0, mscale_all_dim=1.0
    )
    grouped = extended(grouped_config(max_position_embeddings=64), 128).rope_scaling
    assert isinstance(grouped, YarnScaling)
    assert (grouped.factor, grouped.mscale, grouped.mscale_all_dim) == (2.0, None, None)


def test_what_was_trained_may_be_shorter_than_what_the_config_says() -> None:
    config = extended(SHORT, 96, trained_context=32, factor=8.0)
    assert isinstance(config.rope_scaling, YarnScaling)
    assert config.rope_scaling.original_max_position_embeddings == 32
    assert (config.rope_scaling.factor, config.max_position_embeddings) == (8.0, 256)


def test_a_second_extension_starts_from_the_same_origin() -> None:
    config = extended(extended(SHORT, 128), 512)
    assert isinstance(config.rope_scaling, YarnScaling)
    assert config.rope_scaling.original_max_position_embeddings == 64
    assert (config.rope_scaling.factor, config.max_position_embeddings) == (8.0, 512)
    with pytest.raises(ConfigError, match="the model's YaRN says 64"):
        extended(config, 1_024, trained_context=32)


@pytest.mark.parametrize(
    ("changes", "context", "options", "problem"),
    [
        ({}, 64, {}, "reaches 64 tokens already"),
        ({}, 256, {"factor": 2.0}, "factor = 2.0: must be at least 4"),
        ({"rope_scaling": LinearScaling(factor=2.0)}, 256, {}, "rope_scaling is linear"),
    ],
)
def test_what_cannot_be_extended_is_refused(
    changes: dict[str, Any], context: int, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        extended(SHORT.model_copy(update=changes), context, **options)


def test_training_follows_v3() -> None:
    config = extension_training(
        train_config(
            seq_len=16,
            global_batch_size=8,
            learning_rate=2.2e-4,
            rampup_batch_size=2,
            rampup_steps=4,
        ),
        64,
    )
    assert config.learning_rate == pytest.approx(7.3e-6)
    assert (config.schedule, config.warmup_steps) == ("constant", 0)
    assert (config.seq_len, config.global_batch_size, config.rampup_batch_size) == (64, 2, None)
    assert extension_training(train_config(), 4_096).global_batch_size == 1


def test_loss_is_split_at_a_position_of_the_document() -> None:
    model = build(SHORT).requires_grad_(False)
    ids_BT = random_ids(2, 20, 61)
    documents_BT = torch.zeros(2, 20, dtype=torch.long)
    documents_BT[1, 12:] = 1
    sums = loss_by_position(model, Batch(ids_BT, documents_BT), border=10)
    # Targets follow positions 0..18 of the first row; 0..10 and 0..6 of the second row's documents.
    assert (sums["targets within"], sums["targets beyond"]) == (10 + 10 + 7, 9 + 1)
    output = model(ForwardBatch(ids_BT, documents_BT=documents_BT))
    whole = next_token_loss(model, output, ids_BT, documents_BT=documents_BT).loss_sum
    assert sums["nats within"] + sums["nats beyond"] == pytest.approx(float(whole), rel=1e-5)
    logprobs = model.logits(output.hidden_BTD).log_softmax(-1)
    beyond = [(0, place) for place in range(10, 19)] + [(1, 10)]
    nats = -sum(float(logprobs[row, place, ids_BT[row, place + 1]]) for row, place in beyond)
    assert sums["nats beyond"] == pytest.approx(nats, rel=1e-5)


class Echoes:
    """Rows whose second half repeats the first; also held-out ones, as validation."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.rows = config, {"echoes": [0]}

    def micros(self, step: int, world_size: int) -> int:
        return 1

    def tokens_per_step(self, step: int) -> int:
        return self.config.global_batch_size * self.config.seq_len

    def batch(self, step: int, micro: int, rank: int, world_size: int) -> Batch:
        return self.make(self.config.global_batch_size, step)

    def batches(self, count: int) -> list[Batch]:
        return [self.make(16, 10**6)]

    def make(self, rows: int, seed: int) -> Batch:
        """Repeat six tokens to the end of the row: seen once, every further token is known."""
        ids_BT = random_ids(rows, 6, 61, seed).repeat(1, self.config.seq_len // 6 + 1)
        ids_BT = ids_BT[:, : self.config.seq_len]
        documents_BT = torch.zeros_like(ids_BT)
        return Batch(ids_BT, documents_BT, bytes_count=ids_BT.numel(), domains=("echoes",) * rows)


def test_an_extended_model_reads_beyond_what_it_was_trained_on(tmp_path: Path) -> None:
    base = grouped_config(max_position_embeddings=64)
    config = train_config(seq_len=24, global_batch_size=16, budget="300-steps", learning_rate=0.005)
    short = Run(tmp_path, config, base, stage=Pretrain(Echoes(config), base, config))
    short.go()

    longer = extended(base, 96, trained_context=24)
    stretched = extension_training(config, 96).model_copy(
        # A fifth of pretraining's rate instead of V3's thirtieth: thirty steps, not a thousand.
        update={"budget": "30-steps", "validate_every": 30, "learning_rate": 1e-3}
    )
    rows: Any = Echoes(stretched)
    stage = Extend(rows, longer, stretched, validation=rows)
    run = Run(tmp_path, stretched, longer, stage=stage)
    run.model.load_state_dict(short.model.state_dict())
    result = run.go()
    extension = [record.figures["loss_beyond"] for record in run.recorder.validations]

    unextended = loss_by_position(short.model, rows.batches(16)[0], border=24)
    without = unextended["nats beyond"] / unextended["targets beyond"]
    assert unextended["nats within"] / unextended["targets within"] < 0.5 * math.log(61)
    # Stretching alone helps, and training on it helps again.
    assert extension[0] < 0.6 * without
    assert extension[-1] < 0.9 * extension[0]
    assert {"loss", "loss_within", "bits_per_byte"} < set(result.validation)
