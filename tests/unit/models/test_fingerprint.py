"""`models/fingerprint.py`: what it tells apart."""

import os

from tests.tiny import V3_EXPERTS, build, latent_config
from ziphius.models.fingerprint import model_fingerprint
from ziphius.models.weights import load, save


def test_any_weight_and_setting_changes_it():
    config = latent_config(**V3_EXPERTS)
    model = build(config)
    first = model_fingerprint(model)
    assert model_fingerprint(build(config)) == first
    seen = {first}
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.view(-1)[-1] += 1
        seen.add(model_fingerprint(model))
    assert len(seen) == 1 + len([*model.parameters(), *model.buffers()])
    changed = build(latent_config(**V3_EXPERTS, rms_norm_eps=1e-4))
    assert model_fingerprint(changed) not in seen


def test_experts_in_files_are_told_by_their_files(tmp_path):
    save(build(latent_config(**V3_EXPERTS)), tmp_path / "model")
    first = model_fingerprint(load(tmp_path / "model", expert_cache=10**6))
    assert model_fingerprint(load(tmp_path / "model", expert_cache=10**6)) == first
    os.utime(tmp_path / "model" / "model.safetensors", (1, 1))
    assert model_fingerprint(load(tmp_path / "model", expert_cache=10**6)) != first
