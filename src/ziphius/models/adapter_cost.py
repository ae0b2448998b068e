"""What training adapters of low rank takes beside frozen weights; `cost.py` has the whole model.

Shapes: r rank of the adapters.
"""

from dataclasses import dataclass

from ziphius.models.config import ModelConfig
from ziphius.models.cost import (
    DTYPE_BYTES,
    HOLES,
    RUNTIME_BYTES,
    Dtype,
    activation_bytes,
    count_parameters,
)

BYTES_PER_PARAMETER = 16
"""Of an adapter: float32 itself, its gradient, and AdamW's two moments."""
LOGITS_BLOCK_BYTES = 3 * 4 * 4 * 2**20
"""A block of logits, what they become and their gradients (`ops/logprobs.py`)."""


@dataclass(frozen=True)
class AdapterMemory:
    """Estimated bytes to train adapters on all projections in the blocks of a model."""

    rank: int
    parameters: int
    """Count, of all adapters."""
    frozen: int
    adapters: int
    """With gradients and moments."""
    activations: int
    runtime: int
    train: int

    @property
    def without_activations(self) -> int:
        """Return what is needed before the first token."""
        return self.frozen + self.adapters


def adapter_memory(config: ModelConfig, *, tokens: int, dtype: Dtype, rank: int) -> AdapterMemory:
    """Estimate what training adapters takes.

    Args:
        config: the model.
        tokens: of a micro-batch.
        dtype: of the frozen weights and of products.
        rank: of the adapters.
    """
    size = DTYPE_BYTES[dtype]
    counts = count_parameters(config)
    parameters = rank * _adapted_widths(config)
    activations = tokens * (
        activation_bytes(config, size) + _adapter_activations(config, rank, size)
    )
    parts = {
        "frozen": size * (counts.main + counts.mtp) + 4 * counts.router_biases,
        "adapters": BYTES_PER_PARAMETER * parameters,
        "activations": activations,
        "runtime": RUNTIME_BYTES + LOGITS_BLOCK_BYTES + int(HOLES * activations),
    }
    return AdapterMemory(rank, parameters, **parts, train=sum(parts.values()))


def _adapted_widths(config: ModelConfig) -> int:
    """Add up what all projections in the blocks take and give: r times it are the adapters."""
    layers = range(config.num_hidden_layers + config.num_nextn_predict_layers)
    return sum(
        sum(widths_in + widths_out for widths_in, widths_out in _projections(config, layer))
        for layer in layers
    )


def _adapter_activations(config: ModelConfig, rank: int, size: int) -> int:
    """Count bytes per token: an adapter keeps what is between its two products."""
    layers = range(config.num_hidden_layers + config.num_nextn_predict_layers)
    return size * rank * sum(len(_projections(config, layer)) for layer in layers)


def _projections(config: ModelConfig, layer_idx: int) -> list[tuple[int, int]]:
    """List the widths, in and out, of one layer's projections but for routed experts."""
    hidden, width = config.hidden_size, config.intermediate_size
    if config.is_expert_layer(layer_idx):
        width = config.n_shared_experts * config.moe_intermediate_size
    feed_forward = [(hidden, width), (hidden, width), (width, hidden)] if width else []
    return _attention_projections(config) + feed_forward


def _attention_projections(config: ModelConfig) -> list[tuple[int, int]]:
    hidden, heads = config.hidden_size, config.num_attention_heads
    queries = heads * config.q_head_dim
    if config.attention != "mla":
        keys = config.num_key_value_heads * config.q_head_dim
        return [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
    assert config.kv_lora_rank is not None
    assert config.qk_rope_head_dim is not None
    assert config.qk_nope_head_dim is not None
    assert config.v_head_dim is not None
    latent, values = config.kv_lora_rank, heads * config.v_head_dim
    query = [(hidden, queries)]
    if config.q_lora_rank is not None:
        query = [(hidden, config.q_lora_rank), (config.q_lora_rank, queries)]
    return [
        *query,
        (hidden, latent + config.qk_rope_head_dim),
        (latent, heads * config.qk_nope_head_dim + values),
        (values, hidden),
    ]
