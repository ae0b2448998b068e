"""Every spelling of rotary positions in a config.json: the logits of transformers, or a refusal.

transformers 5.23 reads `rope_theta`, `rope_scaling` and `rope_parameters`, each of the last two
with all of it inside, and many keys in them. None may be lost on the way.
"""

import copy
from typing import Any

import pytest
import torch

from tests.tiny import V2_EXPERTS, V3_EXPERTS, fill, grouped_config, latent_config, random_ids
from ziphius.core.errors import CheckpointError
from ziphius.models.model import Model
from ziphius.models.published import from_published, to_published

TOLERANCE = 2e-5
FAMILIES = {
    "deepseek_v2": latent_config(
        model_type="deepseek_v2", **V2_EXPERTS, qk_nope_head_dim=12, rope_scaling=None
    ),
    "deepseek_v3": latent_config(**V3_EXPERTS, rope_scaling=None),
    "llama": grouped_config(),
    "qwen2": grouped_config(model_type="qwen2", qkv_bias=True),
    "qwen3": grouped_config(model_type="qwen3", qk_norm=True),
}
ORIGINAL = {"original_max_position_embeddings": 16}
YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0, **ORIGINAL}
OLD_YARN: dict[str, Any] = {"type": "yarn", "factor": 4.0, **ORIGINAL}
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    **ORIGINAL,
}
SPELLINGS: dict[str, dict[str, Any]] = {
    "outside": {"rope_theta": 500.0},
    "inside rope_scaling": {"rope_scaling": {"rope_type": "default", "rope_theta": 500.0}},
    "inside, old": {"rope_scaling": {"type": "default", "rope_theta": 500.0}},
    "inside, without a type": {"rope_scaling": {"rope_theta": 500.0}},
    "inside rope_parameters": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "parameters without a type": {"rope_parameters": {"rope_theta": 500.0}},
    "empty beside parameters": {"rope_scaling": {}, "rope_parameters": {"rope_theta": 500.0}},
    "null beside parameters": {"rope_scaling": None, "rope_parameters": {"rope_theta": 500.0}},
    "both places agree": {"rope_theta": 500.0, "rope_scaling": {**YARN, "rope_theta": 500.0}},
    "yarn, old": {"rope_scaling": {**OLD_YARN, "rope_theta": 500.0}},
    "yarn, both types": {"rope_scaling": {**YARN, "type": "yarn"}},
    "yarn": {"rope_parameters": {**YARN, "rope_theta": 500.0}},
    "yarn with nulls": {
        "rope_scaling": {**YARN, "beta_fast": None, "mscale": None, "attention_factor": None}
    },
    "yarn with betas": {"rope_scaling": {**YARN, "beta_fast": 4.0, "beta_slow": 0.25}},
    "yarn with a factor of attention": {"rope_scaling": {**YARN, "attention_factor": 0.7}},
    "yarn not truncated": {"rope_scaling": {**YARN, "truncate": False}},
    "yarn truncated": {"rope_scaling": {**YARN, "truncate": True}},
    "yarn with mscale": {"rope_scaling": {**YARN, "mscale": 0.5, "mscale_all_dim": 1.3}},
    "yarn with mscale of no dimension": {
        "rope_scaling": {**YARN, "mscale": 1, "mscale_all_dim": 0}
    },
    "yarn with all": {
        "rope_scaling": {
            **YARN,
            "attention_factor": 0.7,
            "mscale": 0.5,
            "mscale_all_dim": 1.3,
            "truncate": False,
        }
    },
    "yarn from a context below the first frequency": {
        "rope_scaling": {
            **YARN,
            "original_max_position_embeddings": 1,
            "rope_theta": 500.0,
            "truncate": False,
        }
    },
    "yarn, its context outside": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, **ORIGINAL},
    "yarn, its context in both places": {"rope_scaling": YARN, **ORIGINAL},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}},
    "linear, old": {"rope_scaling": {"type": "linear", "factor": 3.0}},
    "llama3": {"rope_parameters": {**LLAMA3, "rope_theta": 500.0}},
    "whole rotary factor": {"rope_scaling": {**YARN, "partial_rotary_factor": 1.0}},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dynamic": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic.*remove it"),
    "longrope": (
        {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}},
        "longrope",
    ),
    "proportional": ({"rope_parameters": {"rope_type": "proportional"}}, "proportional"),
    "no such type": ({"rope_scaling": {"type": "su", "factor": 2.0}}, "'su'"),
    "sections": ({"rope_scaling": {"type": "default", "mrope_section": [1]}}, "mrope_section"),
    "by layer": ({"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}, "full_attention"),
    "a factor without a type": ({"rope_scaling": {"factor": 2.0}}, "factor"),
    "half rotated": ({"rope_scaling": {**YARN, "partial_rotary_factor": 0.5}}, "partial_rotary"),
    "half rotated, outside": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "a null that means no": ({"rope_scaling": {**YARN, "truncate": None}}, "truncate"),
    "a typo in yarn": ({"rope_scaling": {**YARN, "beta_quick": 2.0}}, "beta_quick"),
    "a typo in llama3": ({"rope_scaling": {**LLAMA3, "beta_fast": 2.0}}, "beta_fast"),
    "mscale in linear": (
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "mscale_all_dim": 1.0}},
        "mscale_all_dim",
    ),
    "attention in linear": (
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "attention_factor": 2.0}},
        "attention_factor",
    ),
    "two bases": ({"rope_theta": 7.0, "rope_scaling": {"rope_theta": 5.0}}, "rope_theta.*disagree"),
    "two objects": (
        {"rope_scaling": YARN, "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}},
        "rope_scaling and rope_parameters disagree",
    ),
    "two contexts": (
        {"rope_scaling": YARN, "original_max_position_embeddings": 17},
        "original_max_position_embeddings = 17 and 16",
    ),
    "two types": ({"rope_scaling": {**YARN, "type": "linear"}}, "'linear', 'yarn'"),
    "no context": ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "original_max_position"),
    "two factors of attention": (
        {"rope_scaling": {**YARN, "attention_factor": 1.0, "attn_factor": 1.0}},
        "attn_factor",
    ),
    "a list": ({"rope_scaling": [1]}, "rope_scaling is"),
}


