"""The head that predicts the next token."""

from ziphius.models.config import ModelConfig
from ziphius.models.layers import Linear
from ziphius.ops.native.program import Projection


class LanguageModelHead(Linear):
    """Project hidden states [..., D] to logits over the vocabulary [..., W]."""

    attribute = "lm_head"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.hidden_size, config.vocab_size)

    def emit(self) -> Projection:
        """Say what a native program multiplies by."""
        return super().emit()
