"""What one GPU makes of Ziphius: training, decoding and GRPO, each part in a process of its own.

A part that fails or takes too long leaves its error in the result, and the others go on. Speeds
stand beside the matrix peak that was measured in the same run. Run nothing else meanwhile.

    python bench/gpu.py [--only PART ...] [--out bench/results/gpu.json] [--profile FILE]

Needs CUDA; transformers, where it is installed, is the peer of the dense model.
"""

import argparse
import json
import multiprocessing
import statistics
import time
import traceback
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import gpu_arms
import machine
import torch

Result = dict[str, Any]
PART_S = 60.0
WARMUP_STEPS, STEPS, TURNS = 5, 5, 4


def peaks() -> Result:
    """Measure the fastest products of this GPU."""
    from ziphius.train.peak import measure_peak

    return {
        name: round(measure_peak(gpu_arms.DEVICE, dtype) / 1e12, 1)
        for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32))
    }


def correctness() -> Result:
    """Hold logits and gradients against those of the CPU in float32, on equal routes."""
    from ziphius.models.presets import get_preset

    found: Result = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        config = get_preset("bench-v3")
        (logits, grads), routes = gpu_arms.gradients(config, torch.device("cpu"), torch.float32)
        (ours, our_grads), our_routes = gpu_arms.gradients(config, gpu_arms.DEVICE, dtype, routes)
        worst = {name: gpu_arms.difference(our_grads[name], grad) for name, grad in grads.items()}
        largest = max(worst, key=lambda name: worst[name])
        _, free = gpu_arms.gradients(config, gpu_arms.DEVICE, dtype)
        same = [float((free[i] == routes[i]).float().mean()) for i in routes]
        found[name] = {
            "logits_max_difference": float((ours - logits).abs().max()),
            "logits_max": float(logits.abs().max()),
            "gradient_relative_difference": worst[largest],
            "of": largest,
            "routes_replayed": len(our_routes),
            "share_of_routes_equal": round(statistics.fmean(same), 5),
        }
    return found


def dense() -> Result:
    """Train the dense model: as a run does, without what a run adds, and transformers' twin."""
    arms = {
        "stepper": lambda: gpu_arms.stepper(gpu_arms.DENSE, deterministic=True),
        "stepper, not deterministic": lambda: gpu_arms.stepper(gpu_arms.DENSE),
        "bare loop, no documents": lambda: gpu_arms.bare(gpu_arms.DENSE),
        "transformers sdpa": lambda: gpu_arms.transformers(gpu_arms.DENSE),
    }
    return in_turns(gpu_arms.DENSE, arms)


def experts() -> Result:
    """Train the model with experts: as a run does, and without what a run adds."""
    arms = {
        "stepper": lambda: gpu_arms.stepper(gpu_arms.EXPERTS, deterministic=True),
        "stepper, not deterministic": lambda: gpu_arms.stepper(gpu_arms.EXPERTS),
        "bare loop, no documents": lambda: gpu_arms.bare(gpu_arms.EXPERTS),
    }
    return in_turns(gpu_arms.EXPERTS, arms)


def muon() -> Result:
    """Train the model with experts with Muon."""
    arms = {"stepper, muon": lambda: gpu_arms.stepper(gpu_arms.EXPERTS, optimizer="muon")}
    return in_turns(gpu_arms.EXPERTS, arms)


def main_job() -> Result:
    """Train the model of `ziphius run` as its supervised stages do."""
    arms = {
        "stepper bf16": lambda: gpu_arms.stepper(
            gpu_arms.MAIN_JOB, optimizer="muon", deterministic=True
        ),
        "stepper fp32": lambda: gpu_arms.stepper(
            gpu_arms.MAIN_JOB, optimizer="muon", deterministic=True, dtype="float32"
        ),
    }
    return in_turns(gpu_arms.MAIN_JOB, arms)


def in_turns(shape: gpu_arms.Shape, builders: dict[str, Callable[[], gpu_arms.Arm]]) -> Result:
    """Let the arms take turns of a few steps; one that cannot be built or fails says why."""
    rows: Result = {}
    arms: dict[str, gpu_arms.Arm] = {}
    memory: dict[str, int] = {}
    for name, build in builders.items():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        try:
            arm = build()
            losses = [arm.step() for _ in range(WARMUP_STEPS)]
        except Exception as error:
            rows[name] = _failure(error)
            continue
        memory[name] = torch.cuda.max_memory_allocated() - before
        rows[name] = {"first_loss": round(float(losses[0]), 4), "times": []}
        arms[name] = arm
    for _ in range(TURNS):
        for name, arm in arms.items():
            for _ in range(STEPS):
                torch.cuda.synchronize()
                start = time.perf_counter()
                arm.step()
                torch.cuda.synchronize()
                rows[name]["times"].append(time.perf_counter() - start)
    for name in arms:
        seconds = statistics.median(rows[name].pop("times"))
        tokens = shape.batch * shape.seq_len
        rows[name] |= {
            "step_ms": round(1e3 * seconds, 2),
            "tokens_per_s": round(tokens / seconds),
            "tflop_per_s": round(shape.flops * tokens / seconds / 1e12, 2),
            "peak_memory_gb": round(memory[name] / 1e9, 2),
        }
    return {"shape": shape.describe(), "steps": STEPS * TURNS, "arms": rows}


