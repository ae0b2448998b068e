"""Routing replay: tokens go where an earlier pass sent them, and the gate still learns."""

import pytest
import torch

from tests.tiny import (
    V2_EXPERTS,
    V3_EXPERTS,
    assert_same_gradients,
    build,
    gradients,
    latent_config,
    random_ids,
)
from ziphius.models.config import ModelConfig
from ziphius.models.forward_batch import ForwardBatch
from ziphius.models.model import Model

CONFIGS = {
    "noaux_tc": latent_config(**V3_EXPERTS),
    "group_limited_greedy": latent_config(**V2_EXPERTS | {"model_type": "deepseek_v2"}),
    "greedy": latent_config(
        **V2_EXPERTS
        | {"model_type": "deepseek_v2", "topk_method": "greedy", "n_group": 1, "topk_group": 1}
    ),
}
LAYER = 1


def run(model: Model, ids_BT: torch.Tensor, routes: dict[int, torch.Tensor] | None = None):
    output = model(ForwardBatch(ids_BT, routes=routes or {}))
    (
        output.hidden_BTD
        * torch.linspace(-1, 1, output.hidden_BTD.numel()).view_as(output.hidden_BTD)
    ).sum().backward()
    return output, gradients(model)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_replaying_a_pass_gives_it_again(config: ModelConfig) -> None:
    model, ids_BT = build(config), random_ids(2, 7, config.vocab_size)
    first, expected = run(model, ids_BT)
    routes = {LAYER: first.routings[LAYER].experts_MK.unflatten(0, (2, 7))}
    again, actual = run(model, ids_BT, routes)
    assert torch.equal(first.hidden_BTD, again.hidden_BTD)
    assert_same_gradients(actual, expected)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_another_choice_is_followed_with_weights_of_the_gate(config: ModelConfig) -> None:
    model, ids_BT = build(config), random_ids(2, 7, config.vocab_size)
    free, free_grads = run(model, ids_BT)
    other = (free.routings[LAYER].experts_MK + 1) % config.n_routed_experts
    replayed, grads = run(model, ids_BT, {LAYER: other.unflatten(0, (2, 7))})
    routing = replayed.routings[LAYER]
    assert torch.equal(routing.experts_MK, other)
    assert not torch.equal(free.hidden_BTD, replayed.hidden_BTD)
    # The affinities are those of the free pass: what comes before the gate is the same.
    probs_MK = free.routings[LAYER].probs_ME.gather(1, other)
    expected_MK = probs_MK * config.routed_scaling_factor
    if config.norm_topk_prob:
        expected_MK = expected_MK / probs_MK.sum(-1, keepdim=True)
    torch.testing.assert_close(routing.weights_MK, expected_MK)
    gate = f"model.layers.{LAYER}.mlp.gate.weight"
    assert grads[gate].norm() > 0.01 * free_grads[gate].norm() > 0


def test_replay_is_of_a_model_that_drops_nothing() -> None:
    config = latent_config(**V2_EXPERTS | {"model_type": "deepseek_v2", "capacity_factor": 0.5})
    model, ids_BT = build(config).train(), random_ids(12, 7, config.vocab_size)
    sampled = model.eval()(ids_BT).routings[LAYER].experts_MK
    trained = model.train()(ForwardBatch(ids_BT, routes={LAYER: sampled.unflatten(0, (12, 7))}))
    assert torch.equal(trained.routings[LAYER].experts_MK, sampled)
    assert bool((model(ids_BT).routings[LAYER].experts_MK == config.n_routed_experts).any())
