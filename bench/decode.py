"""Decoding speed of model folders, in turns, as the report of the main job measures it.

    python bench/decode.py FOLDER FOLDER ... [--out bench/results/decode.json]

The first folder is what the others are compared with.
"""

import argparse
import json
from pathlib import Path

import machine
import torch

from ziphius.evals.speed import NEW_TOKENS, PROMPT_TOKENS, ROUNDS, SEQUENCES, decode_tokens_per_s
from ziphius.models.cost import count_parameters
from ziphius.models.weights import load


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    models = [load(folder) for folder in options.folders]
    speeds = decode_tokens_per_s(models)
    rows = [
        {
            "model": str(folder),
            "parameters": count_parameters(model.config).main,
            "tokens_per_s": round(speed),
            "over_first": round(speed / speeds[0], 3),
        }
        for folder, model, speed in zip(options.folders, models, speeds, strict=True)
    ]
    shape = {"sequences": SEQUENCES, "prompt": PROMPT_TOKENS, "new": NEW_TOKENS, "rounds": ROUNDS}
    result = {"machine": machine.describe(), "shape": shape, "models": rows}
    text = json.dumps(result, indent=1)
    if options.out:
        options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    torch.set_num_threads(min(2, torch.get_num_threads()))
    main()
