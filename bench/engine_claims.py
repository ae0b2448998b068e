"""Three published claims about inference, measured on the engine, arms taking turns in one process.

    python bench/engine_claims.py turns [FOLDER]
    python bench/engine_claims.py gates
    python bench/engine_claims.py mtp FOLDER [--new-tokens 128]
        [--rounds 5] [--out bench/results/engine_claims.json]

- `turns`: time to first token of each turn of a chat, with the prefix cache and without.
- `gates`: the same widths under V2's gates and V3's: time to first token, tokens/s, and the most
  sequences at once whose median step stays within a bound.
- `mtp`: drafts of a model's own MTP layer: tokens per forward, acceptance, time against no drafts.

FOLDER is a model folder; `turns` without one and `gates` draw `bench-v3`. What OUT says of claims
that are not measured now stays.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import machine

from ziphius.core.memory import keep_freed_memory
from ziphius.engine.answer import Prompt, chat_prompt
from ziphius.engine.build import build_engine
from ziphius.engine.config import EngineConfig
from ziphius.engine.engine import Engine
from ziphius.engine.load import load_for_inference
from ziphius.engine.sequence import Request
from ziphius.engine.speculation_config import SpeculationConfig
from ziphius.models.config import ModelConfig
from ziphius.models.model import Model
from ziphius.models.presets import derive, get_preset
from ziphius.ops.sampling_config import SamplingConfig
from ziphius.tasks import get_task
from ziphius.text.chat import Message, get_chat_format
from ziphius.text.tokenizer import Tokenizer

TURNS, USER_TOKENS, ANSWER_TOKENS = 10, 48, 80
CONCURRENCY = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256)
BOUND_MS = 10.0
"""For the median step of `gates`."""


def main() -> None:
    """Measure one claim, print it, and write it beside the others."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("claim", choices=("turns", "gates", "mtp"))
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=128, help="of an answer, for mtp")
    parser.add_argument("--out", type=Path, default=Path("bench/results/engine_claims.json"))
    options = parser.parse_args()
    if options.claim == "mtp" and options.folder is None:
        parser.error("mtp needs the folder of a model that was trained with MTP layers")
    keep_freed_memory()
    found = {"turns": measure_turns, "gates": measure_gates, "mtp": measure_mtp}[options.claim](
        options
    )
    found = {
        "command": " ".join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "machine": machine.describe(),
        "rounds": options.rounds,
        **found,
    }
    print(json.dumps(found, indent=1))
    everything = json.loads(options.out.read_text()) if options.out.exists() else {}
    everything[options.claim] = found
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(everything, indent=1) + "\n")


def timed(engine: Engine, requests: Sequence[Request]) -> tuple[list[float], list[list[int]]]:
    """Run requests that come at once; return the time of each step, and their tokens."""
    rows = {engine.add(request): row for row, request in enumerate(requests)}
    tokens: list[list[int]] = [[] for _ in requests]
    start, ends = time.perf_counter(), []
    while engine.has_work:
        outputs = engine.step()
        if outputs:
            ends.append(time.perf_counter() - start)
        for output in outputs:
            assert output.error is None, output.error
            if output.token_id is not None:
                tokens[rows[output.request_id]].append(output.token_id)
    return ends, tokens


def drawn(chance: random.Random, vocab_size: int, count: int) -> list[int]:
    """Draw token ids, none of the first few, which begin or end a text."""
    return [chance.randrange(8, vocab_size) for _ in range(count)]


def random_model(config: ModelConfig) -> Model:
    """Draw a model of a shape."""
    model = Model(config)
    model.initialize(seed=0)
    return model.eval()


