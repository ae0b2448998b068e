"""Tiny models for tests: configs that take every branch, and weights that make each one matter.

`Model.initialize` draws weights so small that attention is nearly even and experts nearly alike,
norms of 1 and biases of 0: a wrong factor would hide in it. `fill` draws all of them of order 1.
"""

from typing import Any

import torch
from torch import Tensor

from tests.figures import seen
from ziphius.models.config import ModelConfig, YarnScaling
from ziphius.models.model import Model
from ziphius.models.sequences import Sequences

V3_EXPERTS: dict[str, Any] = {
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "first_k_dense_replace": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "n_group": 4,
    "topk_group": 2,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
}
V2_EXPERTS: dict[str, Any] = {
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 12,
    "first_k_dense_replace": 1,
    "topk_method": "group_limited_greedy",
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 16.0,
}


def latent_config(**changes: Any) -> ModelConfig:
    """A V3 of two layers, with query compression and YaRN; dense unless experts are given."""
    fields: dict[str, Any] = {
        "model_type": "deepseek_v3",
        "attention": "mla",
        "vocab_size": 61,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "intermediate_size": 32,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "q_lora_rank": 20,
        "kv_lora_rank": 12,
        "qk_nope_head_dim": 10,
        "qk_rope_head_dim": 6,
        "v_head_dim": 9,
        "rope_scaling": YarnScaling(
            factor=8.0, original_max_position_embeddings=32, mscale=1.0, mscale_all_dim=1.0
        ),
    }
    return ModelConfig(**(fields | changes))


def grouped_config(**changes: Any) -> ModelConfig:
    """A Llama of two layers whose head width is not hidden_size / heads."""
    fields: dict[str, Any] = {
        "model_type": "llama",
        "attention": "gqa",
        "vocab_size": 61,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "intermediate_size": 32,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    return ModelConfig(**(fields | changes))


@torch.no_grad()
def fill(module: torch.nn.Module, seed: int, *, bias_shift: float = 0.0) -> None:
    """Draw all weights; `bias_shift` is the mean of the router biases."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.copy_(drawn / parameter.shape[-1] ** 0.5)
        elif name.endswith("bias"):
            parameter.copy_(0.3 * drawn)
        else:
            parameter.copy_(1.0 + 0.2 * drawn)
    for name, buffer in module.named_buffers():
        assert name.endswith("e_score_correction_bias")
        buffer.copy_(0.5 * torch.randn(buffer.shape, generator=generator) + bias_shift)


def build(config: ModelConfig, seed: int = 0, *, bias_shift: float = 0.0) -> Model:
    """A model with weights from `fill`."""
    model = Model(config)
    fill(model, seed, bias_shift=bias_shift)
    return model


def feed(model: Model, sequences: Sequences, ids_BT: Tensor) -> Tensor:
    """Hidden states [B, T, D] of the next tokens of all sequences."""
    hidden_BTD: Tensor = model(sequences.rows(ids_BT)).hidden_BTD.view(*ids_BT.shape, -1)
    return hidden_BTD


def random_ids(rows: int, length: int, vocab_size: int, seed: int = 0) -> Tensor:
    """Token ids [rows, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocab_size, (rows, length), generator=generator)


def gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    """Take the gradients of all parameters, zeros where none arrived, and clear them."""
    taken = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in module.named_parameters()
    }
    module.zero_grad(set_to_none=True)
    return taken


def assert_same_gradients(
    actual: dict[str, Tensor], expected: dict[str, Tensor], figure: str = "gradients"
) -> None:
    """Compare parameter by parameter, within 1e-4 of its norm; the worst is noted as `figure`.

    A gradient that is zero in exact arithmetic (one token, one expert with normalised weights) is
    rounding noise in both: 3e-7 of the norm of all gradients is allowed beside.
    """
    noise = 3e-7 * torch.stack([grad.norm() for grad in expected.values()]).norm()
    for name, grad in expected.items():
        difference = (actual[name] - grad).norm()
        allowed = 1e-4 * grad.norm() + noise
        share = 1e-4 * float(difference / allowed) if allowed > 0 else float(difference)
        assert seen(figure, share, 1e-4), f"{name}: {difference} of {grad.norm()}"
