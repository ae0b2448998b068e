"""GRPO with `exact_logprobs`: trainer and sampler agree to the last bit, step after step."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.figures import seen
from tests.tiny import assert_same_gradients, gradients
from tests.training import ListRecorder, MemoryStore
from tests.unit.rl.toys import (
    copied,
    grpo_config,
    model_of,
    nudge,
    objective,
    pay_low_ids,
    stage,
    training,
)
from tests.unit.rollout.tasks import add_echo
from ziphius.core.errors import ConfigError
from ziphius.engine.config import EngineConfig
from ziphius.models.layers import Linear
from ziphius.models.model import Model
from ziphius.ops import native
from ziphius.ops.sampling_config import SamplingConfig
from ziphius.rl import rollout_batch
from ziphius.rl.settings import GrpoConfig
from ziphius.rollout import engine, exact
from ziphius.rollout.config import RolloutConfig
from ziphius.train.loop import train

pytestmark = pytest.mark.skipif(not native.serves(), reason=f"native kernels {native.status()}")
GAP = "sampling_logp_difference_max"
FAMILIES = ["v3-tiny", "v2-tiny", "v2-lite-tiny", "r1-distill-llama-tiny", "qwen3-tiny"]


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    add_echo(monkeypatch)
    pay_low_ids(monkeypatch)


def sharp(preset: str, **shape: Any) -> Model:
    """A model whose logits are of a trained one's size."""
    model = model_of(preset, **shape)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    return model.train()


def exactly(**changes: Any) -> GrpoConfig:
    rollout = RolloutConfig(num_generations=4, max_new_tokens=24)
    return grpo_config(**{"rollout": rollout, "exact_logprobs": True} | changes)


def gaps_of(folder: Path, model: Model, config: GrpoConfig, **changes: Any) -> list[float]:
    recorder, settings = ListRecorder(), training(**changes)
    parts = {"store": MemoryStore(), "recorder": recorder}
    train(stage(model, config, settings), model, settings, folder, **parts)
    return [record.terms[GAP] for record in recorder.steps]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("preset", FAMILIES)
def test_the_difference_is_zero_at_every_step(preset: str, dtype: str, tmp_path: Path) -> None:
    exact_gaps = gaps_of(tmp_path / "exact", sharp(preset), exactly(beta=0.1), dtype=dtype)
    assert exact_gaps == [0.0] * 6
    usual = gaps_of(tmp_path / "usual", sharp(preset), exactly(exact_logprobs=False), dtype=dtype)
    assert all(gap > 0 for gap in usual)


