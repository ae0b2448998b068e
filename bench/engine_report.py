"""What the engine benchmark makes of its figures: medians, ratios, slopes and a table."""

import statistics
from collections.abc import Sequence
from typing import Any

from engine_cells import Cell
from engine_load import Answer

Values = dict[str, dict[str, list[dict[str, float]]]]
"""By cell and arm: the figures of each round."""

BARS: dict[str, dict[str, dict[str, float]]] = {
    "bench-v3": {
        "decode 1": {"transformers": 20.0, "vllm": 8.0},
        "decode 8": {"transformers": 10.0, "vllm": 3.0},
        "decode 32": {"transformers": 6.0, "vllm": 1.7},
        "prefill 1x512": {"vllm": 1.0},
        "prefill 1x2048": {"vllm": 1.0},
        "prefill 8x512": {"vllm": 1.0},
        "rollout 64x64": {"vllm": 2.0},
        "context 16384": {"transformers": 40.0},
    },
    "smollm2": {
        "prefill 1x512": {"vllm": 1.0},
        "prefill 1x2048": {"vllm": 1.0},
        "decode 1": {"vllm": 1.0, "llama.cpp": 1.0},
        "decode 8": {"vllm": 1.0},
        "decode 32": {"vllm": 1.0},
    },
}
"""How many times as fast as a peer's best arm our best arm is to be."""

STAGGERED_BAR = 0.85
"""Tokens a second with staggered arrivals over those of one static batch, at least."""


def summary(values: Values) -> dict[str, dict[str, dict[str, Any]]]:
    """Give the median of every figure over the rounds, and its least and greatest."""
    return {
        cell: {arm: _row(rounds) for arm, rounds in arms.items() if rounds}
        for cell, arms in values.items()
    }


def _row(rounds: Sequence[dict[str, float]]) -> dict[str, Any]:
    row: dict[str, Any] = {"rounds": len(rounds)}
    for name in rounds[0]:
        found = [figures[name] for figures in rounds]
        row[name] = _short(statistics.median(found))
        row[f"{name}_spread"] = [_short(min(found)), _short(max(found))]
    return row


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def first_figure(row: dict[str, Any]) -> tuple[str, float]:
    """Return the figure that arms are compared by."""
    name = next(name for name in row if name != "rounds")
    return name, row[name]


def speed(cell: Cell, row: dict[str, Any]) -> float:
    """Return the first figure such that more is better."""
    _, value = first_figure(row)
    return value if cell.more_is_better else 1 / value


def ratios(
    cells: Sequence[Cell], rows: dict[str, dict[str, dict[str, Any]]], families: dict[str, str]
) -> dict[str, dict[str, float]]:
    """Divide each of our arms' speed by each peer's, and our best by each family's best."""
    found: dict[str, dict[str, float]] = {}
    for cell in cells:
        speeds = {arm: speed(cell, row) for arm, row in rows.get(cell.name, {}).items()}
        ours = {arm: value for arm, value in speeds.items() if families[arm] == "ziphius"}
        theirs = {arm: value for arm, value in speeds.items() if families[arm] != "ziphius"}
        if not ours or not theirs:
            continue
        found[cell.name] = {
            f"{arm} over {peer}": _short(ours[arm] / theirs[peer])
            for arm in ours
            for peer in theirs
        } | {
            f"best over {family}": _short(
                max(ours.values()) / max(v for arm, v in theirs.items() if families[arm] == family)
            )
            for family in sorted({families[arm] for arm in theirs})
        }
    return found


