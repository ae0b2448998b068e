"""`ziphius export`: any model that can be loaded, as a Hugging Face safetensors folder."""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import AfterValidator
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ziphius.cli.options import AsJson
from ziphius.core.config import Config
from ziphius.core.errors import CheckpointError, ConfigError
from ziphius.core.files import refuse_occupied

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def size_in_bytes(text: str) -> int:
    """Read a size such as 5GB, 200 MB or 1000000 (bytes); units are powers of 1000."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B?)", text.strip(), re.IGNORECASE)
    unit = match[2].upper() if match else None
    size = 0 if match is None or unit not in _UNITS else int(float(match[1]) * _UNITS[unit])
    if size < 1:
        raise ConfigError(f"max_shard_size = {text!r}: give a size such as 5GB or 200MB.")
    return size


def _checked_size(text: str) -> str:
    size_in_bytes(text)
    return text


class ExportConfig(Config):
    """What `ziphius export` needs to know."""

    model: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="MODEL")]]
    """A model folder or a .gguf file."""
    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """New folder for config.json, weights and tokenizer."""
    weight_format: Literal["bfloat16", "float32", "fp8", "fp8-ue8m0"] = "bfloat16"
    """Numbers to write; fp8 quantizes in 128x128 blocks as V3 is published, fp8-ue8m0 as V3.1."""
    max_shard_size: Annotated[str, AfterValidator(_checked_size)] = "5GB"
    """Largest size of a weight file."""
    drop_mtp: bool = False
    """Leave out the layers that predict further tokens (also where they are missing already)."""
    resize_embeddings: bool = False
    """Give the model rows for tokens that were added to its tokenizer; each begins as the mean of
    those that are there."""
    as_json: AsJson = False
    """Print the result as one JSON document."""


def export(config: ExportConfig) -> None:
    """Write a model as a Hugging Face folder with config, safetensors weights and tokenizer.

    Every tensor of the source is checked first; the folder appears whole or not at all.

    Example:
        ziphius export model.gguf out --weight-format float32
        ziphius export path/to/r1 out --weight-format bfloat16 --max-shard-size 10GB
    """
    import torch

    from ziphius.models.rebuild import resize_embeddings
    from ziphius.models.weights import load, save

    refuse_occupied(config.out)
    tokenizer = _find_tokenizer(config.model)
    # Rounding to bfloat16 while reading halves the memory and writes the same numbers. Everything
    # else goes through float32, which holds FP8 times its scale exactly.
    dtype = torch.bfloat16 if config.weight_format == "bfloat16" else torch.float32
    console = Console(stderr=True)
    with console.status(escape(f"reading {config.model}")):
        model = load(config.model, dtype=dtype, drop_mtp=config.drop_mtp)
    if config.resize_embeddings:
        if tokenizer is None:
            raise ConfigError(f"resize_embeddings has no effect: {config.model} has no tokenizer.")
        model = resize_embeddings(model, tokenizer.vocab_size)
    with console.status(escape(f"writing {config.out}")):
        save(
            model,
            config.out,
            tokenizer,
            weight_format=config.weight_format,
            max_shard_bytes=size_in_bytes(config.max_shard_size),
        )
    files = sorted(config.out.glob("*.safetensors"))
    result = {
        "path": str(config.out),
        "architecture": model.config.model_type,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weight_format": config.weight_format,
        "weight_files": len(files),
        "weight_bytes": sum(file.stat().st_size for file in files),
        "tokenizer": tokenizer is not None,
    }
    if config.as_json:
        print(json.dumps(result, indent=2))
    else:
        _print_table(result)


def _find_tokenizer(path: Path) -> Any:
    """Read the tokenizer beside the weights; a model folder may have none."""
    from ziphius.models.weights import tokenizer_path
    from ziphius.text.tokenizer import load_tokenizer

    if not path.exists():
        raise CheckpointError(f"{path} does not exist: give a model folder or a .gguf file.")
    path = tokenizer_path(path)
    if path.is_dir() and not (path / "tokenizer.json").exists():
        return None
    return load_tokenizer(path)


def _print_table(result: dict[str, Any]) -> None:
    table = Table(show_header=False)
    table.add_row("architecture", result["architecture"])
    table.add_row("parameters", f"{result['parameters']:,}")
    table.add_row("weights", f"{result['weight_format']}, {result['weight_bytes']:,} bytes")
    table.add_row("weight files", str(result["weight_files"]))
    table.add_row("tokenizer", "written" if result["tokenizer"] else "none in the source")
    console = Console()
    console.print(table)
    console.print(f"Saved in {result['path']}", markup=False, highlight=False, soft_wrap=True)