@pytest.mark.parametrize("preset", ["v3-tiny", "qwen3-tiny"])
def test_no_cut_shows(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts in pieces, few sequences at a time, chunks of a row, groups apart, a temperature."""
    limits = EngineConfig(
        max_num_seqs=3, max_num_batched_tokens=5, max_prefill_chunk=3, block_size=4, num_blocks=60
    )
    monkeypatch.setattr(engine, "EngineConfig", lambda **_: limits)
    monkeypatch.setattr(exact, "_MOST_TOKENS", 7)
    rollout = RolloutConfig(
        num_generations=4,
        max_new_tokens=24,
        sequences_at_once=8,
        sampling=SamplingConfig(temperature=0.7),
    )
    config = exactly(rollout=rollout, replay_routes=False)
    model = sharp(preset, vocab_size=573)  # of which the tokenizer knows 512
    assert gaps_of(tmp_path, model, config, micro_batch_size=4, budget="3-steps") == [0.0] * 3


@pytest.mark.parametrize("replay_routes", [True, False])
@pytest.mark.parametrize("preset", FAMILIES)
def test_gradients_are_those_of_the_modules(preset: str, replay_routes: bool) -> None:
    model, found = sharp(preset), {}
    for is_exact in (True, False):
        config = exactly(exact_logprobs=is_exact, replay_routes=replay_routes, num_iterations=2)
        own = stage(model, config)
        for step in range(2):
            trained = copied(model)
            own.batches(0)
            if step:
                nudge(model, 0.01)  # answers of an earlier step: ratios are not 1, clips bite
            total, means = objective(own, model, step)
            total.backward()
            found[is_exact, step] = gradients(model), float(total.detach()), means
            model.load_state_dict(trained.state_dict())
    for step in range(2):
        (grads, total, means), (expected, loss, terms) = found[True, step], found[False, step]
        assert_same_gradients(grads, expected, "gradients, exact log-probabilities")
        assert total == pytest.approx(loss, rel=1e-4, abs=1e-6)
        assert means["clip_ratio"] == terms["clip_ratio"]
    assert found[True, 1][2]["clip_ratio"] > 0.02


@pytest.mark.parametrize("preset", ["v3-tiny", "qwen3-tiny"])
def test_gradients_in_bfloat16_are_those_of_autocast(preset: str) -> None:
    """Values differ as one rounding from another, so the whole gradient is held, and loosely."""
    model, found = sharp(preset), []
    for is_exact in (True, False):
        config = exactly(exact_logprobs=is_exact)
        own = stage(model, config, training(dtype="bfloat16"))
        [batch] = own.batches(0)
        with torch.autocast("cpu", torch.bfloat16):
            loss = own.loss(model, batch, 0.0).terms["policy"].loss_sum
        loss.backward()
        found.append(torch.cat([grad.flatten() for grad in gradients(model).values()]))
    difference = (found[0] - found[1]).norm() / found[1].norm()
    assert seen("gradient, exact log-probabilities, bfloat16", difference, 5e-2)


def test_a_step_that_teaches_nothing_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_batch, "reward", lambda rollout, bonus: 1.0)
    model = sharp("v3-tiny")
    total, means = objective(stage(model, exactly()), model, 0)
    total.backward()
    assert float(total.detach()) == means["gap"] == 0
    assert all(not grad.any() for grad in gradients(model).values())


def test_the_reference_is_scored_exactly_too() -> None:
    found = stage(sharp("v3-tiny"), exactly(beta=0.1))
    _, means = objective(found, found.model, 0)
    assert means["kl"] == 0
    usual = stage(found.model, exactly(beta=0.1, exact_logprobs=False))
    assert objective(usual, found.model, 0)[1]["kl"] != 0


def test_routings_are_those_of_the_step(tmp_path: Path) -> None:
    """The load of experts is counted in layers that only the backward pass computes."""
    records = []
    for is_exact in (True, False):
        model, recorder, settings = sharp("v3-tiny"), ListRecorder(), training(budget="1-steps")
        own = stage(model, exactly(exact_logprobs=is_exact), settings)
        parts = {"store": MemoryStore(), "recorder": recorder}
        train(own, model, settings, tmp_path / str(is_exact), **parts)
        records += recorder.steps
    found, expected = records
    assert list(found.counts_by_layer) == [1, 2]
    assert found.counts_by_layer == expected.counts_by_layer
    assert found.gate_entropy_by_layer == pytest.approx(expected.gate_entropy_by_layer, abs=1e-5)
    assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)


class OtherLinear(Linear):
    """A layer without an operation of its own."""


def with_a_part_of_its_own(model: Model) -> None:
    model.model.layers[0].self_attn.o_proj.__class__ = OtherLinear


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"activation_checkpointing": True}, "activation_checkpointing has no effect"),
    ],
)
def test_what_cannot_be_exact_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        stage(model_of("v3-tiny"), exactly(), training(**changes))


def test_a_model_without_a_program_is_refused() -> None:
    model = model_of("v3-tiny")
    with_a_part_of_its_own(model)
    with pytest.raises(ConfigError, match="exact_logprobs: OtherLinear has no native operation"):
        stage(model, exactly())


def test_without_kernels_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "serves", lambda *tensors: False)
    with pytest.raises(ConfigError, match="exact_logprobs: native kernels are"):
        stage(model_of("v3-tiny"), exactly())
