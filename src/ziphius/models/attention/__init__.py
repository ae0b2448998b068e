"""How a token reads earlier ones: one entry, one file, one test against a reference."""

from ziphius.models.attention.grouped import GroupedAttention
from ziphius.models.attention.latent import LatentAttention

ATTENTION: dict[str, type[LatentAttention] | type[GroupedAttention]] = {
    "mla": LatentAttention,
    "gqa": GroupedAttention,
}
"""By `ModelConfig.attention`."""