def measure_turns(options: argparse.Namespace) -> dict[str, Any]:
    """Chat for ten turns of the same lengths, with the prefix cache and without (claim Q6)."""
    if options.folder is None:
        name, model = "bench-v3, random", random_model(get_preset("bench-v3"))
    else:
        name, model = options.folder, load_for_inference(options.folder).model
    engines = {
        arm: build_engine(model, EngineConfig(max_num_seqs=4, prefix_caching=arm == "cached"))
        for arm in ("cached", "uncached")
    }
    found: dict[str, list[list[float]]] = {arm: [[] for _ in range(TURNS)] for arm in engines}
    same = True
    for turn_of_arms in range(1 + options.rounds):
        chance = random.Random(turn_of_arms)
        asked = [drawn(chance, model.config.vocab_size, USER_TOKENS) for _ in range(TURNS)]
        texts: dict[str, list[int]] = {arm: [] for arm in engines}
        for turn, user in enumerate(asked):
            for arm, engine in engines.items():
                texts[arm] += user
                times, [answer] = timed(engine, [Request(list(texts[arm]), ANSWER_TOKENS)])
                texts[arm] += answer
                if turn_of_arms:
                    found[arm][turn].append(1e3 * times[0])
        same &= texts["cached"] == texts["uncached"]
    ttft = {arm: [statistics.median(turn) for turn in turns] for arm, turns in found.items()}
    ratios = [
        uncached / cached for uncached, cached in zip(ttft["uncached"], ttft["cached"], strict=True)
    ]
    return {
        "model": name,
        "user_tokens": USER_TOKENS,
        "answer_tokens": ANSWER_TOKENS,
        "prompt_tokens_by_turn": [
            turn * (USER_TOKENS + ANSWER_TOKENS) + USER_TOKENS for turn in range(TURNS)
        ],
        "ttft_ms": {arm: [round(value, 2) for value in values] for arm, values in ttft.items()},
        "uncached_over_cached": [round(ratio, 2) for ratio in ratios],
        "same_tokens": same,
    }


def gate_shapes() -> dict[str, ModelConfig]:
    """Give the same widths, experts and experts per token the gates of V3, V2 and V2-Lite."""
    v3 = get_preset("bench-v3")
    softmax = {
        "model_type": "deepseek_v2",
        "scoring_func": "softmax",
        "norm_topk_prob": False,
        "routed_scaling_factor": 0.75 * v3.n_routed_experts / v3.num_experts_per_tok,
    }
    return {
        "V2 (softmax, best groups)": derive(v3, topk_method="group_limited_greedy", **softmax),
        "V2-Lite (softmax)": derive(v3, topk_method="greedy", n_group=1, topk_group=1, **softmax),
        "V3 (sigmoid, bias, best groups)": v3,
    }


def measure_gates(options: argparse.Namespace) -> dict[str, Any]:
    """Run the same widths under three gates (claim Q5: 128 to 89 ms, 215 to 342 tokens/s, x2)."""
    settings = EngineConfig(
        max_num_seqs=max(CONCURRENCY), max_num_batched_tokens=8_192, prefix_caching=False
    )
    shapes = gate_shapes()
    engines = {
        name: build_engine(random_model(config), settings) for name, config in shapes.items()
    }
    vocab_size = get_preset("bench-v3").vocab_size
    values: dict[str, dict[str, list[float]]] = {name: {} for name in engines}
    for turn in range(1 + options.rounds):
        chance = random.Random(turn)
        for count in CONCURRENCY:
            requests = [Request(drawn(chance, vocab_size, 32), 64) for _ in range(count)]
            for name, engine in engines.items():
                times, _ = timed(engine, requests)
                steps = [b - a for a, b in pairwise(times)]
                step_ms = 1e3 * statistics.median(steps)
                if turn:
                    values[name].setdefault(f"step_ms at {count}", []).append(step_ms)
        prompt = drawn(chance, vocab_size, 512)
        for name, engine in engines.items():
            [first], _ = timed(engine, [Request(prompt, 1)])
            if turn:
                values[name].setdefault("ttft_ms, 512 tokens", []).append(1e3 * first)
    rows = {
        name: {what: statistics.median(found) for what, found in figures.items()}
        for name, figures in values.items()
    }
    for row in rows.values():
        row["tokens_per_s at 8"] = 8e3 / row["step_ms at 8"]
        kept = [count for count in CONCURRENCY if row[f"step_ms at {count}"] <= BOUND_MS]
        row[f"most at once within {BOUND_MS:g} ms"] = max(kept, default=0)
    old, new = next(iter(rows)), list(rows)[-1]
    return {
        "rows": {
            name: {what: round(value, 3) for what, value in row.items()}
            for name, row in rows.items()
        },
        "V3_over_V2": {
            what: round(rows[new][what] / rows[old][what], 3)
            for what in rows[new]
            if rows[old][what]
        },
    }


