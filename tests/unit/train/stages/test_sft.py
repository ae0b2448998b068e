from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import build, gradients
from tests.training import Run, moe_config, train_config
from ziphius.data.conversation_encode import EncodedConversation
from ziphius.data.conversations import ConversationLoader, Conversations, validation_batches
from ziphius.dist.world import World
from ziphius.models.lora import add_adapters
from ziphius.models.lora_config import LoraConfig
from ziphius.models.losses import mtp_losses, next_token_loss
from ziphius.models.model import Model
from ziphius.train.config import TrainConfig
from ziphius.train.stages.sft import Sft

SEQ_LEN = 16


def conversations(count: int, seed: int = 0, *, longest: int = 12) -> Conversations:
    """Random conversations of one question and one answer; the first token tells them apart."""
    generator = np.random.default_rng(seed)
    kept = []
    for number in range(count):
        length = int(generator.integers(5, longest + 1))
        ids = generator.integers(0, 61, length)
        ids[0] = number
        kept.append(EncodedConversation(ids, np.arange(length) >= 3, bytes_count=length))
    return Conversations(tuple(kept), SEQ_LEN)


def sft(config: TrainConfig, learned: Conversations, **options: Any) -> Sft:
    loader = ConversationLoader(
        learned,
        seed=config.seed,
        epochs=1_000,
        rows=config.batch_sizes,
        micro_batch_size=config.resolved_micro_batch_size(1),
    )
    return Sft(loader, moe_config(), config, data_fingerprint=loader.fingerprint, **options)


def alone(model: Model, entry: EncodedConversation) -> list[torch.Tensor]:
    """Losses of one conversation that has a row of its own."""
    ids_BT, loss_mask_BT = (
        torch.from_numpy(part)[None] for part in (entry.ids_T, entry.loss_mask_T)
    )
    output = model(ids_BT)
    losses = [
        next_token_loss(model, output, ids_BT, loss_mask_BT=loss_mask_BT),
        *mtp_losses(model, output, ids_BT, loss_mask_BT=loss_mask_BT),
    ]
    return [loss.loss_sum for loss in losses]


def test_packed_rows_learn_what_single_conversations_would() -> None:
    learned = conversations(6)
    stage = sft(train_config(global_batch_size=2), learned)
    model = build(moe_config(aux_loss_alpha=0.0))
    stage.model_config = model.config
    rows = stage.loader.total_rows // 1_000
    sums, weights = [0.0, 0.0], [0.0, 0.0]
    for step in range((rows + 1) // 2):
        [batch] = stage.batches(step)
        if step * 2 + 2 > rows:  # the second row is of the next epoch
            batch = type(batch)(batch.ids_BT[:1], batch.documents_BT[:1], batch.loss_mask_BT[:1])
        output = stage.loss(model, batch, progress=0.0)
        for place, name in enumerate(("next_token", "mtp1")):
            sums[place] += output.terms[name].loss_sum
            weights[place] += stage.weights(batch)[name]
    singles = [sum(losses) for losses in zip(*(alone(model, e) for e in learned.kept), strict=True)]
    assert torch.allclose(torch.stack(sums), torch.stack(singles), rtol=1e-5)
    assert weights == [sum(int(entry.loss_mask_T.sum()) for entry in learned.kept)] * 2
    sums[0].backward()
    packed = gradients(model)
    singles = [alone(model, entry)[0] for entry in learned.kept]
    torch.stack(singles).sum().backward()
    for name, gradient in gradients(model).items():
        assert torch.allclose(packed[name], gradient, atol=2e-4 * float(gradient.norm()) + 1e-6)


def test_padding_counts_for_no_expert() -> None:
    stage = sft(train_config(global_batch_size=4), conversations(6))
    model = build(moe_config())
    [batch] = stage.batches(0)
    tokens = int((batch.documents_BT >= 0).sum())
    assert tokens == batch.tokens < batch.ids_BT.numel()
    for routing in stage.loss(model, batch, progress=0.0).routings.values():
        assert int(routing.counts().sum()) == tokens * 2
        assert len(routing.probs_ME) == len(routing.weights_MK) == len(routing.preferred_MK)


@pytest.mark.parametrize(("rank", "rest"), [(0, 0.02), (12, 0.25)])
def test_eight_conversations_are_learned_by_heart(tmp_path: Path, rank: int, rest: float) -> None:
    """Adapters beside a frozen random head and embedding learn most of it, not all."""
    config = train_config(
        budget="200-steps" if rank else "120-steps",
        global_batch_size=4,
        learning_rate=0.02 if rank else 0.01,
        optimizer={"weight_decay": 0.0},
        mtp={"early": 0.0, "late": 0.0},
    )
    run = Run(tmp_path, config, stage=sft(config, conversations(8)))
    if rank:
        run.model = build(moe_config())
        add_adapters(run.model, LoraConfig(rank=rank, alpha=32.0), seed=0)
    before = run.model.model.embed_tokens.weight.detach().clone()
    run.go()
    assert run.recorder.losses[0] > 3.5
    assert run.recorder.losses[-1] < rest * run.recorder.losses[0]
    assert torch.equal(run.model.model.embed_tokens.weight, before) == bool(rank)


def test_validation_is_the_mean_over_what_assistants_wrote(tmp_path: Path) -> None:
    held_out = conversations(7, seed=1)
    config = train_config(validate_every=5, global_batch_size=2)
    stage = sft(config, conversations(6), validation=list(validation_batches(held_out, 2)))
    run = Run(tmp_path, config, stage=stage)
    result = run.go()
    assert [record.step for record in run.recorder.validations] == [0, 5, 10]
    learned = sum(int(entry.loss_mask_T.sum()) for entry in held_out.kept)
    with torch.no_grad():
        sums = [
            sum(loss) for loss in zip(*(alone(run.model, e) for e in held_out.kept), strict=True)
        ]
    assert result.validation["loss"] == pytest.approx(float(sums[0]) / learned, rel=1e-5)
    assert result.validation["mtp1"] == pytest.approx(float(sums[1]) / learned, rel=1e-5)
    size = sum(entry.bytes_count for entry in held_out.kept)
    assert result.validation["bits_per_byte"] == pytest.approx(
        float(sums[0]) / np.log(2.0) / size, rel=1e-5
    )


def test_ranks_share_the_rows_of_a_step() -> None:
    config = train_config(global_batch_size=4, micro_batch_size=1)
    learned = conversations(12)
    whole = torch.cat([batch.ids_BT for batch in sft(config, learned).batches(0)])
    shares = [sft(config, learned, world=World(rank, 2)).batches(0) for rank in range(2)]
    assert [len(share) for share in shares] == [2, 2]
    shared = [batch.ids_BT for pair in zip(*shares, strict=True) for batch in pair]
    assert torch.equal(torch.cat(shared), whole)


def test_the_fingerprint_names_conversations_order_and_shape() -> None:
    names = {
        sft(config, conversations(6, seed)).fingerprint()
        for config, seed in (
            (train_config(), 0),
            (train_config(), 0),
            (train_config(), 1),
            (train_config(seed=1), 0),
            (train_config(global_batch_size=4), 0),
        )
    }
    assert len(names) == 4
