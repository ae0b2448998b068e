"""`engine/load.py`: folders, presets, and what is refused."""

import pytest
import torch

from ziphius.core import memory
from ziphius.core.errors import ConfigError, DeviceError
from ziphius.core.memory import free_bytes
from ziphius.engine import load as load_module
from ziphius.engine.load import load_for_inference, load_preset
from ziphius.models.offload import expert_cache
from ziphius.models.weights import save
from ziphius.text.chat import CHAT_FORMATS

CPU = torch.device("cpu")


def test_a_preset_gets_random_weights_that_depend_on_the_seed_alone():
    model, tokenizer, is_random = load_for_inference("v3-tiny", device="cpu")
    assert is_random
    assert not model.training
    assert tokenizer.vocab_size == model.config.vocab_size == 512
    weight = model.lm_head.weight
    assert torch.equal(weight, load_preset("v3-tiny", device=CPU).model.lm_head.weight)
    other = load_preset("v3-tiny", device=CPU, seed=1).model.lm_head.weight
    assert not torch.equal(weight, other)


def test_dtype_casts_the_weights_but_not_the_router_bias():
    model = load_for_inference("v3-tiny", device="cpu", dtype="bfloat16").model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}
    tied = load_preset("qwen3-tiny", device=CPU, dtype=torch.bfloat16).model
    assert tied.lm_head.weight is tied.model.embed_tokens.weight


def test_a_folder_comes_back_as_saved_and_before_a_preset_of_its_name(tmp_path, monkeypatch):
    loaded = load_preset("v3-tiny", device=CPU, seed=5)
    save(loaded.model, tmp_path / "v3-tiny", loaded.tokenizer, weight_format="float32")
    monkeypatch.chdir(tmp_path)
    model, tokenizer, is_random = load_for_inference("v3-tiny", device="cpu")
    assert not is_random
    assert torch.equal(model.lm_head.weight, loaded.model.lm_head.weight)
    assert tokenizer.encode("Ziphius") == loaded.tokenizer.encode("Ziphius")


def test_an_unknown_name_lists_the_presets():
    with pytest.raises(ConfigError) as error:
        load_for_inference("v4")
    assert all(word in str(error.value) for word in ("'v4'", "no such folder", "v3-tiny", "v2"))


def test_a_preset_too_large_for_the_memory_is_refused_with_its_bytes():
    with pytest.raises(DeviceError) as error:
        load_for_inference("v3", device="cpu")
    parameters = 671_026_404_352 + 11_610_067_968
    assert f"the {parameters:,} random weights of v3 in float32" in str(error.value)
    assert f"takes {4 * parameters / 1e9:,.1f} GB" in str(error.value)


def test_the_limit_is_the_memory_that_is_free(monkeypatch):
    needed = 4 * (194_688 + 52_608)
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed)
    load_preset("v3-tiny", device=CPU)
    monkeypatch.setattr(memory, "free_bytes", lambda device: needed - 1)
    with pytest.raises(DeviceError, match="v3-tiny"):
        load_preset("v3-tiny", device=CPU)


def test_free_memory_is_less_than_all_of_it():
    free = free_bytes(CPU)
    assert free is None or 2**20 < free < 2**50


def test_a_larger_vocabulary_than_deepseeks_gets_all_of_it(monkeypatch):
    sizes = []
    whole = load_module.deepseek_tokenizer

    def spy(vocab_size):
        sizes.append(vocab_size)
        return whole(512)

    monkeypatch.setattr(load_module, "deepseek_tokenizer", spy)
    large = load_module.get_preset("coder-tiny").model_copy(update={"vocab_size": 129_280})
    monkeypatch.setitem(load_module.PRESETS, "large", large)
    load_preset("large", device=CPU)
    load_preset("coder-tiny", device=CPU)
    assert sizes == [None, 512]


def test_drop_mtp_has_no_effect_on_a_preset_and_says_so():
    with pytest.raises(ConfigError, match="drop_mtp has no effect"):
        load_for_inference("v3-tiny", drop_mtp=True)


@pytest.mark.parametrize(
    ("preset", "chat_format"),
    [
        ("v2-tiny", "deepseek-v2"),
        ("v2.5", "deepseek-v3"),
        ("coder-v2", "deepseek-v2"),
        ("coder-tiny", "deepseek-coder"),
        ("v3.1", "deepseek-v3.1"),
        ("v3-tiny", "deepseek-r1"),
        ("r1-distill-qwen-tiny", "deepseek-r1"),
        ("r1-distill-llama-tiny", "deepseek-r1"),
    ],
)
def test_a_preset_speaks_as_its_published_model_does(monkeypatch, preset, chat_format):
    monkeypatch.setitem(load_module.PRESETS, preset, load_module.get_preset("v3-tiny"))
    assert load_preset(preset, device=CPU).tokenizer.chat_format == chat_format


def test_the_table_of_chat_formats_names_formats_and_presets():
    for beginning, name in load_module.CHAT_FORMAT_OF_PRESETS.items():
        assert name in CHAT_FORMATS
        assert any(preset.startswith(beginning) for preset in load_module.PRESETS)


def test_experts_can_stay_in_a_folder_but_a_preset_has_none(tmp_path):
    loaded = load_preset("v3-tiny", device=CPU)
    save(loaded.model, tmp_path / "model", loaded.tokenizer, weight_format="float32")
    model = load_for_inference(str(tmp_path / "model"), device="cpu", expert_cache=10**6).model
    assert expert_cache(model) is not None
    with pytest.raises(ConfigError, match="expert_cache has no effect"):
        load_for_inference("v3-tiny", expert_cache=10**6)
