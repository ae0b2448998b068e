"""Thirty steps of GRPO give the rewards and losses they always gave.

A change of these numbers is a change of what sampling or training computes: explain it, then write
them anew with `python -m tests.numerics.test_golden_grpo` from the repository's root.
"""

import json
import tempfile
from pathlib import Path

import pytest

from tests.training import ListRecorder, MemoryStore
from tests.unit.rl.toys import grpo_config, model_of, pay_low_ids, stage, training
from tests.unit.rollout.tasks import add_echo
from ziphius.rollout.config import RolloutConfig
from ziphius.train.loop import train

GOLDEN = Path(__file__).parent / "golden" / "grpo.json"
TIGHT_STEPS = 10
"""Then a token is drawn by a last bit, and what follows it is another answer."""
NAMES = ("policy", "kl", "reward", "entropy", "completions/mean_length", "clip_ratio")


def figures(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """Train the tiny V3 to say low ids, two updates a round, with a reference."""
    add_echo(patch)
    pay_low_ids(patch)
    model = model_of("v3-tiny")
    rollout = RolloutConfig(num_generations=8, max_new_tokens=6)
    config = grpo_config(rollout=rollout, beta=0.01, num_iterations=2)
    settings = training(
        budget="30-steps", global_batch_size=24, micro_batch_size=8, learning_rate=4e-3
    )
    recorder = ListRecorder()
    train(
        stage(model, config, settings),
        model,
        settings,
        folder,
        store=MemoryStore(),
        recorder=recorder,
    )
    return {name: [record.terms[name] for record in recorder.steps] for name in NAMES}


def test_thirty_steps_of_grpo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = json.loads(GOLDEN.read_text())
    assert all(len(golden[name]) == 30 for name in NAMES)
    assert golden["reward"][-1] > 0.3 + golden["reward"][0]
    actual = figures(tmp_path, monkeypatch)
    for name in NAMES:
        first, whole = golden[name][:TIGHT_STEPS], golden[name]
        assert actual[name][:TIGHT_STEPS] == pytest.approx(first, rel=1e-4, abs=1e-5), name
        assert actual[name] == pytest.approx(whole, rel=0.05, abs=0.05), name


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        text = json.dumps(figures(Path(name), patch), indent=1)
    GOLDEN.write_text(text + "\n")
