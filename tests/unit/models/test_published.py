import json
import os
from pathlib import Path
from typing import Any

import pytest

from ziphius.core.errors import CheckpointError
from ziphius.models.config import LinearScaling, ModelConfig, YarnScaling
from ziphius.models.presets import PRESETS, derive, get_preset
from ziphius.models.published import FAMILIES, from_published, read_config, to_published

YARN = {
    "type": "yarn",
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": YARN,
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.33.1",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 129280,
}
V2 = {
    **{key: value for key, value in V3.items() if key not in ("num_nextn_predict_layers",)},
    "architectures": ["DeepseekV2ForCausalLM"],
    "aux_loss_alpha": 0.001,
    "seq_aux": True,
    "pretraining_tp": 1,
    "bos_token_id": 100000,
    "eos_token_id": 100001,
    "first_k_dense_replace": 1,
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "model_type": "deepseek_v2",
    "moe_intermediate_size": 1536,
    "n_routed_experts": 160,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 60,
    "rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    "routed_scaling_factor": 16.0,
    "scoring_func": "softmax",
    "topk_group": 3,
    "topk_method": "group_limited_greedy",
    "vocab_size": 102400,
}
V2_LITE = {
    **V2,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 64,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "routed_scaling_factor": 1.0,
    "topk_group": 1,
    "topk_method": "greedy",
}
QWEN = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151646,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.44.0",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "vocab_size": 128256,
}
CODER = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 32013,
    "eos_token_id": 32014,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 5504,
    "max_position_embeddings": 16384,
    "model_type": "llama",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "num_key_value_heads": 16,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"factor": 4.0, "type": "linear"},
    "rope_theta": 100000,
    "tie_word_embeddings": False,
    "vocab_size": 32256,
}
PUBLISHED = {
    "v3": V3,
    "v2": V2,
    "v2-lite": V2_LITE,
    "r1-distill-qwen-7b": QWEN,
    "r1-distill-llama-8b": LLAMA,
    "coder-1.3b": CODER,
}
NOT_WRITTEN = ("auto_map", "quantization_config", "torch_dtype")


def without(config: ModelConfig, *names: str) -> dict[str, Any]:
    return config.model_dump(exclude={"other", *names})


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_config_is_the_preset(name: str) -> None:
    read = from_published(PUBLISHED[name])
    # Said in the presets' docstring, or not in every published copy.
    apart = ("initializer_range", "aux_loss_alpha", "eos_token_id")
    assert without(read, *apart) == without(get_preset(name), *apart)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_config_comes_back_whole(name: str) -> None:
    published = PUBLISHED[name]
    written = json.loads(json.dumps(to_published(from_published(published))))
    kept = {key: value for key, value in published.items() if key not in NOT_WRITTEN}
    assert {key: written[key] for key in kept} == kept
    assert not set(NOT_WRITTEN) & set(written)
    assert "ziphius" not in written


def test_what_only_the_weights_know_can_be_read() -> None:
    other = from_published(V3).other
    assert other["quantization_config"] == V3["quantization_config"]
    assert other["torch_dtype"] == "bfloat16"
    assert "auto_map" not in other


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_comes_back_equal(name: str) -> None:
    written = json.loads(json.dumps(to_published(PRESETS[name])))
    assert from_published(written) == PRESETS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_transformers_reads_what_we_write(name: str) -> None:
    from transformers import AutoConfig

    config = PRESETS[name]
    written = to_published(config)
    theirs = AutoConfig.for_model(**json.loads(json.dumps(written)))
    for key in FAMILIES[config.model_type].keys:
        assert getattr(theirs, key) == written[key], key
    assert theirs.rope_parameters["rope_theta"] == config.rope_theta
    assert theirs.architectures == [FAMILIES[config.model_type].architecture]
    # Theirs holds dozens of keys more; of ours nothing is lost on the way back.
    assert without(from_published(theirs.to_dict() | _ours(written))) == without(config)


