"""Optimizers: what turns gradients into steps."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ziphius.core.device import DTYPES
from ziphius.models.model import Model
from ziphius.train.optim.adamw import AdamW
from ziphius.train.optim.muon import Muon
from ziphius.train.optim.parts import is_muon_matrix
from ziphius.train.optimizer_config import OptimizerConfig

__all__ = [
    "OPTIMIZERS",
    "AdamW",
    "Muon",
    "OptimizerConfig",
    "build_optimizer",
]

Groups = list[dict[str, Any]]


def _adamw(groups: Groups, config: OptimizerConfig) -> AdamW:
    return AdamW(groups, **_adamw_constants(config))


def _muon(groups: Groups, config: OptimizerConfig) -> Muon:
    return Muon(
        groups,
        momentum=config.momentum,
        update_rms=config.update_rms,
        newton_schulz_steps=config.newton_schulz_steps,
        **_adamw_constants(config),
    )


OPTIMIZERS: dict[str, Callable[[Groups, OptimizerConfig], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "muon": _muon,
}
"""By `OptimizerConfig.name`."""


def build_optimizer(model: Model, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Put the trainable parameters into groups, by name, and an optimizer on them.

    Its learning rate is 0 until the loop sets every group's `lr`.
    """
    groups: dict[tuple[int, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrices = _matrices(model, name, parameter, config.name)
            groups.setdefault((matrices, parameter.dim() > 1), []).append((name, parameter))
    return OPTIMIZERS[config.name](
        [
            {
                "params": members,
                "matrices": matrices,
                "weight_decay": config.weight_decay if decays else 0.0,
            }
            for (matrices, decays), members in groups.items()
        ],
        config,
    )


def _matrices(model: Model, name: str, parameter: nn.Parameter, optimizer: str) -> int:
    """Count the matrices that stand one above the other in a parameter; 0 is for AdamW."""
    if optimizer == "adamw" or not is_muon_matrix(model, name, parameter):
        return 0
    return 2 if name.endswith(".experts.gate_up_proj") else 1


def _adamw_constants(config: OptimizerConfig) -> dict[str, Any]:
    return {
        "moments": DTYPES[config.moments],
        "betas": (config.beta1, config.beta2),
        "eps": config.eps,
    }
