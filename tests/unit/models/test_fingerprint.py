"""`models/fingerprint.py`: what it tells apart."""

import os
from collections.abc import Callable

import pytest

from tests.tiny import V3_EXPERTS, build, latent_config
from ziphius.models.fingerprint import WeightDigest, model_fingerprint, weight_digest
from ziphius.models.model import Model
from ziphius.models.weights import load, save


@pytest.mark.parametrize("name_of", [model_fingerprint, weight_digest])
def test_any_weight_changes_it(name_of: Callable[[Model], str | WeightDigest]) -> None:
    config = latent_config(**V3_EXPERTS)
    model = build(config)
    first = name_of(model)
    assert name_of(build(config)) == first
    seen = {first}
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.view(-1)[-1] += 1
        seen.add(name_of(model))
    assert len(seen) == 1 + len([*model.parameters(), *model.buffers()])


def test_a_setting_changes_it() -> None:
    changed = build(latent_config(**V3_EXPERTS, rms_norm_eps=1e-4))
    assert model_fingerprint(changed) != model_fingerprint(build(latent_config(**V3_EXPERTS)))


def test_the_same_numbers_in_another_dtype_have_another_digest() -> None:
    model = build(latent_config()).bfloat16()
    assert weight_digest(model) != weight_digest(model.float())


def test_experts_in_files_are_told_by_their_files(tmp_path):
    save(build(latent_config(**V3_EXPERTS)), tmp_path / "model")
    first = model_fingerprint(load(tmp_path / "model", expert_cache=10**6))
    assert model_fingerprint(load(tmp_path / "model", expert_cache=10**6)) == first
    os.utime(tmp_path / "model" / "model.safetensors", (1, 1))
    assert model_fingerprint(load(tmp_path / "model", expert_cache=10**6)) != first
