"""Speed and size of INT8 models on this CPU beside float32 and bfloat16.

All arms are one process and take turns within a round, so that what else the machine does falls on
all of them; figures are medians over rounds, and ratios of them. Run nothing else meanwhile.

    python bench/int8.py [--rounds 15] [--threads 2] [--out bench/results/int8.json]
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import machine
import torch
import torch.nn.functional as F

from ziphius.core.memory import keep_freed_memory
from ziphius.distill.student import dense_student
from ziphius.models.config import ModelConfig
from ziphius.models.cost import count_parameters
from ziphius.models.model import Model
from ziphius.models.presets import derive, get_preset
from ziphius.models.sequences import Sequences
from ziphius.models.weights import save
from ziphius.ops.int8 import int8_linear, quantize_rows
from ziphius.quant.int8 import quantize

PROMPT, PREFILL = 96, (8, 256)
BATCHES = (1, 8, 32, 128)
ROWS = (1, 4, 16, 64, 128, 512, 2_048)
SHAPES = ((256, 512), (512, 256), (576, 1_536), (256, 4_096))
"""Inputs and outputs of single products."""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("bench/results/int8.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    teacher = derive(get_preset("v3-1m"), vocab_size=2_048)
    shapes = {
        "student of v3-1m": dense_student(teacher),
        "dense-3m": derive(get_preset("dense-3m"), vocab_size=2_048),
        "bench-v3": get_preset("bench-v3"),
    }
    with torch.inference_mode():
        result = {
            "machine": machine.describe(),
            "rounds": options.rounds,
            "models": {name: model_row(shape, options.rounds) for name, shape in shapes.items()},
            "products": products(options.rounds),
        }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    show(result)


def model_row(config: ModelConfig, rounds: int) -> dict[str, object]:
    """Measure one shape in all formats: bytes on disk, decoding steps, prefill."""
    models = formats(config)
    row: dict[str, object] = {
        "parameters": count_parameters(config).main,
        "bytes_on_disk": {name: bytes_on_disk(name, model) for name, model in models.items()},
    }
    row["prefill"] = speeds(
        {name: prefill(model) for name, model in models.items()}, rounds, PREFILL[0] * PREFILL[1]
    )
    for batch in BATCHES:
        steps = {name: decoding(model, batch) for name, model in models.items()}
        row[f"decode {batch}"] = speeds(steps, rounds, batch)
    return row


def formats(config: ModelConfig) -> dict[str, Model]:
    """Make one random model in every number format."""
    model = Model(config)
    model.initialize(seed=0)
    model.eval()
    half, int8 = copy.deepcopy(model), copy.deepcopy(model)
    for parameter in half.parameters():
        parameter.data = parameter.data.bfloat16()
    quantize(int8)
    return {"float32": model, "bfloat16": half, "int8": int8}


def bytes_on_disk(name: str, model: Model) -> int:
    """Save and weigh; what is not INT8 in an INT8 model is bfloat16 on disk."""
    with TemporaryDirectory() as folder:
        place = Path(folder) / "model"
        save(model, place, weight_format="float32" if name == "float32" else "bfloat16")
        return sum(file.stat().st_size for file in place.glob("*.safetensors"))


def prefill(model: Model) -> Callable[[], object]:
    """Read prompts; the head is applied to their last tokens."""
    ids_BT = torch.randint(0, model.config.vocab_size, PREFILL)

    def run() -> object:
        return model.logits(model(Sequences(model, *PREFILL).rows(ids_BT)).wanted_LD)

    return run


def decoding(model: Model, batch: int) -> Callable[[], object]:
    """Take one more token of every sequence behind a prompt, head included."""
    sequences = Sequences(model, batch, PROMPT + 1)
    model(sequences.rows(torch.randint(0, model.config.vocab_size, (batch, PROMPT))))
    ids_B1 = torch.randint(0, model.config.vocab_size, (batch, 1))

    def run() -> object:
        sequences.lengths_R.fill_(PROMPT)
        return model.logits(model(sequences.rows(ids_B1)).wanted_LD)

    return run


def products(rounds: int) -> dict[str, dict[str, float]]:
    """Measure single products in microseconds, with what PyTorch has for int8 beside ours."""
    found = {}
    for inputs, outputs in SHAPES:
        for rows in ROWS:
            x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
            half, half_weight = x.bfloat16(), weight.bfloat16()
            numbers, scale = quantize_rows(weight)
            quantized, _ = quantize_rows(x)
            arms: dict[str, Callable[[], object]] = {
                "float32": partial(F.linear, x, weight),
                "bfloat16": partial(F.linear, half, half_weight),
                "int8": partial(int8_linear, x, numbers, scale),
                "int_mm alone": partial(torch._int_mm, quantized, numbers.t()),
            }
            seconds = medians(arms, rounds)
            found[f"{rows} x {inputs} -> {outputs}"] = {
                name: round(1e6 * value, 1) for name, value in seconds.items()
            }
    return found


def speeds(arms: dict[str, Callable[[], object]], rounds: int, tokens: int) -> dict[str, float]:
    """Return tokens a second of each arm, and how much faster int8 is than the others."""
    seconds = medians(arms, rounds)
    row = {name: float(round(tokens / value)) for name, value in seconds.items()}
    for other in ("float32", "bfloat16"):
        row[f"int8 over {other}"] = round(seconds[other] / seconds["int8"], 2)
    return row


def medians(arms: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Let the arms take turns, each several calls, and return median seconds of a call."""
    calls = {}
    for name, run in arms.items():
        run()
        start = time.perf_counter()
        run()
        calls[name] = max(1, min(50, int(0.005 / (time.perf_counter() - start))))
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, run in arms.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                run()
            times[name].append((time.perf_counter() - start) / calls[name])
    return {name: statistics.median(values) for name, values in times.items()}


def show(result: dict[str, Any]) -> None:
    """Print what was found."""
    for name, row in result["models"].items():
        print(name, row["parameters"], "parameters; bytes on disk", row["bytes_on_disk"])
        for work, figures in row.items():
            if work == "prefill" or work.startswith("decode"):
                print(f"  {work:12}", figures)
    for name, figures in result["products"].items():
        print(f"{name:22}", figures)


if __name__ == "__main__":
    main()
