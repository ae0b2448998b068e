"""What every gate promises, and the record of one routing decision.

Shapes: M tokens of a batch in one row, D hidden, E experts, K experts per token.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ziphius.models.config import ModelConfig
from ziphius.ops.native.program import Program, Projection
from ziphius.ops.native.program_records import NONE, Choose, Norm, Place


@dataclass(frozen=True)
class Routing:
    """Where the tokens of one expert layer went, and the scores that a balance loss needs.

    `experts_MK` may hold the value E where capacity dropped the pair. `probs_ME` carries the gate's
    gradient: the affinities of each token, summing to 1. `preferred_MK` are the experts a token
    would take by affinity alone, which the balance losses count. Padding goes to no expert, and
    `text_M` keeps it out of every statistic.
    """

    experts_MK: Tensor
    weights_MK: Tensor
    probs_ME: Tensor
    preferred_MK: Tensor
    text_M: Tensor | None = None
    """bool, false on padding; None where there is none."""

    def without_padding(self, text_M: Tensor) -> "Routing":
        """Send padding to no expert: it shall not train the router, nor take anybody's place."""
        num_experts = self.probs_ME.shape[1]
        is_text_M1 = text_M.unsqueeze(-1)
        return replace(
            self,
            experts_MK=torch.where(is_text_M1, self.experts_MK, num_experts),
            weights_MK=torch.where(is_text_M1, self.weights_MK, 0.0),
            text_M=text_M,
        )

    def counts(self) -> Tensor:
        """Count the tokens each expert received, [E], dropped pairs left out."""
        num_experts = self.probs_ME.shape[1]
        experts_P = self.experts_MK.flatten()
        # Not `bincount`, for which a host waits until its device has caught up.
        counts_E1 = experts_P.new_zeros(num_experts + 1)
        return counts_E1.scatter_add_(0, experts_P, torch.ones_like(experts_P))[:num_experts]


class Gate(nn.Module, ABC):
    """Choose K of E experts for each token, and their weights.

    Scores are computed in float32 whatever the model's dtype or autocast: near-ties decide routes.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_experts = config.n_routed_experts
        self.top_k = config.num_experts_per_tok
        self.num_groups = config.n_group
        self.top_groups = config.topk_group
        self.normalise = config.norm_topk_prob
        self.scaling = config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))

    def forward(self, x_MD: Tensor, replayed_MK: Tensor | None = None) -> Routing:
        """Route the tokens, or send them where `replayed_MK` says; weights are the gate's own."""
        with torch.autocast(x_MD.device.type, enabled=False):
            return self.route(F.linear(x_MD.float(), self.weight.float()), replayed_MK)

    def route(self, logits_ME: Tensor, replayed_MK: Tensor | None = None) -> Routing:
        """Decide from the router's float32 logits.

        A replayed choice still has this gate's weights, which carry its gradient (routing replay:
        DeepSeek-V3.2, arXiv 2512.02556, section 3.1).
        """
        scores_ME = self.scores(logits_ME)
        experts_MK = self.choose(scores_ME.detach()) if replayed_MK is None else replayed_MK
        return self.weigh(scores_ME, experts_MK)

    def emit_choice(
        self, program: Program, norm: Norm, stream: Place, how: Mapping[str, int | float]
    ) -> tuple[Place, Place]:
        """Have a native program choose experts, as the `emit` of each gate says.

        Args:
            program: to be written.
            norm: of the stream, on the way into the router.
            stream: residual stream.
            how: fields of `Choose` that gates differ in.

        Returns:
            Where the chosen experts and their weights are.
        """
        router = Projection(self.weight.detach().float())
        [logits] = program.project([router], norm, stream, "router", dtype=torch.float32)
        [chosen] = program.place("chosen", 2 * self.top_k)
        [weights] = program.place("weights", self.top_k)
        fields: dict[str, Any] = {
            "groups": 1,
            "best_groups": 1,
            "judges": 1,
            "bias": NONE,
            "normalise": 0,
            "over_chosen": 0,
            "scaling": self.scaling,
        }
        program.add(
            Choose(
                logits=logits,
                experts=self.num_experts,
                top=self.top_k,
                route=program.route_layers,
                chosen=chosen,
                weights=weights,
                **fields | dict(how),
            )
        )
        program.route_layers, program.top_k = program.route_layers + 1, self.top_k
        return chosen, weights

    @abstractmethod
    def scores(self, logits_ME: Tensor) -> Tensor:
        """Turn logits into what experts are chosen and weighed by."""

    @abstractmethod
    def choose(self, scores_ME: Tensor) -> Tensor:
        """Choose K different experts for each token, [M, K]."""

    @abstractmethod
    def weigh(self, scores_ME: Tensor, experts_MK: Tensor) -> Routing:
        """Give the chosen experts their weights."""
