"""The counts of `models/adapter_cost.py` against adapters that are there."""

import pytest
import torch

from tests.tiny import V3_EXPERTS, grouped_config, latent_config
from ziphius.models.adapter_cost import adapter_memory
from ziphius.models.config import ModelConfig
from ziphius.models.lora import adapter_tensors, add_adapters
from ziphius.models.lora_config import LoraConfig
from ziphius.models.model import Model
from ziphius.models.weights.names import model_tensors

CONFIGS = {
    "v3 with an MTP layer": latent_config(**V3_EXPERTS, num_nextn_predict_layers=1),
    "no shared experts": latent_config(**(V3_EXPERTS | {"n_shared_experts": 0})),
    "direct queries": latent_config(q_lora_rank=None),
    "grouped": grouped_config(qkv_bias=True),
    "tied": grouped_config(tie_word_embeddings=True),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_frozen_weights_and_adapters_are_counted_exactly(config: ModelConfig, dtype: str) -> None:
    with torch.device("meta"):
        model = Model(config)
    frozen = sum(
        tensor.numel() * (4 if name.endswith("_bias") and "mlp.gate" in name else 2 * wide)
        for wide in (1 + (dtype == "float32"),)
        for name, tensor in model_tensors(model).items()
    )
    add_adapters(model, LoraConfig(rank=3), seed=0)
    adapters = sum(tensor.numel() for tensor in adapter_tensors(model).values())
    memory = adapter_memory(config, tokens=8, dtype=dtype, rank=3)
    assert memory.parameters == adapters
    assert memory.adapters == 16 * adapters
    assert memory.frozen == frozen
    assert memory.train == sum((memory.frozen, memory.adapters, memory.activations, memory.runtime))
