"""Speed, memory and hits of a model by the share of its experts that is in memory.

    taskset -c 0,1 python bench/offload.py --rounds 3 --out bench/results/offload.json
    taskset -c 0,1 python bench/offload.py --cold --rounds 3 --out bench/results/offload.json
    python bench/offload.py --folder CHECKPOINT --text FILE --out bench/results/offload.json

Each arm is a share and a way to choose what stays: the least recently used goes (lru), or the least
in use by frequency and age (lrfu), with announcements of what will be read or without. An arm of a
round is a process of its own that generates one answer after the other on one thread, in turns with
the others. Without --folder the model is drawn at random and written once, and prompts are words
from a small vocabulary. Its files are in the system's memory, unless --cold drops them before every
step, so that each expert that is not held comes from the disk. Random routers use experts more
evenly than trained ones: hit rates of a trained model are higher.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import torch

from ziphius.engine.build import build_engine
from ziphius.engine.config import EngineConfig
from ziphius.engine.sequence import Request
from ziphius.models import offload
from ziphius.models.model import Model
from ziphius.models.presets import derive, get_preset
from ziphius.models.weights import load, read_model_config, save, tokenizer_path
from ziphius.ops.sampling_config import SamplingConfig
from ziphius.text.tokenizer import load_tokenizer

ANSWERS = 3
LRU = 1 / 256
WHOLE = "not offloaded"
ARMS = {
    WHOLE: (offload.HALF_LIFE, True),
    "lru": (LRU, False),
    "lrfu": (offload.HALF_LIFE, False),
    "lrfu, misses announced": (offload.HALF_LIFE, True),
}
"""Half-life of a use, in forward passes; whether the system is told what a layer is about to read.
"""


def build_folder(folder: Path) -> None:
    """Draw V2-Lite's wiring in a quarter of its widths: 553 MB of weights, 503 of them experts."""
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


def prompts(folder: Path, text: Path | None) -> list[list[int]]:
    """Return the beginnings that are gone on with."""
    if text is not None:
        ids = load_tokenizer(tokenizer_path(folder)).encode(text.read_text())
        return [ids[first : first + 32] for first in range(0, 32 * ANSWERS * 8, 32 * 8)]
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 64, (32,), generator=generator).tolist() for _ in range(ANSWERS)]


def measure(folder: Path, arm: str, share: float, cold: bool, text: Path | None) -> dict[str, Any]:
    """Generate with this share of the experts in memory."""
    torch.set_num_threads(1)
    half_life, announces = ARMS[arm]
    offload.HALF_LIFE = half_life  # type: ignore[assignment]
    before = peak_bytes()
    config = read_model_config(folder)
    layers = sum(map(config.is_expert_layer, range(config.num_hidden_layers)))
    per_expert = 3 * config.moe_intermediate_size * config.hidden_size * 4
    experts = layers * config.n_routed_experts * per_expert
    limit = None if arm == WHOLE else int(experts * share)
    model = load(folder, dtype=torch.float32, expert_cache=limit, drop_mtp=bool(text))
    for module in model.modules():
        if isinstance(module, offload.OffloadedExperts) and not announces:
            module.cache.source.announce = lambda layer, experts: None  # type: ignore
    engine = build_engine(model, EngineConfig(num_blocks=64, max_num_seqs=1))
    tokens, seconds, cpu_seconds, waited = 0, 0.0, 0.0, 0
    queries = hits = 0
    for number, prompt in enumerate(prompts(folder, text)):
        engine.add(Request(prompt, 64, number, SamplingConfig(temperature=0.7)))
        engine.step()
        old = engine.metrics()
        while engine.has_work:
            if cold:
                drop_files(folder)
            start, cpu_start = time.perf_counter(), time.process_time()
            tokens += len(engine.step())
            seconds += time.perf_counter() - start
            cpu_seconds += time.process_time() - cpu_start
        new = engine.metrics()
        waited += new.get("expert_cache_wait_ms", 0) - old.get("expert_cache_wait_ms", 0)
        queries += new.get("expert_cache_queries", 0) - old.get("expert_cache_queries", 0)
        hits += new.get("expert_cache_hits", 0) - old.get("expert_cache_hits", 0)
    figures = engine.metrics()
    return {
        "decode tokens/s": round(tokens / seconds, 1),
        "per CPU second": round(tokens / cpu_seconds, 1),
        "ms waited per token": round(waited / tokens, 2),
        "peak MB above imports": round((peak_bytes() - before) / 1e6),
        "hit rate": round(hits / max(1, queries), 3),
        "MB read": round(figures.get("expert_cache_read_bytes", 0) / 1e6),
        "misses": queries - hits,
    }


def run_arm(arm: str, share: float, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure in a fresh process."""
    command = [sys.executable, __file__, "--one", "--folder", str(folder), "--arms", arm]
    command += ["--shares", str(share), *["--cold"] * options.cold]
    command += ["--text", str(options.text)] if options.text else []
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(result.stderr)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def main() -> None:
    """Measure every arm, round after round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shares", type=float, nargs="+", default=[1, 0.5, 0.25, 0.1])
    parser.add_argument("--arms", nargs="+", default=list(ARMS)[1:])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--text", type=Path, help="what a trained model goes on with")
    parser.add_argument("--out", type=Path, help="JSON file that the figures are added to")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        [share], [arm] = options.shares, options.arms
        print(json.dumps(measure(options.folder, arm, share, options.cold, options.text)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "model"
        if not folder.exists():
            build_folder(folder)
        # Where the pool holds all there is nothing to choose or to announce.
        full = [WHOLE, "lrfu"]
        arms = [(s, arm) for s in options.shares for arm in (options.arms if s < 1 else full)]
        found: dict[tuple[float, str], list[dict[str, Any]]] = {pair: [] for pair in arms}
        for _ in range(options.rounds):
            for share, arm in arms:
                found[share, arm].append(run_arm(arm, share, options, folder))
        weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    rows = []
    for (share, arm), rounds in found.items():
        row: dict[str, Any] = {"share": share, "arm": arm}
        row |= {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
        print(json.dumps(row), flush=True)
        rows.append(row)
    if options.out:
        before = json.loads(options.out.read_text()) if options.out.exists() else []
        model = options.folder.name if options.folder else "random, V2-Lite's wiring"
        settings = {"cold": options.cold, "rounds": options.rounds, "weights MB": weights // 10**6}
        entry = {"machine": machine.describe(), "model": model, **settings, "rows": rows}
        options.out.write_text(json.dumps([*before, entry], indent=1) + "\n")


if __name__ == "__main__":
    main()