def published(family: str, rope: dict[str, Any]) -> dict[str, Any]:
    """A config.json of the family with these rotary positions."""
    kept = to_published(FAMILIES[family])
    for key in ("rope_theta", "rope_scaling"):
        del kept[key]
    return {**kept, **copy.deepcopy(rope)}


def logits_of_transformers(data: dict[str, Any], ours: Model, ids_BT: torch.Tensor) -> torch.Tensor:
    from transformers import AutoConfig, AutoModelForCausalLM

    data = copy.deepcopy(data)
    config = AutoConfig.for_model(data.pop("model_type"), **data)
    theirs = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    logits_BTW: torch.Tensor = theirs(ids_BT).logits
    return logits_BTW


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_spelling_gives_the_logits_of_transformers(family: str) -> None:
    ids_BT = random_ids(1, 48, 61)
    different: dict[str, float] = {}
    for name, rope in SPELLINGS.items():
        data = published(family, rope)
        ours = Model(from_published(copy.deepcopy(data)))
        fill(ours, 0)
        actual_BTW = ours.logits(ours(ids_BT).hidden_BTD)
        difference = (actual_BTW - logits_of_transformers(data, ours, ids_BT)).abs().max()
        if difference > TOLERANCE:
            different[name] = float(difference)
        written = from_published(to_published(ours.config))
        assert (written.rope_theta, written.rope_scaling) == (
            ours.config.rope_theta,
            ours.config.rope_scaling,
        ), name
    assert not different


@pytest.mark.parametrize("name", SPELLINGS)
@torch.no_grad()
def test_every_spelling_matters(name: str) -> None:
    """What is compared above differs from plain positions, so that losing a key would show."""
    ids_BT = random_ids(1, 48, 61)
    plain, other = (
        Model(from_published(published("llama", rope))) for rope in ({}, SPELLINGS[name])
    )
    for model in (plain, other):
        fill(model, 0)
    difference = plain(ids_BT).hidden_BTD - other(ids_BT).hidden_BTD
    assert difference.abs().max() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_computed_is_refused_by_name(name: str, family: str) -> None:
    rope, words = REFUSED[name]
    with pytest.raises(CheckpointError, match=words):
        from_published(published(family, rope))


def test_the_factor_that_transformers_ignores_is_that_of_vllm() -> None:
    """R1-0528-Qwen3-8B sets it so that YaRN's temperature cancels."""
    from ziphius.models.rope import rope_multiplier

    cancelling = {**YARN, "attn_factor": 0.8782488562869419}
    scaling = from_published(published("qwen3", {"rope_scaling": cancelling})).rope_scaling
    assert rope_multiplier(scaling) == pytest.approx(1.0, abs=1e-12)
