"""A real model: SmolLM2-135M-Instruct from its GGUF file, against transformers' loading of it."""

import pytest
import torch

from tests.figures import seen
from ziphius.core.assets import fetch
from ziphius.models.presets import get_preset
from ziphius.models.sequences import Sequences
from ziphius.models.weights import load, read_model_config, save
from ziphius.text.tokenizer import Tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.net("smollm2-135m-instruct")]

PROMPT = "The capital of France is"
TEXT = "The whale dives to two thousand metres and holds its breath for more than an hour."

# Logits reach 34 here, and their rounding in float32 grows with them: 5.3e-5, or 1.6e-6 of 34.
RELATIVE_TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def file():
    return fetch("smollm2-135m-instruct")


@pytest.fixture(scope="module")
def tokenizer(file):
    return Tokenizer.from_gguf(file)


@pytest.fixture(scope="module")
def model(file):
    return load(file, check_finite=True)


@pytest.fixture(scope="module")
def theirs(file):
    """The slow part: transformers decodes the file in about 20 seconds."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.float32,
        attn_implementation="eager",
        local_files_only=True,
    ).eval()


def logits_of(model, ids_BT):
    with torch.inference_mode():
        return model.logits(model(ids_BT).hidden_BTD)


def test_it_has_the_published_number_of_parameters(model, file):
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config == read_model_config(file)
    assert model.config == get_preset("smollm2-135m")


def test_weights_and_logits_equal_those_of_transformers(model, theirs, tokenizer):
    state, expected = model.state_dict(), theirs.state_dict()
    assert state.keys() == expected.keys()
    different = [name for name in state if not torch.equal(state[name], expected[name])]
    assert different == []
    ids_BT = torch.tensor([tokenizer.encode(TEXT)])
    with torch.inference_mode():
        expected_BTW = theirs(ids_BT).logits
    difference = (logits_of(model, ids_BT) - expected_BTW).abs().max() / expected_BTW.abs().max()
    assert seen("logits of SmolLM2, of the largest", difference, RELATIVE_TOLERANCE)


def test_it_knows_the_capital_of_france(model, tokenizer):
    ids = tokenizer.encode(PROMPT)
    sequences = Sequences(model, 1, len(ids) + 8)
    new_BT = torch.tensor([ids])
    answer = []
    with torch.inference_mode():
        for _ in range(8):
            hidden_1D = model(sequences.rows(new_BT)).wanted_LD
            new_BT = model.logits(hidden_1D).argmax(-1, keepdim=True)
            answer.append(int(new_BT))
    assert "Paris" in tokenizer.decode(answer)


def test_it_is_saved_as_safetensors_and_loaded_equal(model, tokenizer, tmp_path):
    save(model, tmp_path / "m", tokenizer, weight_format="float32", max_shard_bytes=200_000_000)
    loaded = load(tmp_path / "m")
    assert loaded.config == model.config
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert Tokenizer.from_folder(tmp_path / "m").encode(TEXT) == tokenizer.encode(TEXT)
