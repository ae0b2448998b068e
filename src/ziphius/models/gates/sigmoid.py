"""V3's gate: sigmoid scores, balanced by a bias instead of a loss.

Sources: DeepSeek-V3 report (arXiv 2412.19437), section 2.1.2; auxiliary-loss-free balancing
(arXiv 2408.15664). The bias decides which experts are chosen, never how much they weigh.

Shapes: M tokens, E experts, K experts per token.
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from ziphius.models.config import ModelConfig
from ziphius.models.gates.gate import Gate, Routing
from ziphius.ops.native.program import Program
from ziphius.ops.native.program_records import Norm, Place, Scoring
from ziphius.ops.top_experts import top_experts

# A group (node) is judged by its best experts: K / topk_group = 2 of them in V3, fixed in its code.
EXPERTS_PER_GROUP_SCORE = 2


class BiasedSigmoidGate(Gate):
    """Take the K best experts by sigmoid score plus bias within the best groups."""

    e_score_correction_bias: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        # A buffer, moved by `update_bias` and not by a gradient; float32 in a bf16 model too,
        # because steps of 0.001 vanish in bf16.
        bias_E = torch.zeros(self.num_experts, dtype=torch.float32)
        self.register_buffer("e_score_correction_bias", bias_E)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Let `to` and its like move the bias but not round it."""
        exact_E = self.e_score_correction_bias
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        moved_E = self.e_score_correction_bias
        if moved_E.dtype != torch.float32:
            self.e_score_correction_bias = exact_E.to(moved_E.device)
        return self

    def scores(self, logits_ME: Tensor) -> Tensor:
        """Score each expert on its own."""
        return logits_ME.sigmoid()

    def choose(self, scores_ME: Tensor) -> Tensor:
        """Take the best by score plus bias within the best groups."""
        return top_experts(
            scores_ME + self.e_score_correction_bias,
            self.top_k,
            groups=self.num_groups,
            top_groups=self.top_groups,
            judges=EXPERTS_PER_GROUP_SCORE,
        )

    def weigh(self, scores_ME: Tensor, experts_MK: Tensor) -> Routing:
        """Weigh by score alone."""
        weights_MK = scores_ME.gather(1, experts_MK)
        if self.normalise:
            weights_MK = weights_MK / (weights_MK.sum(dim=-1, keepdim=True) + 1e-20)
        return Routing(
            experts_MK,
            weights_MK * self.scaling,
            probs_ME=scores_ME / scores_ME.sum(dim=-1, keepdim=True),
            preferred_MK=top_experts(scores_ME.detach(), self.top_k),
        )

    def emit(self, program: Program, norm: Norm, stream: Place) -> tuple[Place, Place]:
        """Have a native program choose by score plus bias and weigh by score."""
        how = {
            "scoring": Scoring.BY_SIGMOID,
            "groups": self.num_groups,
            "best_groups": self.top_groups,
            "judges": EXPERTS_PER_GROUP_SCORE,
            "bias": program.vector(self.e_score_correction_bias),
            "normalise": int(self.normalise),
        }
        return self.emit_choice(program, norm, stream, how)

    @torch.no_grad()
    def update_bias(self, counts_E: Tensor, rate: float) -> None:
        """Raise the bias of underloaded experts and lower that of overloaded ones, by `rate`.

        `Model.update_router_biases` does it for all layers, after the optimizer step and with the
        counts of the whole global batch (arXiv 2408.15664, algorithm 1); V3 uses 0.001, then 0 for
        the last 0.5T tokens.
        """
        counts_E = counts_E.to(self.e_score_correction_bias)
        self.e_score_correction_bias += rate * (counts_E.mean() - counts_E).sign()
