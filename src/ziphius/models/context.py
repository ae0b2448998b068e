"""What one forward pass carries through the layers beside the hidden states."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ziphius.models.attention.backend import AttentionMetadata
from ziphius.models.gates.gate import Routing
from ziphius.models.rope import Rope


@dataclass(frozen=True)
class ForwardContext:
    """What attention and experts need to know; expert layers leave their routing here.

    Shapes: B rows, T tokens, K experts per token.
    """

    rope: Rope
    attention: AttentionMetadata
    replayed: Mapping[int, Tensor] = field(default_factory=dict)
    """By index of an expert layer: the experts [B * T, K] to send the tokens to, instead of those
    that its gate would choose. Layers that are not here choose."""
    text_M: Tensor | None = None
    """bool [B * T], false on padding, which is routed nowhere; None where there is none."""
    first_row: int = 0
    """Number of the first row in its step: which sequences drop no tokens hangs on it."""
    routings: dict[int, Routing] = field(default_factory=dict)
    """By layer index. A dict, so that a layer recomputed in the backward pass writes it once."""