def attention() -> Result:
    """Time the ways there are to attend within documents of packed rows, forward and backward."""
    names = [name for name in gpu_arms.WAYS if name != "flex"]
    return {
        name: gpu_arms.attention_ways(**sizes, names=names)
        for name, sizes in {
            "8 x 9 heads of 64": {"heads": 9, "key": 64, "value": 64},
            "8 x 16 heads, keys of 96, values of 64": {"heads": 16, "key": 96, "value": 64},
        }.items()
    }


def flex() -> Result:
    """Time attention that is compiled for its mask; compiling takes longest."""
    return gpu_arms.attention_ways(heads=16, key=96, value=64, names=["flex"])


def decoding() -> Result:
    """Prefill and decode through the engine, in bfloat16."""
    found: Result = {}
    for name, shape in (("dense", gpu_arms.DENSE), ("experts", gpu_arms.EXPERTS)):
        model = gpu_arms.build(shape.config).bfloat16().eval()
        found[name] = {
            f"{sequences} x {prompt}": gpu_arms.generation(model, sequences, prompt, new)
            for sequences, prompt, new in ((1, 512, 64), (64, 512, 64), (8, 2_000, 8))
        }
    return found


def grpo() -> Result:
    """Time a GRPO step of the main job's model: 64 prompts, 8 completions each."""
    found: Result = {}
    for name, dtype in (("bf16", "bfloat16"), ("fp32", "float32")):
        arm = gpu_arms.grpo(dtype)
        arm.step()
        times = []
        for _ in range(3):
            torch.cuda.synchronize()
            start = time.perf_counter()
            arm.step()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        found[name] = {"step_s": round(statistics.median(times), 3)}
    return found


def profiles(out: Path | None) -> Result:
    """Count launches and waits of a step, and write where its time goes."""
    found: Result = {}
    text = []
    for shape, optimizer in ((gpu_arms.MAIN_JOB, "muon"), (gpu_arms.EXPERTS, "adamw")):
        arm = gpu_arms.stepper(shape, optimizer=optimizer, deterministic=True)
        for _ in range(WARMUP_STEPS):
            arm.step()
        waits: Counter[str] = gpu_arms.waits(arm)
        with torch.profiler.profile() as profile:
            arm.step()
            torch.cuda.synchronize()
        table = profile.key_averages()
        counts = {event.key: event.count for event in table}
        kernels = [e for e in table if e.device_type.name == "CUDA"]
        kernel_ms = sum(event.self_device_time_total for event in kernels) / 1e3
        row = {
            "kernel_launches": counts.get("cudaLaunchKernel", 0)
            + counts.get("cudaLaunchKernelExC", 0),
            "stream_synchronisations": counts.get("cudaStreamSynchronize", 0),
            "copies": counts.get("cudaMemcpyAsync", 0),
            "kernels": sum(event.count for event in kernels),
            "kernel_ms": round(kernel_ms, 2),
            "waits": dict(waits.most_common(30)),
        }
        found[shape.name] = row
        text.append(f"== {shape.name}: {json.dumps(row, indent=1)}")
        for order in ("self_cpu_time_total", "self_device_time_total"):
            text.append(table.table(sort_by=order, row_limit=25, max_name_column_width=60))
    if out is not None:
        out.write_text("\n".join(text) + "\n")
    return found


PARTS: dict[str, Callable[[], Result]] = {
    "peaks_tflop_per_s": peaks,
    "correctness": correctness,
    "main_job": main_job,
    "experts": experts,
    "dense": dense,
    "decoding": decoding,
    "grpo": grpo,
    "attention": attention,
    "muon": muon,
    "flex": flex,
}


def run_part(part: Callable[[], Result], seconds: float) -> Result:
    """Run a part in a process of its own, which ends with it."""
    context = multiprocessing.get_context("fork")  # what is imported already stays so
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(part, theirs))
    process.start()
    theirs.close()
    try:
        result: Result = (
            ours.recv() if ours.poll(seconds) else {"failed": f"no answer in {seconds:.0f} s"}
        )
    except EOFError:
        process.join()
        result = {"failed": f"the process ended with {process.exitcode}"}
    process.kill()
    process.join()
    return result


def _answer(part: Callable[[], Result], answers: Connection) -> None:
    try:
        answers.send(part())
    except Exception as error:
        answers.send(_failure(error))


def _failure(error: Exception) -> Result:
    lines = traceback.format_exception(error)
    return {"failed": f"{type(error).__name__}: {error}"[:500], "trace": "".join(lines)[-1_500:]}


def add_mfu(result: Result) -> None:
    """Put each speed beside the peak of this run."""
    peak = result.get("peaks_tflop_per_s", {}).get("bfloat16")
    for part in result.values():
        for row in part.get("arms", {}).values() if isinstance(part, dict) else ():
            if peak and "tflop_per_s" in row:
                row["mfu"] = round(row["tflop_per_s"] / peak, 4)


def main() -> None:
    """Run the parts, print what they found and write it down after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=[*PARTS, "profiles"])
    parser.add_argument("--out", type=Path, default=Path("bench/results/gpu.json"))
    parser.add_argument("--profile", type=Path, help="where the tables of the profiler go")
    parser.add_argument("--part-seconds", type=float, default=PART_S)
    options = parser.parse_args()
    parts = PARTS | {"profiles": lambda: profiles(options.profile)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    result: Result = {"machine": run_part(machine.describe, options.part_seconds)}
    for name in options.only or parts:
        start = time.perf_counter()
        result[name] = run_part(parts[name], options.part_seconds)
        print(f"{name} ({time.perf_counter() - start:.0f} s)", json.dumps(result[name]), flush=True)
        add_mfu(result)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
