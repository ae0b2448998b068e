"""What the published folders of DeepSeek's own students say: values of their config files.

R1-Distill (January 2025) and R1-0528-Qwen3-8B (May 2025), on Hugging Face under deepseek-ai.
"""

from typing import Any

_QWEN2: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 131072,
    "model_type": "qwen2",
    "num_hidden_layers": 28,
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
_QWEN2_LARGE: dict[str, Any] = {
    **{key: value for key, value in _QWEN2.items() if key != "use_mrope"},
    "hidden_size": 5120,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "transformers_version": "4.43.1",
}
_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
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
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "r1-distill-qwen-1.5b": {
        **_QWEN2,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "max_window_layers": 21,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
    },
    "r1-distill-qwen-7b": {
        **_QWEN2,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "max_window_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "r1-distill-qwen-14b": {
        **_QWEN2_LARGE,
        "intermediate_size": 13824,
        "max_window_layers": 48,
        "num_hidden_layers": 48,
    },
    "r1-distill-qwen-32b": {
        **_QWEN2_LARGE,
        "intermediate_size": 27648,
        "max_window_layers": 64,
        "num_hidden_layers": 64,
    },
    "r1-distill-llama-8b": {
        **_LLAMA,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
    },
    "r1-distill-llama-70b": {
        **_LLAMA,
        "head_dim": 128,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_attention_heads": 64,
        "num_hidden_layers": 80,
    },
    "r1-0528-qwen3-8b": {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 12288,
        "max_position_embeddings": 131072,
        "max_window_layers": 36,
        "model_type": "qwen3",
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "attn_factor": 0.8782488562869419,
            "factor": 4.0,
            "original_max_position_embeddings": 32768,
            "rope_type": "yarn",
        },
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
}
"""config.json by the name of the model."""

PARAMETERS = {
    "r1-distill-qwen-1.5b": 1_777_088_000,
    "r1-distill-qwen-7b": 7_615_616_512,
    "r1-distill-qwen-14b": 14_770_033_664,
    "r1-distill-qwen-32b": 32_763_876_352,
    "r1-distill-llama-8b": 8_030_261_248,
    "r1-distill-llama-70b": 70_553_706_496,
    "r1-0528-qwen3-8b": 8_190_735_360,
}
"""As Hugging Face counts them in the files."""

GENERATION: dict[str, dict[str, Any]] = {
    name: {
        "_from_model_config": True,
        "bos_token_id": bos,
        "do_sample": True,
        "eos_token_id": CONFIGS[name]["eos_token_id"],
        "temperature": 0.6,
        "top_p": 0.95,
    }
    for name, bos in {
        **{name: 151646 for name in CONFIGS if "qwen-" in name},
        **{name: 128000 for name in CONFIGS if "llama-" in name},
        "r1-0528-qwen3-8b": 151643,
    }.items()
}
"""generation_config.json; the beginning of a text is another token than config.json says."""

TOKENIZER: dict[str, Any] = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": {"__type": "AddedToken", "content": "<\uff5cbegin\u2581of\u2581sentence\uff5c>"},
    "clean_up_tokenization_spaces": False,
    "eos_token": {"__type": "AddedToken", "content": "<\uff5cend\u2581of\u2581sentence\uff5c>"},
    "legacy": True,
    "model_max_length": 16384,
    "pad_token": {"__type": "AddedToken", "content": "<\uff5cend\u2581of\u2581sentence\uff5c>"},
    "sp_model_kwargs": {},
    "tokenizer_class": "LlamaTokenizerFast",
    "unk_token": None,
    "use_default_system_prompt": False,
}
"""tokenizer_config.json of all of them, without the template."""