def _ours(written: dict[str, Any]) -> dict[str, Any]:
    return {"ziphius": written["ziphius"]} if "ziphius" in written else {}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("DeepseekV3Config", {"num_hidden_layers": 5, "q_lora_rank": None}),
        ("DeepseekV2Config", {"num_hidden_layers": 5, "num_experts_per_tok": 6}),
        ("LlamaConfig", {"num_key_value_heads": 8, "attention_bias": True}),
        ("Qwen2Config", {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}),
        ("Qwen3Config", {"tie_word_embeddings": True, "head_dim": 64}),
        (
            "DeepseekV3Config",
            {"num_hidden_layers": 5, "rope_parameters": {**YARN, "rope_type": "yarn"}},
        ),
    ],
)
def test_transformers_own_configs_are_read(name: str, changes: dict[str, Any]) -> None:
    import transformers

    theirs = getattr(transformers, name)(**changes)
    ours = from_published(theirs.to_dict())
    # They follow from other keys, and would be stale in a changed copy.
    assert not {"head_dim", "qk_head_dim", "layer_types", "architectures"} & set(ours.other)
    null_means = {"n_group": 1, "topk_group": 1}
    shared = [key for key in FAMILIES[ours.model_type].keys if hasattr(theirs, key)]
    assert len(shared) > 12
    for key in shared:
        value = getattr(theirs, key)
        assert getattr(ours, key) == (null_means.get(key) if value is None else value), key
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert (ours.rope_scaling is not None) == ("factor" in theirs.rope_parameters)


def test_rope_is_the_same_in_all_three_spellings() -> None:
    old = from_published(V3)
    renamed = {("rope_type" if k == "type" else k): v for k, v in YARN.items()}
    parameters = {**renamed, "rope_theta": 10000.0}
    plain = {k: v for k, v in V3.items() if k not in ("rope_scaling", "rope_theta")}
    assert from_published({**V3, "rope_scaling": renamed}) == old
    assert from_published({**plain, "rope_parameters": parameters}) == old
    assert from_published({**V3, "rope_parameters": parameters}) == old
    assert isinstance(old.rope_scaling, YarnScaling)
    assert isinstance(from_published(CODER).rope_scaling, LinearScaling)
    none = {**V3, "rope_scaling": {"rope_type": "default", "partial_rotary_factor": 1.0}}
    assert from_published(none).rope_scaling is None


def test_mscale_alone_at_its_default_is_no_mscale() -> None:
    alone = {**YARN, "mscale_all_dim": 0}
    scaling = from_published({**V3, "rope_scaling": alone}).rope_scaling
    assert isinstance(scaling, YarnScaling)
    assert (scaling.mscale, scaling.mscale_all_dim) == (None, None)


def test_a_missing_key_means_what_the_family_says() -> None:
    small = {k: v for k, v in V3.items() if k not in ("scoring_func", "topk_method", "n_group")}
    read = from_published({**small, "num_nextn_predict_layers": None})
    assert (read.scoring_func, read.topk_method, read.n_group) == ("sigmoid", "noaux_tc", 8)
    assert read.num_nextn_predict_layers == 0
    assert from_published({**CODER, "num_key_value_heads": None}).num_key_value_heads == 16
    assert from_published(QWEN).head_dim == 128
    assert from_published({**QWEN, "model_type": "qwen3", "architectures": None}).head_dim == 128
    assert from_published({**QWEN, "hidden_size": 28 * 64}).head_dim == 64


def test_other_names_of_a_key_are_known() -> None:
    renamed = {k: v for k, v in V3.items() if k != "num_nextn_predict_layers"}
    assert from_published({**renamed, "num_mtp_layers": 2}).num_nextn_predict_layers == 2
    with pytest.raises(CheckpointError, match=r"num_mtp_layers = 2 .* disagree"):
        from_published({**V3, "num_mtp_layers": 2})


