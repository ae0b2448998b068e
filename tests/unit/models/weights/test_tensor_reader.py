"""Numbers of every stored type arrive in every dtype of a model, in pieces of any size."""

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ziphius.models.weights import tensor_reader
from ziphius.models.weights.shards import DTYPES, read_header
from ziphius.models.weights.tensor_reader import TensorReader

PLAIN = [name for name in DTYPES if name != "F8_E4M3"]  # it has scales: test_folder.py


@pytest.mark.parametrize("piece_bytes", [4, 20, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored", PLAIN)
def test_a_tensor_is_read_to_its_place(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stored: str,
    dtype: torch.dtype,
    piece_bytes: int,
) -> None:
    monkeypatch.setattr(tensor_reader, "PIECE_BYTES", piece_bytes)
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(1, 100, (3, 7), generator=generator).float().to(DTYPES[stored])
    file = tmp_path / "model.safetensors"
    save_file({"before": torch.ones(5), "it": numbers, "nothing": torch.ones(0)}, file)
    with ExitStack() as files:
        reader = TensorReader(read_header(file), files)
        place = torch.zeros(2, 3, 7, dtype=dtype)
        reader.fill("it", place[1])
        assert torch.equal(place[1], numbers.to(dtype))
        assert not place[0].any()
        assert reader.equals("it", place[1])
        place[1, 2, 6] += 8
        assert not reader.equals("it", place[1])
        reader.fill("nothing", torch.zeros(0))
