"""How a token finds its experts: one entry, one file, one test against a reference."""

from ziphius.models.gates.gate import Gate, Routing
from ziphius.models.gates.sigmoid import BiasedSigmoidGate
from ziphius.models.gates.softmax import GreedyGate, GroupLimitedGate, TopKGate

GATES: dict[str, type[Gate]] = {
    "topk": TopKGate,
    "greedy": GreedyGate,
    "group_limited_greedy": GroupLimitedGate,
    "noaux_tc": BiasedSigmoidGate,
}
"""By `ModelConfig.topk_method`, the published name."""

__all__ = ["GATES", "Gate", "Routing"]