V3_OF_ONES_OWN = {"topk_method": "topk", "scoring_func": "softmax", "norm_topk_prob": False}


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("v3-tiny", V3_OF_ONES_OWN | {"n_group": 1, "topk_group": 1}),
        ("v3-tiny", {"pattern": "sliding_window", "sliding_window": 8}),
        ("r1-distill-llama-tiny", {"qk_norm": True}),
    ],
)
def test_what_others_would_misread_has_a_name_that_they_refuse(
    preset: str, changes: dict[str, Any]
) -> None:
    from transformers import AutoConfig

    config = derive(get_preset(preset), **changes)
    written = json.loads(json.dumps(to_published(config)))
    assert (written["model_type"], written["architectures"]) == ("ziphius", ["ZiphiusForCausalLM"])
    assert written["ziphius"]["model_type"] == config.model_type
    with pytest.raises(ValueError, match="ziphius"):
        AutoConfig.for_model(**written)
    assert from_published(written) == config


def test_what_others_may_ignore_keeps_its_name() -> None:
    config = derive(get_preset("v3-tiny"), capacity_factor=1.5)
    written = to_published(config)
    assert written["model_type"] == "deepseek_v3"
    assert from_published(written) == config


@pytest.mark.parametrize("own", [None, {}, {"model_type": "gpt2"}, {"model_type": "ziphius"}])
def test_a_name_of_ours_without_a_family_is_refused(own: object) -> None:
    data = to_published(get_preset("v3-tiny")) | {"model_type": "ziphius", "ziphius": own}
    with pytest.raises(CheckpointError, match=r"model_type '?(ziphius|None|gpt2)'? is not known"):
        from_published(data)


def test_own_fields_stand_apart_and_come_back() -> None:
    own = derive(
        get_preset("v2-tiny"),
        pattern="sliding_window",
        sliding_window=8,
        attention_sinks=2,
        num_nextn_predict_layers=1,
    )
    written = to_published(own)
    assert written["ziphius"] == {
        "pattern": "sliding_window",
        "sliding_window": 8,
        "attention_sinks": 2,
        "device_loss_alpha": 0.05,
        "communication_loss_alpha": 0.02,
        "num_nextn_predict_layers": 1,
        "model_type": "deepseek_v2",
    }
    assert from_published(written) == own


def test_a_latent_model_without_experts_is_written_as_dense_for_others() -> None:
    names = [name for name in V3 if name in FAMILIES["deepseek_v3"].keys and "expert" not in name]
    dense = from_published({**{k: V3[k] for k in names}, **_dense_identity()})
    written = to_published(dense)
    assert dense.n_routed_experts == 0
    assert (written["n_routed_experts"], written["first_k_dense_replace"]) == (0, 61)
    assert from_published(written) == dense


