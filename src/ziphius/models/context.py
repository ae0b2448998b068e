"""What one forward pass carries through the layers beside the hidden states."""

from dataclasses import dataclass, field

from ziphius.models.cache import Cache
from ziphius.models.gates.gate import Routing
from ziphius.models.patterns import Visible
from ziphius.models.rope import Rope


@dataclass(frozen=True)
class ForwardContext:
    """Positions, visibility and cache for the layers; expert layers leave their routing here."""

    rope: Rope
    visible: Visible
    cache: Cache | None = None
    routings: dict[int, Routing] = field(default_factory=dict)
    """By layer index. A dict, so that a layer recomputed in the backward pass writes it once."""
