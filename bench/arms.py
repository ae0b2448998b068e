"""The arms of the training benchmark: each builds one implementation and returns its step.

Run by `bench/train.py` in a process of its own per arm. All arms train the same shape (`bench-v3`,
nanochat its dense model of about equal FLOPs) on the same random tokens with AdamW, or with what
the peer ships.
"""

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

BATCH, SEQ_LEN = 8, 256


@dataclass
class Arm:
    """One implementation, ready to step."""

    step: Callable[[], float]
    """Train on one batch; return the loss."""
    gflop: float
    """Matrix FLOPs of a step."""


def ziphius(dtype: str) -> Arm:
    """Build our model, loss and fused AdamW, as `ziphius pretrain` runs them."""
    from ziphius.models.cost import model_cost
    from ziphius.models.losses import next_token_loss
    from ziphius.models.model import Model
    from ziphius.models.presets import get_preset

    config = get_preset("bench-v3")
    model = Model(config)
    model.initialize(seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)

    def step() -> float:
        ids_BT = tokens(config.vocab_size)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = next_token_loss(model, model(ids_BT), ids_BT).mean
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    per_token = model_cost(config, batch=BATCH, context=SEQ_LEN).flops.training
    return Arm(step, per_token * BATCH * SEQ_LEN / 1e9)


def transformers(dtype: str, *, compiled: bool, experts: str = "grouped_mm") -> Arm:
    """Build transformers' DeepSeek-V3 of the same shape, stock or compiled."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from ziphius.models.cost import model_cost
    from ziphius.models.presets import get_preset
    from ziphius.models.published import to_published

    shape = get_preset("bench-v3")
    published = to_published(shape)
    config = AutoConfig.for_model(**published)
    build: Any = AutoModelForCausalLM.from_config  # has no types
    model = build(config, experts_implementation=experts)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    forward = torch.compile(model) if compiled else model

    def step() -> float:
        ids_BT = tokens(shape.vocab_size)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = forward(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    per_token = model_cost(shape, batch=BATCH, context=SEQ_LEN).flops.training
    return Arm(step, per_token * BATCH * SEQ_LEN / 1e9)


def nanochat(dtype: str) -> Arm:
    """Build nanochat's dense model and optimizer, compiled as shipped, from folder $NANOCHAT."""
    sys.path.insert(0, os.environ["NANOCHAT"])
    os.environ["NANOCHAT_DTYPE"] = dtype
    gpt: Any = importlib.import_module("nanochat.gpt")
    config = gpt.GPTConfig(SEQ_LEN, 4_096, 5, 2, 2, 256, window_pattern="L")
    model = gpt.GPT(config)
    model.init_weights()
    optimizer = model.setup_optimizer()
    forward: Any = torch.compile(model, dynamic=False)

    def step() -> float:
        ids_BT = tokens(config.vocab_size)
        loss = forward(ids_BT[:, :-1].contiguous(), ids_BT[:, 1:].contiguous())
        loss.backward()
        optimizer.step()
        model.zero_grad(set_to_none=True)
        return float(loss.detach())

    return Arm(step, model.estimate_flops() * BATCH * SEQ_LEN / 1e9)


def tokens(vocab_size: int) -> torch.Tensor:
    """Draw the next random batch."""
    return torch.randint(0, vocab_size, (BATCH, SEQ_LEN))
