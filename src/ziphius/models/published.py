"""config.json of Hugging Face checkpoints, in and out: DeepSeek-V2 and V3, Llama, Qwen2 and Qwen3.

`FAMILIES` says per `model_type` which of our fields the file carries, what a missing key means (as
in transformers 5.23), and what the family implies without saying so. The rules for all of them:

1. Keys this code does not know are kept in `ModelConfig.other` and written back unchanged.
2. `quantization_config`, `torch_dtype` and `dtype` describe stored weights: they are readable in
   `other`, and `to_published` leaves them out, because only the writer of the weights knows them.
3. `auto_map` points at code to run; it is dropped, as are values that follow from other keys.
4. Our own fields that differ from what the family implies are kept under the key "ziphius", which
   other programs ignore. Where they would compute something else for it, or where the gate is none
   of the family's, `model_type` is "ziphius" too, which they refuse; the family is under the key.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ziphius.core.config import explain
from ziphius.core.errors import CheckpointError
from ziphius.core.reading import file_inside, read_object
from ziphius.models.config import ModelConfig

MAX_FILE_BYTES = 1024 * 1024

_COMMON_KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "initializer_range",
    "hidden_act",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "num_attention_heads",
    "num_key_value_heads",
)
_LATENT_KEYS = (
    "attention_bias",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
)
_EXPERT_KEYS = (
    "n_routed_experts",
    "n_shared_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "first_k_dense_replace",
    "moe_layer_freq",
    "topk_method",
    "scoring_func",
    "n_group",
    "topk_group",
    "norm_topk_prob",
    "routed_scaling_factor",
    "aux_loss_alpha",
    "seq_aux",
)

# Keys of which this code runs one value; another one would silently be a different model.
_ONLY: dict[str, Any] = {
    "attention_dropout": 0,
    "mlp_bias": False,
    "partial_rotary_factor": 1,
    "rope_interleave": True,
    "use_sliding_window": False,
}
_ROPE_KINDS = ("default", "yarn", "linear", "llama3")
_TRAINED_CONTEXT = "original_max_position_embeddings"
_FROM_TRAINED_CONTEXT = ("yarn", "llama3")
_DERIVED = ("architectures", "auto_map", "qk_head_dim", "layer_types")
_WRITTEN_WITH_THE_WEIGHTS = ("quantization_config", "torch_dtype", "dtype")
_ROPE_KEYS = ("rope_theta", "rope_scaling")
# Others may ignore these: they change how a model is trained, or what it tells beside its logits.
_WITHOUT_EFFECT_ELSEWHERE = (
    "device_loss_alpha",
    "communication_loss_alpha",
    "capacity_factor",
    "num_nextn_predict_layers",
)

OWN_TYPE, OWN_ARCHITECTURE = "ziphius", "ZiphiusForCausalLM"
"""What a folder calls itself that only this package computes right."""
_OWN_KEY = "ziphius"


@dataclass(frozen=True)
class Family:
    """What the config.json of one `model_type` says, and what it leaves unsaid."""

    architecture: str
    keys: tuple[str, ...]
    implied: Mapping[str, Any]
    missing: Mapping[str, Any] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    gates: tuple[str, ...] = ()
    """Values of topk_method that other programs compute in this family."""


FAMILIES: dict[str, Family] = {
    "deepseek_v2": Family(
        architecture="DeepseekV2ForCausalLM",
        keys=(*_COMMON_KEYS, *_LATENT_KEYS, *_EXPERT_KEYS),
        implied={"attention": "mla"},
        missing={"max_position_embeddings": 2048},
        # Absent, they mean 1536 and 64 in transformers; null means none. Too far apart to guess.
        required=("q_lora_rank", "n_routed_experts"),
        aliases={"num_experts": "n_routed_experts"},
        gates=("greedy", "group_limited_greedy"),
    ),
    "deepseek_v3": Family(
        architecture="DeepseekV3ForCausalLM",
        keys=(*_COMMON_KEYS, *_LATENT_KEYS, *_EXPERT_KEYS, "num_nextn_predict_layers"),
        implied={"attention": "mla"},
        missing={
            "max_position_embeddings": 4096,
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "n_group": 8,
            "topk_group": 4,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "first_k_dense_replace": 3,
        },
        required=("q_lora_rank", "n_routed_experts"),
        aliases={
            "num_local_experts": "n_routed_experts",
            "num_mtp_layers": "num_nextn_predict_layers",
        },
        gates=("noaux_tc",),
    ),
    "llama": Family(
        architecture="LlamaForCausalLM",
        keys=(*_COMMON_KEYS, "head_dim", "attention_bias"),
        implied={"attention": "gqa"},
        missing={"max_position_embeddings": 2048},
    ),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM",
        keys=(*_COMMON_KEYS, "head_dim"),
        implied={"attention": "gqa", "qkv_bias": True},
        missing={"max_position_embeddings": 32768},
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM",
        keys=(*_COMMON_KEYS, "head_dim", "attention_bias"),
        implied={"attention": "gqa", "qk_norm": True},
        missing={"max_position_embeddings": 32768, "head_dim": 128},
    ),
}


def read_config(path: Path) -> ModelConfig:
    """Read the config of a model folder, or a config.json itself, checking every value in it.

    Raises:
        CheckpointError: the file is missing, not a JSON object, too large, of an unknown
            architecture, or says something that cannot be; the message names file and key.
    """
    if (path / "adapter_config.json").exists() and not (path / "config.json").exists():
        raise CheckpointError(
            f"{path} holds adapters and no model. The checkpoints of their run have them merged."
        )
    if (path / "snapshots").is_dir() and not (path / "config.json").exists():
        raise CheckpointError(
            f"{path} is a model's place in a download cache: give one of the folders in "
            f"{path / 'snapshots'}."
        )
    file = file_inside(path, "config.json", CheckpointError) if os.path.isdir(path) else path
    data = read_object(file, MAX_FILE_BYTES, CheckpointError)
    if "model_type" not in data and (models := path / "checkpoints").is_dir():
        raise CheckpointError(f"{path} is the folder of a run: give one of the models in {models}.")
    try:
        return from_published(data)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}.") from error


def from_published(data: dict[str, Any]) -> ModelConfig:
    """Translate the content of a config.json; types are taken strictly ("3" is not 3)."""
    data = _by_family(data)
    family = _find_family(data)
    left = {key: value for key, value in data.items() if key not in _DERIVED}
    _refuse_unsupported(data)
    fields = {"model_type": left.pop("model_type"), **family.implied}
    fields |= _take_keys(left, family)
    fields |= _take_rope(left)
    fields |= _take_own(left, family)
    fields["other"] = left
    try:
        text = json.dumps(fields, allow_nan=False)
    except ValueError as error:
        raise CheckpointError("holds a number that is not finite") from error
    try:
        return ModelConfig.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise CheckpointError(explain(error).rstrip(".")) from error


def to_published(config: ModelConfig) -> dict[str, Any]:
    """Return the content of config.json, without the keys that describe stored weights (rule 2)."""
    family = FAMILIES[config.model_type]
    values = config.model_dump(mode="json", exclude={"other", "model_type"})
    kept = {k: v for k, v in config.other.items() if k not in _WRITTEN_WITH_THE_WEIGHTS}
    written = kept | {"architectures": [family.architecture], "model_type": config.model_type}
    written |= {key: values.pop(key) for key in family.keys}
    written["rope_theta"] = values.pop("rope_theta")
    written["rope_scaling"] = _published_scaling(values.pop("rope_scaling"))
    if family.implied["attention"] == "mla" and not config.n_routed_experts:
        # The published code finds the dense layers by this key alone.
        written["first_k_dense_replace"] = config.num_hidden_layers
    own = {key: value for key, value in values.items() if value != _implied(family, key)}
    written |= {_OWN_KEY: own} if own else {}
    return refused_elsewhere(written) if _is_misread(config, family, own) else written


def refused_elsewhere(written: dict[str, Any]) -> dict[str, Any]:
    """Give the content of a config.json the name that other programs refuse."""
    if written["model_type"] == OWN_TYPE:
        return written
    own = written.get(_OWN_KEY, {}) | {"model_type": written["model_type"]}
    named = {"architectures": [OWN_ARCHITECTURE], "model_type": OWN_TYPE, _OWN_KEY: own}
    return written | named


def _is_misread(config: ModelConfig, family: Family, own: Mapping[str, Any]) -> bool:
    has_own_gate = bool(config.n_routed_experts) and config.topk_method not in family.gates
    return has_own_gate or any(key not in _WITHOUT_EFFECT_ELSEWHERE for key in own)


def _by_family(data: dict[str, Any]) -> dict[str, Any]:
    """Undo `refused_elsewhere`."""
    own = data.get(_OWN_KEY)
    if data.get("model_type") != OWN_TYPE or not isinstance(own, dict):
        return data
    others = {key: value for key, value in own.items() if key != "model_type"}
    architectures = data.get("architectures")
    return data | {
        "model_type": own.get("model_type"),
        "architectures": None if architectures == [OWN_ARCHITECTURE] else architectures,
        _OWN_KEY: others,
    }


def _find_family(data: dict[str, Any]) -> Family:
    model_type = data.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        known = ", ".join(FAMILIES)
        raise CheckpointError(f"model_type {model_type!r} is not known; known are {known}")
    architectures = data.get("architectures")
    if architectures not in (None, [], [family.architecture]):
        known = ", ".join(entry.architecture for entry in FAMILIES.values())
        raise CheckpointError(
            f"architectures {architectures!r} does not fit model_type {model_type!r}, "
            f"which needs {family.architecture!r}; known are {known}"
        )
    return family


def _refuse_unsupported(data: dict[str, Any]) -> None:
    for key, only in _ONLY.items():
        if data.get(key) is not None and data[key] != only:
            raise CheckpointError(f"{key} = {data[key]!r} is not supported, only {only!r}")
    layer_types = data.get("layer_types") or ["full_attention"]
    if not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types):
        raise CheckpointError("layer_types other than 'full_attention' are not supported")


def _take_keys(left: dict[str, Any], family: Family) -> dict[str, Any]:
    """Move what the family publishes out of `left`; a null is a missing key."""
    for alias, key in family.aliases.items():
        value = left.pop(alias, None)
        if value is not None and left.setdefault(key, value) != value:
            raise CheckpointError(f"{alias} = {value!r} and {key} = {left[key]!r} disagree")
    absent = [key for key in family.required if key not in left]
    if absent:
        raise CheckpointError(f"{absent[0]} is missing; give a number, or null for none")
    if family.implied["attention"] == "mla":
        left.pop("head_dim", None)  # transformers writes the rotated width here
    given = {key: left.pop(key, None) for key in family.keys}
    fields: dict[str, Any] = dict(family.missing)
    fields |= {key: value for key, value in given.items() if value is not None}
    if "n_routed_experts" in family.keys and not fields.get("n_routed_experts"):
        fields = {key: value for key, value in fields.items() if key not in _EXPERT_KEYS}
    fields.setdefault("num_key_value_heads", fields.get("num_attention_heads"))
    if "head_dim" in family.keys and "head_dim" not in fields:
        fields["head_dim"] = _head_share(fields)
    return fields


def _head_share(fields: dict[str, Any]) -> int:
    """Return hidden_size / num_attention_heads, which a missing head_dim stands for."""
    width, heads = fields.get("hidden_size"), fields.get("num_attention_heads")
    if not isinstance(width, int) or not isinstance(heads, int) or heads < 1 or width % heads:
        raise CheckpointError(
            f"head_dim is missing, and hidden_size = {width!r} divided by "
            f"num_attention_heads = {heads!r} does not give it"
        )
    return width // heads


def _take_rope(left: dict[str, Any]) -> dict[str, Any]:
    """Fold `rope_theta`, `rope_scaling` and transformers 5's `rope_parameters` into ours.

    Each of the two objects may carry all of it. transformers prefers what stands inside, and others
    what stands outside: where two places disagree, neither is guessed.
    """
    theta = left.pop("rope_theta", None)
    found: dict[str, dict[str, Any] | None] = {}
    for key in ("rope_scaling", "rope_parameters"):
        parameters = left.pop(key, None)
        if parameters is None or parameters == {}:
            continue
        if not isinstance(parameters, dict):
            raise CheckpointError(f"{key} is {parameters!r}, not an object")
        inner = parameters.get("rope_theta")
        if None not in (theta, inner) and inner != theta:
            raise CheckpointError(f"rope_theta = {theta!r} and {inner!r} in {key} disagree")
        theta = inner if theta is None else theta
        found[key] = _fold_scaling(key, parameters, left.get(_TRAINED_CONTEXT))
    scaling, *others = found.values() or [None]
    if any(other != scaling for other in others):
        raise CheckpointError(f"{' and '.join(found)} disagree")
    fields = {"rope_theta": theta, "rope_scaling": scaling}
    return {key: value for key, value in fields.items() if value is not None}


def _fold_scaling(key: str, data: dict[str, Any], trained: object) -> dict[str, Any] | None:
    """Bring one of the published spellings into the form of `RopeScaling`.

    Args:
        key: where it stands.
        data: what stands there.
        trained: the context before stretching, where it stands outside; it would win there.
    """
    # A null is a missing key, but for one: no truncation is what transformers makes of that null.
    scaling = {k: v for k, v in data.items() if v is not None or k == "truncate"}
    scaling.pop("rope_theta", None)
    if scaling.pop("partial_rotary_factor", 1) != 1:
        rotated = data["partial_rotary_factor"]
        raise CheckpointError(f"{key}.partial_rotary_factor = {rotated!r} is not supported, only 1")
    kinds = [scaling.pop(name) for name in ("type", "rope_type") if name in scaling]
    kind = kinds[0] if kinds else "default"
    if any(other != kind for other in kinds) or kind not in _ROPE_KINDS:
        raise CheckpointError(
            f"{key} has type {kinds!r}; known are {', '.join(_ROPE_KINDS)}{_advice(kind)}"
        )
    if kind == "default":
        if scaling:
            raise CheckpointError(
                f"{key} of type default has {', '.join(scaling)}, without effect: name the type "
                "that reads it, or remove it"
            )
        return None
    if kind in _FROM_TRAINED_CONTEXT and trained is not None:
        inner = scaling.setdefault(_TRAINED_CONTEXT, trained)
        if inner != trained:
            raise CheckpointError(
                f"{_TRAINED_CONTEXT} = {trained!r} and {inner!r} in {key} disagree"
            )
    if scaling.get("mscale", 1) == 1 and not scaling.get("mscale_all_dim"):
        # The published default, mscale 1 and mscale_all_dim 0, is what naming neither means.
        scaling = {k: v for k, v in scaling.items() if k not in ("mscale", "mscale_all_dim")}
    return {"type": kind, **scaling}


def _advice(kind: object) -> str:
    if kind != "dynamic":
        return ""
    return (
        ". Up to max_position_embeddings tokens the dynamic one changes nothing: remove it, or "
        "stretch the context with yarn"
    )


def _published_scaling(scaling: dict[str, Any] | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    written = {key: value for key, value in scaling.items() if value is not None}
    if written.get("truncate"):
        del written["truncate"]  # the default, which older readers do not know
    if written["type"] == "llama3":
        # The only kind that is younger than the key's second name.
        written["rope_type"] = written.pop("type")
    return written


def _take_own(left: dict[str, Any], family: Family) -> dict[str, Any]:
    own = left.pop(_OWN_KEY, None) or {}
    if not isinstance(own, dict):
        raise CheckpointError(f"ziphius is {own!r}, not an object")
    for key in own:
        if key not in ModelConfig.model_fields or key in (*family.keys, *_ROPE_KEYS, "other"):
            raise CheckpointError(f"ziphius.{key} is not a setting that is kept there")
    return own


def _implied(family: Family, key: str) -> Any:
    default = ModelConfig.model_fields[key].default
    return family.implied.get(key, default)
