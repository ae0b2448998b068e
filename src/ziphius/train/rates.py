"""Learning rates where none is given: from the size of a model, and from whether it is trained.

The rates of new models fall with their size as those of GPT-3 do (arXiv 2005.14165, table 2.1:
6e-4 at 125M, 2.5e-4 at 760M, 1.2e-4 at 6.7B), along a power that also meets what the smallest
presets take. DeepSeek-V3 took 2.2e-4 with 37B active parameters, in batches of 63M tokens.
"""

from ziphius.models.config import ModelConfig
from ziphius.models.cost import model_cost

HIGHEST, SMALLEST, POWER = 3e-3, 2.2e6, -0.4
"""The rate of models of `SMALLEST` active parameters and fewer, and how it falls above."""
GOING_ON_SHARE = 0.1
"""Of the rate of a new model, for one that is trained already: cosine schedules end there. At 37B
active parameters it gives 6e-6, and DeepSeek-V3 was fine-tuned from 5e-6 on."""
ADAPTER_FACTOR = 10.0
"""Of the rate of all weights, for adapters of low rank: the best rates differ by about that at any
size and rank (Schulman et al., LoRA Without Regret, 2025)."""


def size_rate(config: ModelConfig) -> float:
    """Return the highest learning rate of a new model with AdamW."""
    active = model_cost(config, context=1).parameters.active
    return float(min(HIGHEST, HIGHEST * (active / SMALLEST) ** POWER))


def finetuning_share(*, is_new: bool, has_adapters: bool) -> float:
    """Return which share of a new model's rate fine-tuning takes."""
    if is_new:
        return 1.0
    return GOING_ON_SHARE * (ADAPTER_FACTOR if has_adapters else 1.0)


def peak_rate(asked: float | None, config: ModelConfig, share: float = 1.0) -> float:
    """Return the rate that was asked for, or a share of what the size of the model bears."""
    return share * size_rate(config) if asked is None else asked
