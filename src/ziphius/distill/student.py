"""Dense students for a teacher: Llama's shape, the teacher's tokens, a share of its parameters.

DeepSeek distilled R1 into dense Llama and Qwen2 models (arXiv 2501.12948, section 2.4).
"""

from ziphius.core.errors import ConfigError
from ziphius.models.config import ModelConfig
from ziphius.models.cost import count_parameters
from ziphius.models.model import Model
from ziphius.models.presets import derive, get_preset

HEAD_WIDTH = 32
"""Of the attention heads; widths of students are multiples of it."""


def dense_student(teacher: ModelConfig, *, share: float = 1 / 3) -> ModelConfig:
    """Derive the widest dense student that has at most a share of the teacher's parameters.

    It is half as deep as the teacher, because a token takes its time by layers, and wider for it,
    with a feed-forward layer 2.5 times as wide as the trunk and two query heads for each key.
    Embedding and head count on both sides, the teacher's MTP layers do not.

    Args:
        teacher: any language model.
        share: of its parameters, above 0 and at most 1.

    Raises:
        ConfigError: even the narrowest student is larger.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share = {share}: must be above 0 and at most 1.")
    limit = share * count_parameters(teacher).main
    width = HEAD_WIDTH
    while count_parameters(_dense(teacher, width + HEAD_WIDTH)).main <= limit:
        width += HEAD_WIDTH
    student = _dense(teacher, width)
    if (count := count_parameters(student).main) > limit:
        raise ConfigError(
            f"A dense student with the teacher's {teacher.vocab_size} tokens and "
            f"{student.num_hidden_layers} layers has at least {count:,} parameters, and "
            f"{share:.3g} of the teacher's are {int(limit):,}. Allow a larger share."
        )
    return student


def new_student(config: ModelConfig, *, seed: int) -> Model:
    """Make a student with random weights, the same for a seed and a config."""
    model = Model(config)
    model.initialize(seed)
    return model


def _dense(teacher: ModelConfig, width: int) -> ModelConfig:
    heads = width // HEAD_WIDTH
    return derive(
        get_preset("dense-1m"),
        vocab_size=teacher.vocab_size,
        hidden_size=width,
        num_hidden_layers=(teacher.num_hidden_layers + 1) // 2,
        intermediate_size=5 * width // 2,
        max_position_embeddings=teacher.max_position_embeddings,
        bos_token_id=teacher.bos_token_id,
        eos_token_id=teacher.eos_token_id,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2 if heads % 2 == 0 else heads,
        head_dim=HEAD_WIDTH,
    )
