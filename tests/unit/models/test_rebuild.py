"""Trained weights in a model of another config."""

from pathlib import Path

import pytest
import torch

from tests.tiny import V3_EXPERTS, build, grouped_config, latent_config, random_ids
from ziphius.core.errors import ConfigError
from ziphius.models.config import ModelConfig
from ziphius.models.rebuild import rebuilt, resize_embeddings
from ziphius.models.weights import load, save

CONFIGS = [
    latent_config(**V3_EXPERTS, num_nextn_predict_layers=1),
    grouped_config(tie_word_embeddings=True),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["latent", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_rows_are_means_and_old_ones_stay(
    config: ModelConfig, dtype: torch.dtype, tmp_path: Path
) -> None:
    before, model = build(config).to(dtype), build(config).to(dtype)
    wider = resize_embeddings(model, 64)
    assert wider.config.vocab_size == 64
    for name, tensor in before.state_dict().items():
        after = wider.state_dict()[name]
        assert after.dtype == tensor.dtype
        assert torch.equal(after[: len(tensor)], tensor), name
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            mean = tensor.double().mean(dim=0)
            assert after.shape == (64, tensor.shape[1])
            assert torch.allclose(after[61:].double(), mean.expand(3, -1), rtol=0, atol=5e-3)
            assert torch.equal(after[61], after[63])
    assert (wider.head.weight is wider.model.embed_tokens.weight) == config.tie_word_embeddings
    ids_BT = random_ids(2, 7, 61)
    with torch.no_grad():
        logits, old = (m.logits(m(ids_BT).hidden_BTD) for m in (wider, before))
    assert torch.equal(logits[..., :61], old)
    save(wider, tmp_path / "wider")
    again = load(tmp_path / "wider")
    assert again.config.vocab_size == 64
    assert torch.equal(again.model.embed_tokens.weight, wider.model.embed_tokens.weight)


def test_a_model_with_rows_enough_is_not_resized() -> None:
    with pytest.raises(ConfigError, match="resize_embeddings has no effect: the tokenizer has 61"):
        resize_embeddings(build(CONFIGS[1]), 61)


def test_nothing_is_copied_into_another_config() -> None:
    model = build(CONFIGS[0])
    model.model.embed_tokens.weight.requires_grad_(False)
    places = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    config = ModelConfig.model_validate(
        model.config.model_dump() | {"max_position_embeddings": 4_096}
    )
    longer = rebuilt(model, config)
    assert {name: tensor.data_ptr() for name, tensor in longer.state_dict().items()} == places
    assert not longer.model.embed_tokens.weight.requires_grad
    assert longer.lm_head.weight.requires_grad
