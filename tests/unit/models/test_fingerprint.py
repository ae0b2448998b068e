"""`models/fingerprint.py`: what it tells apart."""

import json
import os
from collections.abc import Callable

import pytest
import torch

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


def test_any_piece_of_a_weight_changes_it_and_no_number_of_threads(monkeypatch):
    monkeypatch.setattr("ziphius.models.fingerprint.PIECE_BYTES", 100)
    model = build(latent_config(**V3_EXPERTS))
    numbers = model.model.embed_tokens.weight.data.view(-1)
    assert numbers.numel() > 1000
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    seen = {model_fingerprint(model)}
    for place in range(0, len(numbers), 97):
        numbers[place] += 1
        seen.add(model_fingerprint(model))
        numbers[place] -= 1
    numbers[:25], numbers[25:50] = numbers[25:50].clone(), numbers[:25].clone()
    seen.add(model_fingerprint(model))
    assert len(seen) == 2 + len(range(0, len(numbers), 97))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert model_fingerprint(model) in seen


def test_experts_that_were_changed_under_their_old_time_are_told(tmp_path):
    save(build(latent_config(**V3_EXPERTS)), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    first = model_fingerprint(load(tmp_path / "model", expert_cache=10**6))
    old = file.stat()
    content = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:start])
    expert = next(entry for name, entry in entries.items() if ".experts.3." in name)
    content[start + expert["data_offsets"][0]] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert model_fingerprint(load(tmp_path / "model", expert_cache=10**6)) != first


def test_experts_in_files_are_told_by_their_files(tmp_path):
    save(build(latent_config(**V3_EXPERTS)), tmp_path / "model")
    first = model_fingerprint(load(tmp_path / "model", expert_cache=10**6))
    assert model_fingerprint(load(tmp_path / "model", expert_cache=10**6)) == first
    os.utime(tmp_path / "model" / "model.safetensors", (1, 1))
    assert model_fingerprint(load(tmp_path / "model", expert_cache=10**6)) != first
