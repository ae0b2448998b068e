"""Two processes that share the rows of each step train as one process does (gloo, torchrun)."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.training import RandomRows, Run, moe_config, train_config
from ziphius.dist.world import World, join_world
from ziphius.train.config import TrainConfig
from ziphius.train.stages.pretrain import Pretrain

ROOT = Path(__file__).parents[2]


def config() -> TrainConfig:
    return train_config(budget="5-steps", ema_decay=0.5, micro_batch_size=2, z_loss=0.01)


def test_two_processes_are_one(tmp_path: Path) -> None:
    alone = Run(tmp_path, config())
    alone.go()
    run_on_two(tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert second == {"rows": [2, 2], "records": [], "saves": 0}
    assert (first["rows"], first["saves"]) == ([2, 2], 1)
    for record, expected in zip(first["records"], alone.recorder.steps, strict=True):
        assert record["loss"] == pytest.approx(expected.loss, rel=1e-6)
        assert record["terms"] == pytest.approx(expected.terms, rel=1e-6)
        assert record["grad_norm"] == pytest.approx(expected.grad_norm, rel=1e-6)
        assert (record["tokens"], record["bytes_count"]) == (expected.tokens, expected.bytes_count)
        counts = {int(layer): counts for layer, counts in record["counts_by_layer"].items()}
        assert counts == expected.counts_by_layer
    weights = [load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1)]
    for name, tensor in alone.model.state_dict().items():
        assert torch.equal(weights[0][name], weights[1][name]), name
        difference = (weights[0][name] - tensor).norm()
        assert difference <= 1e-5 * tensor.norm(), f"{name}: {difference / tensor.norm()}"


def run_on_two(folder: Path) -> None:
    """Start this file under torchrun; each process writes what it found into the folder."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launch, __file__, str(folder)],
        cwd=ROOT,
        timeout=300,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3_000:]


def one_rank(folder: Path, world: World) -> None:
    """Train as one of the processes and write down what this one has."""
    stage = Pretrain(RandomRows(config()), moe_config(), config(), world=world)
    run = Run(folder, config(), stage=stage, world=world)
    run.go()
    found = {
        "rows": [len(batch.ids_BT) for batch in stage.batches(0)],
        "records": [dataclasses.asdict(record) for record in run.recorder.steps],
        "saves": len(run.store.saved),
    }
    (folder / f"{world.rank}.json").write_text(json.dumps(found))
    save_file(run.model.state_dict(), folder / f"{world.rank}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with join_world(torch.device("cpu")) as this:
        one_rank(Path(sys.argv[1]), this)
