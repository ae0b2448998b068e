"""The losses of 30 steps of pretraining are what they were: nothing changed a number unnoticed.

`python tests/numerics/test_golden.py` writes them anew, after a change that is meant to change
them.
"""

import json
import sys
import tempfile
from pathlib import Path

import pytest

from tests.numerics.golden_losses import assert_golden
from tests.training import RandomRows, Run, train_config
from ziphius.models.presets import get_preset
from ziphius.train.optim import OPTIMIZERS
from ziphius.train.stages.pretrain import Pretrain

FOLDER = Path(__file__).parent / "golden"


def losses(optimizer: str, folder: Path) -> dict[str, list[float]]:
    """Train the tiny V3 on the same eight rows, which it begins to know by heart."""
    config = train_config(
        budget="30-steps",
        seq_len=32,
        micro_batch_size=4,
        z_loss=1e-4,
        optimizer={"name": optimizer},
    )
    model_config = get_preset("v3-tiny")
    rows = RandomRows(config, model_config.vocab_size, repeat=True)
    run = Run(folder, config, model_config, stage=Pretrain(rows, model_config, config))
    run.go()
    names = run.recorder.steps[0].terms
    return {name: [record.terms[name] for record in run.recorder.steps] for name in names}


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_losses_are_what_they_were(optimizer: str, tmp_path: Path) -> None:
    expected = json.loads((FOLDER / f"pretrain-{optimizer}.json").read_text())
    actual = losses(optimizer, tmp_path)
    assert list(actual) == list(expected)
    for name, values in expected.items():
        assert len(values) == 30
        assert_golden(actual[name], values, name)
    assert expected["next_token"][-1] < 0.8 * expected["next_token"][0]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    with tempfile.TemporaryDirectory() as name:
        for each in sorted(OPTIMIZERS):
            text = json.dumps(losses(each, Path(name)), indent=1)
            (FOLDER / f"pretrain-{each}.json").write_text(text + "\n")
