"""Softmax gates: V2's two, and the plain top-k gate that V3.1's articles describe.

Sources: DeepSeek-V2 report (arXiv 2405.04434), section 2.2; DeepSeekMoE (arXiv 2401.06066). V2
never renormalises the chosen weights and multiplies them by routed_scaling_factor; where
norm_topk_prob is set, its published code divides by their sum and does not scale. So do these
gates; transformers 5.23 ignores that flag in V2, which no published checkpoint sets.

Shapes: M tokens, E experts, K experts per token.
"""

from torch import Tensor

from ziphius.models.gates.gate import Gate, Routing
from ziphius.ops.native.program import Program
from ziphius.ops.native.program_records import Norm, Place, Scoring
from ziphius.ops.top_experts import top_experts


class GreedyGate(Gate):
    """Take the K best experts by softmax score (V2-Lite)."""

    def scores(self, logits_ME: Tensor) -> Tensor:
        """Let the experts share a token's probability."""
        return logits_ME.softmax(dim=-1)

    def choose(self, scores_ME: Tensor) -> Tensor:
        """Take the best; all experts may be chosen."""
        return top_experts(scores_ME, self.top_k)

    def weigh(self, scores_ME: Tensor, experts_MK: Tensor) -> Routing:
        """Weigh by probability."""
        weights_MK = scores_ME.gather(1, experts_MK)
        if self.normalise:
            weights_MK = weights_MK / (weights_MK.sum(dim=-1, keepdim=True) + 1e-20)
        else:
            weights_MK = weights_MK * self.scaling
        return Routing(experts_MK, weights_MK, scores_ME, preferred_MK=experts_MK)

    def emit(self, program: Program, norm: Norm, stream: Place) -> tuple[Place, Place]:
        """Have a native program choose and weigh by probability."""
        return self.emit_choice(program, norm, stream, self._how())

    def _how(self) -> dict[str, int | float]:
        how: dict[str, int | float] = {"scoring": Scoring.BY_SOFTMAX}
        return how | ({"normalise": 1, "scaling": 1.0} if self.normalise else {})


class GroupLimitedGate(GreedyGate):
    """Take the K best experts within the best groups, a group as good as its best expert (V2)."""

    def choose(self, scores_ME: Tensor) -> Tensor:
        """Take the best of the best groups."""
        return top_experts(
            scores_ME, self.top_k, groups=self.num_groups, top_groups=self.top_groups
        )

    def emit(self, program: Program, norm: Norm, stream: Place) -> tuple[Place, Place]:
        """Have a native program choose within the best groups."""
        how = self._how() | {"groups": self.num_groups, "best_groups": self.top_groups}
        return self.emit_choice(program, norm, stream, how)


class TopKGate(Gate):
    """Take the K best logits and softmax over those alone, so the weights sum to 1."""

    def scores(self, logits_ME: Tensor) -> Tensor:
        """Leave the logits as they are."""
        return logits_ME

    def choose(self, scores_ME: Tensor) -> Tensor:
        """Take the best logits."""
        return top_experts(scores_ME, self.top_k)

    def weigh(self, scores_ME: Tensor, experts_MK: Tensor) -> Routing:
        """Weigh by the softmax over the chosen logits."""
        weights_MK = scores_ME.gather(1, experts_MK).softmax(dim=-1) * self.scaling
        return Routing(experts_MK, weights_MK, scores_ME.softmax(dim=-1), experts_MK)

    def emit(self, program: Program, norm: Norm, stream: Place) -> tuple[Place, Place]:
        """Have a native program choose by logit and weigh by the softmax over the chosen."""
        how = {"scoring": Scoring.BY_LOGIT, "over_chosen": 1}
        return self.emit_choice(program, norm, stream, how)
