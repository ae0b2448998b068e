"""The models of the engine benchmark, written by this project in the formats that peers read."""

from pathlib import Path
from typing import NamedTuple

import torch

from ziphius.core.assets import fetch
from ziphius.models.config import ModelConfig
from ziphius.models.model import Model
from ziphius.models.presets import derive, get_preset
from ziphius.models.weights import GgufFormat, load, read_model_config, save, save_gguf
from ziphius.text.tokenizer import Tokenizer

SMOLLM2 = "smollm2-135m-instruct"
MAX_LENGTH = {"bench-v3": 16_512, "smollm2": 4_096}


class Written(NamedTuple):
    """One set of weights on disk."""

    config: ModelConfig
    folder: Path
    """config.json and safetensors, float32."""
    ggufs: dict[str, Path]
    """By number format."""


def write_models(name: str, preset: str, folder: Path) -> Written:
    """Write a model where it is not yet: `bench-v3` (random weights of a preset) or `smollm2`."""
    folder.mkdir(parents=True, exist_ok=True)
    return _smollm2(folder) if name == "smollm2" else _random(preset, folder)


def _random(preset: str, folder: Path) -> Written:
    place = folder / f"{preset}-{MAX_LENGTH['bench-v3']}"
    config = derive(get_preset(preset), max_position_embeddings=MAX_LENGTH["bench-v3"])
    if not place.exists():
        model = Model(config)
        model.initialize(seed=0)
        save(model, place)
    return Written(config, place, {})


def _smollm2(folder: Path) -> Written:
    place, shipped = folder / "smollm2", fetch(SMOLLM2)
    formats: tuple[GgufFormat, ...] = ("float32", "bfloat16")
    ggufs: dict[str, Path] = {name: folder / f"smollm2-{name}.gguf" for name in formats}
    files = (place, *ggufs.values())
    if not all(file.exists() for file in files):
        model, tokenizer = load(shipped, dtype=torch.float32), Tokenizer.from_gguf(shipped)
        if not place.exists():
            save(model, place)
        fields = tokenizer.gguf_fields(model.config.vocab_size)
        for name in formats:
            if not ggufs[name].exists():
                save_gguf(model, ggufs[name], fields, weight_format=name)
    return Written(read_model_config(place), place, ggufs | {"q4_1": shipped})
