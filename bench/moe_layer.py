"""One routed-experts layer, forward and backward, under routings that change at every call."""

from typing import Any

import torch
from arms import BATCH, SEQ_LEN, Arm

from ziphius.models.config import ModelConfig

ROUTINGS = 40
TOKENS = BATCH * SEQ_LEN


def ziphius(dtype: str) -> Arm:
    """Build our dispatch over stacked weights of the shape `bench-v3`."""
    from ziphius.models.moe import RoutedExperts
    from ziphius.models.presets import get_preset

    config = get_preset("bench-v3")
    layer = RoutedExperts(config)
    return _arm(layer, config, dtype)


def transformers(dtype: str, experts: str) -> Arm:
    """Build transformers' experts module with one of its implementations."""
    from transformers import AutoConfig
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Experts

    from ziphius.models.presets import get_preset
    from ziphius.models.published import to_published

    shape = get_preset("bench-v3")
    config = AutoConfig.for_model(**to_published(shape))
    config._experts_implementation = experts
    build: Any = DeepseekV3Experts  # has no types
    return _arm(build(config), shape, dtype)


def _arm(layer: torch.nn.Module, config: ModelConfig, dtype: str) -> Arm:
    experts, per_token = config.n_routed_experts, config.num_experts_per_tok
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    x_MD = torch.randn(TOKENS, config.hidden_size, generator=generator)
    grad_MD = torch.randn(TOKENS, config.hidden_size, generator=generator)
    scores = [torch.rand(TOKENS, experts, generator=generator) for _ in range(ROUTINGS)]
    routings = [score.topk(per_token, dim=-1) for score in scores]
    number_type = getattr(torch, dtype)
    calls = 0

    def step() -> float:
        nonlocal calls
        weights_MK, experts_MK = routings[calls % ROUTINGS]
        calls += 1
        leaf_MD = x_MD.to(number_type).requires_grad_()
        leaf_MK = weights_MK.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            out_MD = layer(leaf_MD, experts_MK, leaf_MK)
        out_MD.backward(grad_MD.to(out_MD.dtype))
        layer.zero_grad()
        return float(out_MD[0, 0].detach())

    width = config.moe_intermediate_size
    products = 3 * 2 * 3 * config.hidden_size * width * TOKENS * per_token
    return Arm(step, products / 1e9)
