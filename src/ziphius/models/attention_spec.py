"""What attention keeps of a token and what its forms cost, from the config alone, without torch.

An attention class (`models/attention`) has the spec of its layer; `models/cost.py` reads the same
one before there is a model. Layers of one model may differ.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ziphius.models.config import ModelConfig


@dataclass(frozen=True)
class CacheSpec:
    """What one layer keeps of a token."""

    widths: tuple[int, ...]
    """Numbers of each part: (C + R,) for latent attention, keys and values for grouped."""
    scale_width: int = 128
    """Numbers that share a scale where a cache keeps them in 8 bits (`ops/cache_rows.py`)."""
    kept: int = 0
    """Numbers at the end of each part that such a cache keeps in bfloat16."""

    @property
    def numbers(self) -> int:
        """Numbers a token takes, all parts."""
        return sum(self.widths)


@dataclass(frozen=True)
class AttentionForm:
    """One way to compute a layer's attention, and the multiplications it takes, all heads."""

    name: str
    """Method of the attention class."""
    per_key: int
    """To make what the form reads out of each cached row."""
    per_query: int
    """To bring each query into the form, and its result out of it."""
    per_pair: int
    """For each key that a query sees: its score, and its value in the weighted sum."""

    def cost(self, queries: int, keys: int) -> int:
        """Count what it takes to attend from some new tokens to all keys."""
        return keys * self.per_key + queries * (self.per_query + keys * self.per_pair)


@dataclass(frozen=True)
class AttentionSpec:
    """One attention layer, seen from outside."""

    cache: CacheSpec
    forms: tuple[AttentionForm, ...]
    """The first one is what runs without a cache."""

    def cheapest(self, queries: int, keys: int) -> AttentionForm:
        """Choose the form with the fewest multiplications; the first of equal ones."""
        return min(self.forms, key=lambda form: form.cost(queries, keys))


def attention_spec(config: ModelConfig, layer_idx: int) -> AttentionSpec:
    """Describe one layer; indices from `num_hidden_layers` on are the MTP layers."""
    return SPECS[config.attention](config, layer_idx)


def cache_specs(config: ModelConfig) -> list[CacheSpec]:
    """Say what each layer caches, MTP layers last."""
    layers = config.num_hidden_layers + config.num_nextn_predict_layers
    return [attention_spec(config, index).cache for index in range(layers)]


def _latent(config: ModelConfig, layer_idx: int) -> AttentionSpec:
    """Keep one row [latent | rotated key] for all heads (DeepSeek-V2, arXiv 2405.04434, 2.1)."""
    assert config.kv_lora_rank is not None
    assert config.qk_nope_head_dim is not None
    assert config.qk_rope_head_dim is not None
    assert config.v_head_dim is not None
    heads, latent = config.num_attention_heads, config.kv_lora_rank
    row = latent + config.qk_rope_head_dim
    # Applied to each row that is read, or moved into query and output: the same weights.
    through = heads * latent * (config.qk_nope_head_dim + config.v_head_dim)
    expanded = AttentionForm(
        "expanded", through, 0, heads * (config.q_head_dim + config.v_head_dim)
    )
    absorbed = AttentionForm("absorbed", 0, through, heads * (row + latent))
    cache = CacheSpec((row,), kept=config.qk_rope_head_dim)
    return AttentionSpec(cache, (expanded, absorbed))


def _grouped(config: ModelConfig, layer_idx: int) -> AttentionSpec:
    """Keep the keys and values of every key-value head."""
    assert config.head_dim is not None
    width = config.num_key_value_heads * config.head_dim
    plain = AttentionForm("grouped", 0, 0, 2 * config.num_attention_heads * config.head_dim)
    cache = CacheSpec((width, width), scale_width=config.head_dim)
    return AttentionSpec(cache, (plain,))


SPECS: dict[str, Callable[[ModelConfig, int], AttentionSpec]] = {
    "mla": _latent,
    "gqa": _grouped,
}
"""By `ModelConfig.attention`."""
