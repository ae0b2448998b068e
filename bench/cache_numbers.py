"""What the cache costs and what it forgets in each of its number formats, beside float32.

    python bench/cache_numbers.py quality FOLDER_OR_GGUF --text FILE [--out FILE]
    python bench/cache_numbers.py speed --preset bench-v3 [--contexts 512 4096] [--out FILE]

Quality: a text in pieces of `--length` tokens goes through the engine's runner, and every token is
predicted from rows of the cache alone; its log-probabilities are held against those with a cache in
float32. Speed: one step of `--sequences` sequences behind a context whose rows are zeros, on one
thread, formats in turns; CPU time of the process, so that other programs disturb it less than they
do the clock.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import machine
import torch
from torch import Tensor

from ziphius.engine.build import CACHE_DTYPES, build_runner
from ziphius.engine.load import load_for_inference
from ziphius.models.attention_spec import cache_specs
from ziphius.models.cache import PagedCache, token_bytes
from ziphius.models.forward_batch import ForwardBatch, PagedTokens
from ziphius.models.model import Model

FORMATS = {"float32": torch.float32} | CACHE_DTYPES
BLOCK = 16


def new_cache(model: Model, blocks: int, dtype: torch.dtype) -> PagedCache:
    """Make an empty cache that is read in the numbers of the weights."""
    specs = cache_specs(model.config)[: model.config.num_hidden_layers]
    numbers = model.model.embed_tokens.weight.dtype
    return PagedCache(specs, blocks, BLOCK, dtype=dtype, read_dtype=numbers)


def next_tokens(cache: PagedCache, ids_ZT: Tensor, before: int) -> ForwardBatch:
    """Lay out T new tokens of Z sequences, each behind `before` tokens in blocks of its own."""
    sequences, new = ids_ZT.shape
    tables_ZJ = torch.arange(cache.num_blocks).view(sequences, -1)
    slots_ZT = tables_ZJ[:, :1] * BLOCK + before + torch.arange(new)
    paged = PagedTokens(
        cache,
        torch.arange(sequences + 1) * new,
        torch.full((sequences,), before + new),
        slots_ZT.flatten(),
        tables_ZJ,
    )
    return ForwardBatch(ids_ZT.reshape(1, -1), paged=paged)


def logprobs_LW(model: Model, ids_T: Tensor, dtype: torch.dtype, chunk: int) -> Tensor:
    """Return the log-probabilities behind every token of a text, computed in chunks."""
    cache = new_cache(model, -(-len(ids_T) // BLOCK), dtype)
    runner, _ = build_runner(model, cache)
    rows = []
    for first in range(0, len(ids_T), chunk):
        piece_1T = ids_T[None, first : first + chunk]
        rows.append(runner(next_tokens(cache, piece_1T, first)).logits_LW.clone())
    return torch.cat(rows).log_softmax(-1)


def quality(model: Model, ids_M: Tensor, length: int) -> list[dict[str, Any]]:
    """Hold each format against float32, over pieces of a text."""
    pieces = [piece for piece in ids_M.split(length) if len(piece) == length]
    sums: dict[str, list[tuple[float, ...]]] = {name: [] for name in FORMATS}
    for ids_T in pieces:
        target_T1 = ids_T[1:, None]
        exact_LW = logprobs_LW(model, ids_T, torch.float32, 64)[:-1]
        exact_L1 = exact_LW.gather(1, target_T1)
        for name, dtype in FORMATS.items():
            found_LW = logprobs_LW(model, ids_T, dtype, 64)[:-1]
            found_L1 = found_LW.gather(1, target_T1)
            divergence_L = (exact_LW.exp() * (exact_LW - found_LW)).sum(-1)
            same_L = found_LW.argmax(-1) == exact_LW.argmax(-1)
            error_L1 = (found_L1 - exact_L1).abs()
            figures = (-found_L1, error_L1, divergence_L, same_L.float())
            sums[name].append((*(x.mean().item() for x in figures), error_L1.max().item()))
    means = {
        name: [statistics.fmean(column) for column in zip(*rows, strict=True)]
        for name, rows in sums.items()
    }
    specs = cache_specs(model.config)[: model.config.num_hidden_layers]
    return [
        {
            "cache": name,
            "bytes per token": token_bytes(specs, FORMATS[name]),
            "loss": round(loss, 5),
            "loss less float32's": round(loss - means["float32"][0], 6),
            "mean |log-probability difference|": round(error, 6),
            "largest": round(max(row[4] for row in sums[name]), 4),
            "KL": float(f"{divergence:.3g}"),
            "same most likely token": round(same, 5),
        }
        for name, (loss, error, divergence, same, _) in means.items()
    ]


def speed(model: Model, contexts: list[int], sequences: int, rounds: int) -> list[dict[str, Any]]:
    """Time a step of decoding in each format, in turns."""
    rows = []
    for context in contexts:
        runs = {}
        for name, dtype in FORMATS.items():
            cache = new_cache(model, sequences * (context // BLOCK + 1), dtype)
            batch = next_tokens(cache, torch.ones(sequences, 1, dtype=torch.int64), context)
            runs[name] = (build_runner(model, cache), batch)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(rounds + 1):
            for name, ((runner, _), batch) in runs.items():
                start = time.process_time()
                runner(batch)
                if number:
                    times[name].append(time.process_time() - start)
        seconds = {name: statistics.median(found) for name, found in times.items()}
        for name, ((_, not_native), _) in runs.items():
            rows.append(
                {
                    "context": context,
                    "sequences": sequences,
                    "cache": name,
                    "CPU ms per step": round(1e3 * seconds[name], 3),
                    "of float32's": round(seconds[name] / seconds["float32"], 3),
                    "not native": not_native,
                }
            )
    return rows


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["quality", "speed"])
    parser.add_argument("model", nargs="?", help="folder, GGUF file or preset")
    parser.add_argument("--text", type=Path, help="read for quality")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="JSON file that the figures are added to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_for_inference(options.model, dtype=options.dtype)
    with torch.inference_mode():
        if options.what == "quality":
            ids = loaded.tokenizer.encode(options.text.read_text())[: options.tokens]
            rows = quality(loaded.model, torch.tensor(ids), options.length)
        else:
            rows = speed(loaded.model, options.contexts, options.sequences, options.rounds)
    for row in rows:
        print(json.dumps(row), flush=True)
    if options.out:
        found = json.loads(options.out.read_text()) if options.out.exists() else []
        model = Path(options.model).name
        settings = {key: getattr(options, key) for key in ("tokens", "length", "dtype")}
        entry = {"machine": machine.describe(), "model": model, **settings, options.what: rows}
        options.out.write_text(json.dumps([*found, entry], indent=1) + "\n")


if __name__ == "__main__":
    main()
