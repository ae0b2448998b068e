"""Find what a user names: a model folder, a .gguf file, or a preset that gets random weights."""

from typing import NamedTuple

import torch

from ziphius.core.device import resolve_device, resolve_dtype
from ziphius.core.errors import ConfigError
from ziphius.core.files import existing_path
from ziphius.core.memory import refuse_too_large
from ziphius.models.cost import count_parameters
from ziphius.models.model import Model
from ziphius.models.presets import PRESETS, get_preset
from ziphius.models.weights import load, stored_dtype, tokenizer_path
from ziphius.text.tokenizer import Tokenizer, load_tokenizer
from ziphius.text.vocabulary import FULL_SIZE, deepseek_tokenizer

CHAT_FORMAT_OF_PRESETS: dict[str, str] = {
    "v2.5": "deepseek-v3",
    "v2": "deepseek-v2",
    "coder-v2": "deepseek-v2",
    "coder": "deepseek-coder",
    "v3.1": "deepseek-v3.1",
}
"""By the beginning of a preset's name, first match counts; others speak as R1 does."""


class Loaded(NamedTuple):
    """A model in evaluation mode with the tokenizer it speaks through."""

    model: Model
    tokenizer: Tokenizer
    is_random: bool
    """The weights are random: a preset, not a trained model."""


def load_for_inference(
    name_or_path: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    drop_mtp: bool = False,
    expert_cache: int | None = None,
) -> Loaded:
    """Load a folder or .gguf file, or build a preset with random weights.

    A path that exists comes before a preset of the same name.

    Args:
        name_or_path: what the user typed.
        device: a word that `resolve_device` knows.
        dtype: a word that `resolve_dtype` knows.
        drop_mtp: see `weights.load`; an error with a preset, where it would do nothing.
        expert_cache: likewise.
    """
    place = resolve_device(device)
    path = existing_path(name_or_path)
    if path is not None:
        numbers = resolve_dtype(dtype, place, stored_dtype(path))
        model = load(
            path, dtype=numbers, device=place, drop_mtp=drop_mtp, expert_cache=expert_cache
        )
        return Loaded(model, load_tokenizer(tokenizer_path(path)), is_random=False)
    if name_or_path not in PRESETS:
        raise ConfigError(
            f"{name_or_path!r}: there is no such folder or file, and no preset of that name. "
            f"Presets: {', '.join(PRESETS)}."
        )
    if expert_cache is not None:
        raise ConfigError(
            f"expert_cache has no effect: {name_or_path} is a preset, and no folder that experts "
            "could be read from."
        )
    if drop_mtp:
        raise ConfigError(f"drop_mtp has no effect: {name_or_path} is a preset, not a checkpoint.")
    return load_preset(name_or_path, device=place, dtype=resolve_dtype(dtype, place))


def load_preset(
    name: str, *, device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Loaded:
    """Build a preset with random weights, after a look at the free memory.

    Weights are drawn in float32 on the CPU, so that the same seed gives the same model everywhere.
    The tokenizer is the DeepSeek vocabulary, cut to the rows of the embedding, with the chat format
    that the published model of this make was trained on.
    """
    config = get_preset(name)
    counts = count_parameters(config)
    size = counts.main + counts.mtp
    what = f"To draw the {size:,} random weights of {name}"
    refuse_too_large(f"{what} in float32", 4 * size, torch.device("cpu"))
    if device.type != "cpu":
        refuse_too_large(what, dtype.itemsize * size, device)
    model = Model(config)
    model.initialize(seed)
    for parameter in model.parameters():  # not model.to(dtype): the router bias stays float32
        parameter.data = parameter.data.to(dtype)
    tokenizer = deepseek_tokenizer(config.vocab_size if config.vocab_size < FULL_SIZE else None)
    spoken = (form for start, form in CHAT_FORMAT_OF_PRESETS.items() if name.startswith(start))
    tokenizer = tokenizer.with_chat_format(next(spoken, "deepseek-r1"))
    return Loaded(model.to(device).eval(), tokenizer, is_random=True)