def bars(model: str, found: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Hold the ratios against what they are to be."""
    return [
        {
            "cell": cell,
            "over": peer,
            "bar": bar,
            "ratio": (ratio := found[cell][f"best over {peer}"]),
            "reached": ratio >= bar,
        }
        for cell, peers in BARS[model].items()
        for peer, bar in peers.items()
        if f"best over {peer}" in found.get(cell, {})
    ]


def staggered(rows: dict[str, dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Divide the tokens a second of staggered arrivals by those of one static batch."""
    static, mixed = rows.get("static batch", {}), rows.get("staggered", {})
    return {
        arm: {
            "ratio": (ratio := _short(mixed[arm]["tokens_per_s"] / static[arm]["tokens_per_s"])),
            "reached": ratio >= STAGGERED_BAR,
        }
        for arm in mixed
        if arm in static
    }


def slopes(
    rows: dict[str, dict[str, dict[str, Any]]],
    cache_bytes: dict[str, int],
    bytes_per_s: float,
) -> dict[str, dict[str, float]]:
    """Fit what a step costs by its context: microseconds a token, and the cache's bytes in it.

    Args:
        rows: of all cells.
        cache_bytes: by arm, where it is known: what a token of context takes in the cache.
        bytes_per_s: that the machine reads at most.
    """
    steps: dict[str, list[tuple[float, float]]] = {}
    for cell, arms in rows.items():
        if cell.startswith("context "):
            for arm, row in arms.items():
                steps.setdefault(arm, []).append((float(cell.split()[1]), row["step_ms"]))
    found = {}
    for arm, points in steps.items():
        if len(points) < 2:
            continue
        slope = statistics.linear_regression(*zip(*points, strict=True)).slope
        found[arm] = {"us_per_context_token": _short(1e3 * slope)}
        if arm in cache_bytes and slope > 0:
            rate = cache_bytes[arm] / (1e-3 * slope)
            found[arm] |= {
                "cache_bytes_per_token": cache_bytes[arm],
                "cache_gb_per_s": _short(rate / 1e9),
                "share_of_bandwidth": _short(rate / bytes_per_s),
            }
    return found


def weight_shares(
    rows: dict[str, dict[str, Any]], weight_bytes: dict[str, int], bytes_per_s: float
) -> dict[str, float]:
    """Return what share of the memory's bandwidth the weights of a step at one request take.

    Args:
        rows: of the cell `decode 1`, by arm.
        weight_bytes: by arm, where it is known: bytes of the weights that every step reads.
        bytes_per_s: that the machine reads at most.
    """
    return {
        arm: _short(row["tokens_per_s"] * weight_bytes[arm] / bytes_per_s)
        for arm, row in rows.items()
        if arm in weight_bytes
    }


def agreement(answers: dict[str, Answer], reference: str) -> dict[str, dict[str, float]]:
    """Compare greedy tokens of one job with an arm's: that all arms are the same model.

    Rounding makes rows part some time, and after that nothing is alike; the first tokens are what
    should be equal.
    """
    found = {}
    expected = answers[reference].token_ids
    for arm, answer in answers.items():
        pairs = list(zip(answer.token_ids, expected, strict=True))
        if arm != reference and -1 not in answer.token_ids[0]:
            alike = sum(a == b for mine, its in pairs for a, b in zip(mine, its, strict=True))
            found[arm] = {
                "first": _short(sum(mine[0] == its[0] for mine, its in pairs) / len(pairs)),
                "all": _short(alike / sum(len(its) for _, its in pairs)),
            }
    return found


def table(rows: dict[str, dict[str, dict[str, Any]]], arms: Sequence[str]) -> str:
    """Lay the first figures out, one line per cell."""
    units = {"tokens_per_s": "tok/s", "seconds": "s", "step_ms": "ms/step", "ttft_p50_ms": "ms"}
    widths = [max(len(arm), 9) for arm in arms]
    head = " ".join(f"{arm:>{width}}" for arm, width in zip(arms, widths, strict=True))
    lines = [f"{'':26} {head}"]
    for cell, found in rows.items():
        if not found:
            continue
        unit, _ = first_figure(next(iter(found.values())))
        values = " ".join(
            f"{first_figure(found[arm])[1]:>{width}.4g}"
            if arm in found
            else " " * (width - 1) + "-"
            for arm, width in zip(arms, widths, strict=True)
        )
        lines.append(f"{cell + ' ' + units[unit]:26} {values}")
    return "\n".join(lines)
