"""Speed and memory of a model by the share of its experts that is in memory.

    taskset -c 1 python bench/offload.py

Each share is a process of its own that generates one answer after the other with prompts of words
from a small vocabulary, on one thread. The model is drawn at random and written once; its files are
in the system's memory, unless --cold drops them before every answer. Random routers use experts
more evenly than trained ones: hit rates of a trained model are higher.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from ziphius.engine.build import build_engine
from ziphius.engine.config import EngineConfig
from ziphius.engine.sequence import Request
from ziphius.models import offload
from ziphius.models.model import Model
from ziphius.models.presets import derive, get_preset
from ziphius.models.weights import load, save
from ziphius.ops.sampling_config import SamplingConfig


def build_folder(folder: Path) -> None:
    """Draw V2-Lite's wiring in a quarter of its widths: 256 MB of weights, 85 % of them experts."""
    config = derive(
        get_preset("v2-lite"),
        vocab_size=4096,
        bos_token_id=0,
        eos_token_id=1,
        hidden_size=512,
        num_hidden_layers=9,
        intermediate_size=1024,
        moe_intermediate_size=160,
        num_attention_heads=4,
        num_key_value_heads=4,
        kv_lora_rank=128,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=32,
    )
    model = Model(config)
    model.initialize(seed=0)
    save(model, folder, weight_format="float32")


def peak_bytes() -> int:
    """Read the most memory this process has had."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def drop_files(folder: Path) -> None:
    """Let the system forget what it keeps of the weights."""
    for file in folder.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def measure(folder: Path, share: float, cold: bool, half_life: int) -> dict[str, float]:
    """Generate with this share of the experts in memory."""
    torch.set_num_threads(1)
    offload.HALF_LIFE = half_life
    before = peak_bytes()
    whole = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    limit = None
    if share < 1:
        experts = 8 * 64 * 3 * 160 * 512 * 4
        limit = int(experts * share)
    model = load(folder, expert_cache=limit)
    engine = build_engine(model, EngineConfig(num_blocks=64, max_num_seqs=1))
    generator = torch.Generator().manual_seed(0)
    tokens, seconds, cpu_seconds = 0, 0.0, 0.0
    for number in range(3):
        if cold:
            drop_files(folder)
        prompt = torch.randint(0, 64, (32,), generator=generator).tolist()
        engine.add(Request(prompt, 64, number, SamplingConfig(temperature=0.7)))
        engine.step()
        start, cpu_start = time.perf_counter(), time.process_time()
        while engine.has_work:
            tokens += len(engine.step())
        seconds += time.perf_counter() - start
        cpu_seconds += time.process_time() - cpu_start
    figures = engine.metrics()
    queries = figures.get("expert_cache_queries", 0)
    return {
        "share": share,
        "decode tokens/s": round(tokens / seconds, 1),
        "per CPU second": round(tokens / cpu_seconds, 1),
        "peak MB above imports": round((peak_bytes() - before) / 1e6),
        "weights MB": round(whole / 1e6),
        "hit rate": round(figures.get("expert_cache_hits", 0) / max(1, queries), 3),
        "MB read": round(figures.get("expert_cache_read_bytes", 0) / 1e6),
    }


def main() -> None:
    """Measure every share, each in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shares", type=float, nargs="+", default=[1, 0.75, 0.5, 0.25, 0.1, 0.05])
    parser.add_argument("--half-lives", type=int, nargs="+", default=[offload.HALF_LIFE])
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        [share], [half_life] = options.shares, options.half_lives
        print(json.dumps(measure(options.folder, share, options.cold, half_life)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "model"
        if not folder.exists():
            build_folder(folder)
        for share in options.shares:
            for half_life in options.half_lives:
                command = [sys.executable, __file__, "--one", "--folder", str(folder)]
                command += ["--shares", str(share), "--half-lives", str(half_life)]
                command += ["--cold"] * options.cold
                result = subprocess.run(command, capture_output=True, text=True, check=True)
                print(f"half-life {half_life}: {result.stdout.strip()}", flush=True)


if __name__ == "__main__":
    main()
