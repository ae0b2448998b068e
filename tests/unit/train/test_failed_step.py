import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file

from ziphius.data.batch import Batch
from ziphius.train.failed_step import dump_step


def test_a_failed_step_is_kept_whole(tmp_path: Path) -> None:
    ids_BT = torch.arange(6).view(2, 3)
    batches = [
        Batch(ids_BT, torch.zeros_like(ids_BT)),
        Batch(ids_BT + 1, torch.ones_like(ids_BT), loss_mask_BT=ids_BT > 2),
    ]
    report = {"step": 7, "rank": 0, "terms": {"next_token": math.nan}, "losses": [1.0, math.inf]}
    path = dump_step(tmp_path, batches, report)
    assert path == tmp_path / "failed-step-7"
    tensors = load_file(path / "batch.safetensors")
    assert sorted(tensors) == [
        "micro-0.documents",
        "micro-0.ids",
        "micro-1.documents",
        "micro-1.ids",
        "micro-1.loss_mask",
    ]
    assert torch.equal(tensors["micro-1.ids"], ids_BT + 1)
    saved = json.loads((path / "report.json").read_text())
    assert saved["terms"] == {"next_token": "nan"}
    assert saved["losses"] == [1.0, "inf"]
    assert dump_step(tmp_path, batches, report).name == "failed-step-7-2"
    assert dump_step(tmp_path, batches, report | {"rank": 1}).name == "failed-step-7-rank-1"