def _dense_identity() -> dict[str, Any]:
    return {"model_type": "deepseek_v3", "n_routed_experts": None, "rope_theta": 10000}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "deepseek_v32"}, ["'deepseek_v32'", "deepseek_v2, deepseek_v3, llama"]),
        ({"model_type": None}, ["model_type None"]),
        ({"model_type": ["llama"]}, ["model_type ['llama']"]),
        ({"architectures": ["LlamaForCausalLM"]}, ["LlamaForCausalLM", "DeepseekV3ForCausalLM"]),
        ({"hidden_size": "7168"}, ["hidden_size", "'7168'"]),
        ({"hidden_size": 7168.0}, ["hidden_size", "7168.0"]),
        ({"hidden_size": True}, ["hidden_size", "True"]),
        ({"hidden_size": -1}, ["hidden_size", "-1"]),
        ({"hidden_size": None}, ["hidden_size"]),
        ({"num_hidden_layers": 10**6}, ["num_hidden_layers", "1000000"]),
        ({"num_hidden_layers": 10**400}, ["num_hidden_layers"]),
        ({"rms_norm_eps": 10**400}, ["rms_norm_eps"]),
        ({"rms_norm_eps": float("nan")}, ["not finite"]),
        ({"remark": float("inf")}, ["not finite"]),
        ({"tie_word_embeddings": "false"}, ["tie_word_embeddings"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu"]),
        ({"attention_dropout": 0.1}, ["attention_dropout = 0.1"]),
        ({"rope_interleave": False}, ["rope_interleave = False"]),
        ({"n_group": 7}, ["n_group = 7"]),
        ({"rope_scaling": "yarn"}, ["rope_scaling", "'yarn'"]),
        ({"rope_scaling": {**YARN, "type": "longrope"}}, ["longrope", "yarn, linear, llama3"]),
        ({"rope_scaling": {**YARN, "rope_type": "linear"}}, ["'yarn', 'linear'"]),
        ({"rope_scaling": {**YARN, "truncate": None}}, ["rope_scaling", "truncate"]),
        ({"rope_scaling": {**YARN, "attention": 2.0}}, ["rope_scaling", "attention"]),
        ({"rope_scaling": {**YARN, "factor": None}}, ["factor"]),
        ({"rope_scaling": {**YARN, "mscale_all_dim": None, "mscale": 0.7}}, ["mscale = 0.7"]),
        ({"rope_scaling": {"type": "default", "factor": 2}}, ["type default has factor"]),
        ({"rope_parameters": {"rope_type": "default"}}, ["rope_scaling and rope_parameters"]),
        ({"rope_parameters": {**YARN, "rope_theta": 5.0}}, ["rope_theta = 10000 and 5.0"]),
        ({"ziphius": 3}, ["ziphius is 3"]),
        ({"ziphius": {"hidden_size": 3}}, ["ziphius.hidden_size"]),
        ({"ziphius": {"sinks": 3}}, ["ziphius.sinks"]),
    ],
)
def test_a_bad_value_is_named(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(CheckpointError) as caught:
        from_published({**V3, **changes})
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("key", ["q_lora_rank", "n_routed_experts"])
def test_absent_and_null_differ_where_the_default_is_a_number(key: str) -> None:
    with pytest.raises(CheckpointError, match=f"{key} is missing"):
        from_published({k: v for k, v in V3.items() if k != key})


def test_a_sliding_window_of_qwen_is_refused() -> None:
    assert from_published(QWEN).pattern == "causal"
    with pytest.raises(CheckpointError, match="use_sliding_window = True is not supported"):
        from_published({**QWEN, "use_sliding_window": True})
    with pytest.raises(CheckpointError, match="layer_types"):
        from_published({**QWEN, "layer_types": ["sliding_attention"] * 28})


def test_a_head_width_that_does_not_divide_is_named() -> None:
    with pytest.raises(CheckpointError, match="head_dim is missing, and hidden_size = 3585"):
        from_published({**QWEN, "hidden_size": 3585})


def test_config_is_read_from_folder_or_file(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(V3))
    assert read_config(tmp_path) == read_config(file) == from_published(V3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"model_type": ', "not valid JSON"),
        (b"[1, 2]", "JSON list, not an object"),
        (b'{"a": NaN}', "holds NaN"),
        (b'{"a": Infinity}', "holds Infinity"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1, "a": 2}', "lists a twice"),
        (b'{"a": "\\ud800"}', "half of a UTF-16 pair under a"),
        (b'{"a": ' + b"1" * 5_000 + b"}", "not valid JSON"),
        (b'{"a": "' + b"x" * 1024 * 1024 + b'"}', "at most 1,048,576 are read"),
        (b'{"model_type": "gpt2"}', "model_type 'gpt2' is not known"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_config(tmp_path)
    assert words in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_file_that_is_missing_or_a_pipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        read_config(tmp_path)
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_config(tmp_path)


def test_the_folder_of_a_run_says_where_its_models_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"settings": {}}')
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match=r"folder of a run: give one of the models in .*/ch"):
        read_config(tmp_path)


def test_a_folder_of_adapters_says_that_it_is_one(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds adapters and no model"):
        read_config(tmp_path)
