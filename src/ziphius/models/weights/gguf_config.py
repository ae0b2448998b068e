"""From the metadata of a GGUF file to a `ModelConfig`: architectures llama, qwen2 and qwen3.

llama.cpp's keys begin with the name of the architecture ("llama.block_count"). A key that is not in
the lists below may change the computation, so it is refused instead of ignored.
"""

from typing import Any, NoReturn

import numpy as np
from pydantic import ValidationError
from torch import Tensor

from ziphius.core.config import explain
from ziphius.core.errors import CheckpointError
from ziphius.core.gguf_header import GgufHeader, Value
from ziphius.models.config import LinearScaling, Llama3Scaling, ModelConfig, RopeScaling
from ziphius.models.rope import rope_frequencies

ARCHITECTURES: dict[str, dict[str, bool]] = {
    "llama": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
}
"""Architectures that are read, and what each implies; their names are model types too."""

FREQUENCY_FACTORS = "rope_freqs.weight"

_SIZES: dict[str, str] = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
    "attention.head_count": "num_attention_heads",
}
_TOKENS: dict[str, str] = {
    "tokenizer.ggml.bos_token_id": "bos_token_id",
    "tokenizer.ggml.eos_token_id": "eos_token_id",
    "tokenizer.ggml.padding_token_id": "pad_token_id",
}
_READ = (
    *_SIZES,
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
    "attention.key_length",
    "attention.value_length",
    "rope.freq_base",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "vocab_size",
)
# They change nothing at these values, or say something about the past of the model only.
_IGNORED: dict[str, tuple[Value, ...] | None] = {
    "rope.scaling.finetuned": None,
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
}

# Llama 3.1's constants; only the factor differs between its releases.
_LLAMA3_BAND = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3_CONTEXT = 8192


def gguf_config(header: GgufHeader, factors_r: Tensor | None) -> ModelConfig:
    """Translate the metadata.

    Args:
        header: of the file.
        factors_r: content of the tensor `rope_freqs.weight`, if the file has it: what each rotary
            frequency is divided by. It is how llama.cpp writes Llama 3.1's scaling.
    """
    name = header.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        _refuse(header, f"has the architecture {name!r}; known are {', '.join(ARCHITECTURES)}")
    _check_keys(header, name)
    try:
        fields = _fields(header, name, factors_r)
        return ModelConfig(model_type=name, attention="gqa", **ARCHITECTURES[name], **fields)
    except ValidationError as error:
        _refuse(header, f"describes a model that cannot be: {explain(error)}")


def _fields(header: GgufHeader, name: str, factors_r: Tensor | None) -> dict[str, Any]:
    fields: dict[str, Any] = {
        field: _number(header, f"{name}.{key}") for key, field in _SIZES.items()
    }
    heads = fields["num_attention_heads"]
    fields["num_key_value_heads"] = _number(header, f"{name}.attention.head_count_kv", heads)
    fields["head_dim"] = _head_dim(header, name, fields["hidden_size"], heads)
    fields["rms_norm_eps"] = _number(header, f"{name}.attention.layer_norm_rms_epsilon")
    fields["rope_theta"] = _number(header, f"{name}.rope.freq_base", 10_000.0)
    fields["rope_scaling"] = _scaling(header, name, fields, factors_r)
    fields |= {
        field: _number(header, key) for key, field in _TOKENS.items() if key in header.metadata
    }
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        _refuse(header, "lacks the tensor token_embd.weight")
    fields["vocab_size"] = embedding.shape[0]
    fields["tie_word_embeddings"] = "output.weight" not in header.tensors
    fields["attention_bias"] = name == "llama" and "blk.0.attn_output.bias" in header.tensors
    return fields


def _check_keys(header: GgufHeader, name: str) -> None:
    for key, value in header.metadata.items():
        own = key.removeprefix(f"{name}.")
        if own == key or own in _READ:
            continue
        harmless = _IGNORED.get(own, ())
        if harmless is not None and value not in harmless:
            _refuse(header, f"sets {key} = {value}, which this code does not compute")


def _number(header: GgufHeader, key: str, default: float | None = None) -> int | float:
    value = header.metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        problem = "lacks the metadata" if key not in header.metadata else f"has {value!r} as"
        _refuse(header, f"{problem} {key}, which has to be one number for all layers")
    # Metadata is float32: 1e-5 reads as 9.99999975e-06. The shortest decimal is what was meant.
    return value if isinstance(value, int) else float(str(np.float32(value)))


def _head_dim(header: GgufHeader, name: str, hidden_size: float, heads: float) -> int | float:
    width = _number(header, f"{name}.attention.key_length", hidden_size // max(heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        other = _number(header, f"{name}.{key}", width)
        if other != width:
            _refuse(header, f"has {name}.{key} = {other}; only the width of a head, {width}, works")
    return width


def _scaling(
    header: GgufHeader, name: str, fields: dict[str, Any], factors_r: Tensor | None
) -> RopeScaling | None:
    kind = header.metadata.get(f"{name}.rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        _refuse(header, f"has {name}.rope.scaling.type {kind!r}; known are none and linear")
    linear = None
    if kind == "linear":
        linear = LinearScaling(factor=_number(header, f"{name}.rope.scaling.factor"))
    if factors_r is None or bool((factors_r == 1).all()):
        return linear
    if linear is not None:
        _refuse(header, f"has both linear scaling and {FREQUENCY_FACTORS}")
    width, theta = fields["head_dim"], fields["rope_theta"]
    if theta <= 1 or factors_r.shape != (width // 2,):  # before anything of that size is made
        _refuse(header, f"has {tuple(factors_r.shape)} {FREQUENCY_FACTORS} for heads of {width}")
    plain_r = rope_frequencies(width, theta, None)
    # Converted files of Llama 3.1 say nothing of the context, or something llama.cpp never looks
    # at: the factors decide.
    key = f"{name}.rope.scaling.original_context_length"
    for context in dict.fromkeys((_number(header, key, _LLAMA3_CONTEXT), _LLAMA3_CONTEXT)):
        scaling = Llama3Scaling(
            factor=round(factors_r.max().item(), 3),
            original_max_position_embeddings=int(context),
            **_LLAMA3_BAND,
        )
        expected_r = plain_r / rope_frequencies(width, theta, scaling)
        if factors_r.allclose(expected_r, rtol=1e-4):
            return scaling
    _refuse(header, f"has factors in {FREQUENCY_FACTORS} that are not Llama 3.1's")


def _refuse(header: GgufHeader, reason: str) -> NoReturn:
    raise CheckpointError(f"{header.file} {reason}.")
