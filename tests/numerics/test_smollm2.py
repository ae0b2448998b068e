"""A real model: SmolLM2-135M-Instruct from its GGUF file, against transformers' loading of it."""

import pytest
import torch

from tests.figures import seen
from ziphius.core.assets import fetch
from ziphius.engine.build import build_engine
from ziphius.engine.config import EngineConfig
from ziphius.engine.sequence import Request
from ziphius.models.presets import get_preset
from ziphius.models.weights import load, read_model_config, save
from ziphius.ops.sampling_config import SamplingConfig
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


def test_the_engine_answers_as_transformers_does(model, theirs, tokenizer):
    """Greedily, in small chunks, beside another prompt; "The capital of France is" is Paris."""
    prompts = [tokenizer.encode(text) for text in (PROMPT, TEXT)]
    engine = build_engine(model, EngineConfig(max_prefill_chunk=4, num_blocks=16))
    answers = generate(engine, prompts)
    assert "Paris" in tokenizer.decode([token_id for token_id, _ in answers[0]])
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = [*prompt, *(token_id for token_id, _ in answer)]
        with torch.inference_mode():
            logits_TW = theirs(torch.tensor([ids])).logits[0, len(prompt) - 1 : -1]
        logprobs_TW = logits_TW.log_softmax(-1)
        assert logits_TW.argmax(-1).tolist() == ids[len(prompt) :]
        found = torch.tensor([logprob for _, logprob in answer])
        wanted = logprobs_TW.gather(-1, torch.tensor(ids[len(prompt) :])[:, None])[:, 0]
        assert seen("log-probabilities of SmolLM2's answers", (found - wanted).abs().max(), 1e-4)


def generate(engine, prompts):
    """Return the greedy tokens behind each prompt, each with its log-probability."""
    greedy = SamplingConfig(temperature=0)
    numbers = [engine.add(Request(ids, 24, sampling=greedy)) for ids in prompts]
    told = {number: [] for number in numbers}
    while engine.has_work:
        for output in engine.step():
            told[output.request_id].append((output.token_id, output.logprob))
    return [told[number] for number in numbers]


def test_it_is_saved_as_safetensors_and_loaded_equal(model, tokenizer, tmp_path):
    save(model, tmp_path / "m", tokenizer, weight_format="float32", max_shard_bytes=200_000_000)
    loaded = load(tmp_path / "m")
    assert loaded.config == model.config
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert Tokenizer.from_folder(tmp_path / "m").encode(TEXT) == tokenizer.encode(TEXT)
