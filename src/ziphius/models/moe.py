"""DeepSeekMoE (arXiv 2401.06066): shared experts for all tokens, a gate, and routed experts.

Shapes: B sequences, T tokens, M = B * T, D hidden, E experts, K experts per token, F expert width.
"""

import torch
from torch import Tensor, nn

from ziphius.models.capacity import drop_overflow
from ziphius.models.config import ModelConfig
from ziphius.models.context import ForwardContext
from ziphius.models.gates import GATES, Routing
from ziphius.models.int8 import Int8Experts
from ziphius.models.layers import FeedForward
from ziphius.models.native import native
from ziphius.ops.experts import routed_experts
from ziphius.ops.native.program_builder import Program
from ziphius.ops.native.program_records import NONE, NOWHERE, Experts, Norm, Place, padded


class RoutedExperts(nn.Module):
    """The weights of all routed experts, stacked; on disk they are files' entries one by one."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        experts, hidden, width = (
            config.n_routed_experts,
            config.hidden_size,
            config.moe_intermediate_size,
        )
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))

    def forward(
        self, x_MD: Tensor, experts_MK: Tensor, weights_MK: Tensor, base_MD: Tensor | None = None
    ) -> Tensor:
        """Add up each token's experts by weight, on top of `base_MD`, [M, D]."""
        weights = self.gate_up_proj, self.down_proj
        return routed_experts(x_MD, experts_MK, weights_MK, *weights, base_MD)

    def emit(self, program: Program) -> tuple[int, int]:
        """Keep the weights of all experts for a native program; returns where the two parts are."""
        pairs = (tuple(gate_up_2FD.chunk(2)) for gate_up_2FD in self.gate_up_proj)
        return program.weight_pairs(pairs), program.weights(*self.down_proj)

    def to_int8(self) -> Int8Experts:
        """Make the layer that takes this one's place in an INT8 model."""
        return Int8Experts(self.gate_up_proj, self.down_proj)


class MixtureOfExperts(nn.Module):
    """The feed-forward part of an expert layer."""

    def __init__(self, config: ModelConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.num_groups = config.n_group
        self.capacity_factor = config.capacity_factor
        self.gate = GATES[config.topk_method](config)
        self.experts = RoutedExperts(config)
        self.shared_experts = None
        if config.n_shared_experts:
            # Several shared experts are one wider layer: the same function, one product.
            width = config.n_shared_experts * config.moe_intermediate_size
            self.shared_experts = FeedForward(config.hidden_size, width)

    def forward(self, x_BTD: Tensor, context: ForwardContext) -> Tensor:
        """Route, compute, add; the routing is left in the context under this layer's index."""
        x_MD = x_BTD.flatten(0, 1)
        replayed_MK = context.replayed.get(self.layer_idx)
        routing: Routing = self.gate(x_MD, replayed_MK)
        if context.text_M is not None:
            routing = routing.without_padding(context.text_M)
        # What is replayed was decided for good, by a model that drops nothing.
        if self.training and self.capacity_factor is not None and replayed_MK is None:
            routing = drop_overflow(
                routing,
                self.num_groups,
                self.capacity_factor,
                sequence_length=x_BTD.shape[1],
                first_row=context.first_row,
            )
        context.routings[self.layer_idx] = routing
        shared_MD = None if self.shared_experts is None else self.shared_experts(x_MD)
        out_MD: Tensor = self.experts(x_MD, routing.experts_MK, routing.weights_MK, shared_MD)
        return out_MD.view_as(x_BTD)

    def emit(self, program: Program, norm: Norm, stream: Place) -> None:
        """Have a native program add the layer of the normalised stream to the stream."""
        chosen, weights = native(self.gate).emit(program, norm, stream)
        first, second = native(self.experts).emit(program)
        experts, hidden, width = self.experts.down_proj.shape
        top, shared_width, shared, updates = self.gate.top_k, 0, (NONE, NONE), NOWHERE
        if self.shared_experts is not None:
            gate_FD, up_FD, down_DF = native(self.shared_experts).weights()
            shared_width = len(gate_FD)
            shared = program.weight_pairs([(gate_FD, up_FD)]), program.weights(down_DF)
            updates = program.gate_updates(gate_FD, up_FD, norm, stream)
        [inner] = program.place("experts' inner", top * padded(width))
        [shared_inner] = program.place("inner", shared_width)
        [out] = program.place("experts' out", top * padded(hidden))
        [shared_out] = program.place("shared out", hidden)
        sizes = (experts, top, width, first, second, shared_width, *shared)
        places = (inner, shared_inner, out, shared_out, updates)
        program.add(Experts(norm, stream, hidden, chosen, weights, *sizes, *places))
        if self.shared_experts is not None:
            program.adapt(down_DF, Norm(), shared_inner, stream)
