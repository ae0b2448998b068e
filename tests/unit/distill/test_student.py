"""`distill/student.py`: as wide as its share allows, with the teacher's tokens and context."""

import pytest
import torch

from ziphius.core.errors import ConfigError
from ziphius.distill.student import dense_student, new_student
from ziphius.models.cost import count_parameters
from ziphius.models.presets import derive, get_preset


@pytest.mark.parametrize("name", ["v3-1m", "v3-3m", "bench-v3", "dense-3m"])
@pytest.mark.parametrize("share", [0.2, 1 / 3])
def test_a_student_fills_its_share(name: str, share: float) -> None:
    teacher = derive(get_preset(name), vocab_size=512)
    student = dense_student(teacher, share=share)
    limit = share * count_parameters(teacher).main
    assert 0.5 * limit < count_parameters(student).main <= limit
    assert student.model_type == "llama"
    assert not student.n_routed_experts
    for same in ("vocab_size", "max_position_embeddings", "bos_token_id"):
        assert getattr(student, same) == getattr(teacher, same)


def test_the_weights_hang_on_the_seed() -> None:
    config = dense_student(derive(get_preset("v3-tiny"), vocab_size=128), share=1.0)
    first, again, other = (new_student(config, seed=seed) for seed in (0, 0, 1))
    assert count_parameters(config).main == sum(p.numel() for p in first.parameters())
    embeddings = [model.model.embed_tokens.weight for model in (first, again, other)]
    assert torch.equal(embeddings[0], embeddings[1])
    assert not torch.equal(embeddings[0], embeddings[2])


@pytest.mark.parametrize(
    ("share", "message"), [(0.01, "Allow a larger share"), (0.0, "above 0"), (1.5, "at most 1")]
)
def test_impossible_shares_are_refused(share: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dense_student(get_preset("v3-tiny"), share=share)