def held_out_prompts(tokenizer: Tokenizer, count: int) -> list[Prompt]:
    """Encode held-out problems of the two tasks that the main job teaches."""
    assert tokenizer.chat_format is not None, "a fine-tuned model is wanted"
    chat_format = get_chat_format(tokenizer.chat_format)
    asked = [
        problem
        for task, level in (("subset_sum", 1), ("coin_change", 1))
        for problem in get_task(task).problems("validation", level, -(-count // 2))
    ]
    return [
        chat_prompt([Message("user", problem.question)], tokenizer, chat_format, thinking=True)
        for problem in asked[:count]
    ]


def measure_mtp(options: argparse.Namespace) -> dict[str, Any]:
    """Decode with 0 to 3 drafts of the MTP layer (claim A3: 3.2 times; published 1.8 times)."""
    loaded = load_for_inference(options.folder)
    assert loaded.tokenizer is not None
    prompts = held_out_prompts(loaded.tokenizer, 16)
    engines = {
        "no drafts": build_engine(loaded.model, EngineConfig()),
        **{
            f"{count} drafts": build_engine(
                loaded.model,
                EngineConfig(
                    speculation=SpeculationConfig(
                        method="mtp", num_speculative_tokens=count, adaptive=False
                    )
                ),
            )
            for count in (1, 2, 3)
        },
        "adaptive": build_engine(
            loaded.model, EngineConfig(speculation=SpeculationConfig(method="mtp"))
        ),
    }
    result: dict[str, Any] = {"model": options.folder, "settings": {}}
    for at_once in (1, 8):
        for temperature in (0.0, 1.0):
            result["settings"][f"{at_once} at once, temperature {temperature:g}"] = _drafted(
                engines, prompts, at_once, temperature, options
            )
    result["runners"] = {
        name: engine.not_native or "native program" for name, engine in engines.items()
    }
    return result


def _drafted(
    engines: Mapping[str, Engine],
    prompts: Sequence[Prompt],
    at_once: int,
    temperature: float,
    options: argparse.Namespace,
) -> dict[str, dict[str, Any]]:
    """Answer all prompts, some of them at once, with every engine in turn."""
    sampling = SamplingConfig(temperature=temperature, seed=1)
    requests = [
        Request(prompt.ids, options.new_tokens, row, sampling, prompt.stop_ids)
        for row, prompt in enumerate(prompts)
    ]
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    rows: dict[str, dict[str, Any]] = {}
    reference: list[list[int]] | None = None
    for turn in range(1 + options.rounds):
        # A salt of their own, so that no prompt is found in the prefix cache.
        fresh = [replace(request, cache_salt=f"{turn}") for request in requests]
        for name, engine in engines.items():
            before = engine.metrics()
            spent, tokens = 0.0, []
            for first in range(0, len(fresh), at_once):
                times, answers = timed(engine, fresh[first : first + at_once])
                spent += times[-1] - times[0]
                tokens += answers
            reference = reference or tokens
            assert tokens == reference, f"{name} says something else"
            if not turn:
                continue
            seconds[name].append(spent)
            rows[name] = _acceptance(before, engine.metrics(), tokens, len(fresh) // at_once)
    for name, row in rows.items():
        ratios = [
            none / some for none, some in zip(seconds["no drafts"], seconds[name], strict=True)
        ]
        row["tokens_per_s"] = round(row["new_tokens"] / statistics.median(seconds[name]), 1)
        row["speed_over_no_drafts"] = round(statistics.median(ratios), 3)
    return rows


def _acceptance(
    before: Mapping[str, Any], after: Mapping[str, Any], tokens: list[list[int]], batches: int
) -> dict[str, Any]:
    """Say how many tokens a forward gave, and how often the draft at each place was right."""
    new_tokens = sum(map(len, tokens))
    steps = after["num_steps"] - before["num_steps"] - batches
    row: dict[str, Any] = {"new_tokens": new_tokens, "decoding_steps": steps}
    row["tokens_per_step"] = round((new_tokens - len(tokens)) / max(1, steps), 3)
    if "spec_decode_num_drafts" in after:
        name = "spec_decode_num_accepted_tokens_per_pos"
        rounds = after["spec_decode_num_drafts"] - before["spec_decode_num_drafts"]
        accepted = [b - a for a, b in zip(before[name], after[name], strict=True)]
        row["accepted_by_place"] = [round(count / max(1, rounds), 3) for count in accepted]
        row["tokens_per_forward_of_a_sequence"] = round(1 + sum(accepted) / max(1, rounds), 3)
    return row


if __name__ == "__main__":
    main()
