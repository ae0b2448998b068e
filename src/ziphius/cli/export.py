"""`ziphius export`: any model that can be loaded, as a Hugging Face folder or a GGUF file."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, cast

import tyro
from pydantic import AfterValidator, model_validator
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ziphius.cli.options import AsJson
from ziphius.core.config import Config
from ziphius.core.errors import CheckpointError, ConfigError
from ziphius.core.files import refuse_existing, refuse_occupied
from ziphius.core.gguf_header import is_gguf_name
from ziphius.core.sizes import size_in_bytes

if TYPE_CHECKING:
    from ziphius.models.model import Model

FOLDER_FORMATS = ("bfloat16", "float32", "fp8", "fp8-ue8m0")
GGUF_FORMATS = ("bfloat16", "float32", "float16", "q8_0", "q4_0")
_SHARD_SIZE = "5GB"


def _checked_size(text: str) -> str:
    size_in_bytes(text, "max_shard_size")
    return text


class ExportConfig(Config):
    """What `ziphius export` needs to know."""

    model: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="MODEL")]]
    """A model folder or a .gguf file."""
    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    """New folder for config.json, weights and tokenizer, or a new file OUT.gguf for llama.cpp."""
    weight_format: Literal["bfloat16", "float32", "float16", "fp8", "fp8-ue8m0", "q8_0", "q4_0"] = (
        "bfloat16"
    )
    """Numbers to write. Folders: bfloat16, float32, or fp8 in 128x128 blocks as V3 is published
    (fp8-ue8m0: as V3.1). GGUF files: bfloat16, float32, float16, or q8_0 and q4_0 in blocks of 32,
    with embedding and head in q8_0."""
    max_shard_size: Annotated[str, AfterValidator(_checked_size)] = _SHARD_SIZE
    """Largest size of a weight file; a GGUF file is one file."""
    drop_mtp: bool = False
    """Leave out the MTP layers (also where they are missing already)."""
    resize_embeddings: bool = False
    """Give the model rows for tokens that were added to its tokenizer; each begins as the mean of
    those that are there."""
    as_json: AsJson = False
    """Print the result as one JSON document."""

    @property
    def is_gguf(self) -> bool:
        """The model becomes a GGUF file."""
        return is_gguf_name(self.out.name)

    @model_validator(mode="after")
    def _check(self) -> Self:
        known = GGUF_FORMATS if self.is_gguf else FOLDER_FORMATS
        if self.weight_format not in known:
            kind = "a GGUF file" if self.is_gguf else "a folder"
            other = "a folder" if self.is_gguf else "a name that ends in .gguf"
            raise ConfigError(
                f"weight_format = {self.weight_format}: {kind} takes {', '.join(known)}; for this "
                f"one OUT has to be {other}."
            )
        if self.is_gguf and self.max_shard_size != _SHARD_SIZE:
            raise ConfigError(
                f"max_shard_size = {self.max_shard_size} has no effect: a GGUF file is not split."
            )
        return self


def export(config: ExportConfig) -> None:
    """Write a model as a Hugging Face folder with config, weights and tokenizer, or as a GGUF file.

    Every tensor of the source is checked first; what is written appears whole or not at all.

    Example:
        ziphius export model.gguf out --weight-format float32
        ziphius export path/to/r1 out --weight-format bfloat16 --max-shard-size 10GB
        ziphius export path/to/model model-q8_0.gguf --weight-format q8_0
    """
    import torch

    from ziphius.models.rebuild import refuse_missing_rows, resize_embeddings
    from ziphius.models.weights import load, read_model_config

    (refuse_existing if config.is_gguf else refuse_occupied)(config.out)
    tokenizer = _find_tokenizer(config.model)
    # What may be refused for the tokenizer is, before a large model is read.
    if tokenizer is not None and not config.resize_embeddings:
        refuse_missing_rows(read_model_config(config.model), tokenizer.vocab_size)
    fields = _tokenizer_fields(config, tokenizer) if config.is_gguf else {}
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
        written = (
            _write_gguf(config, model, fields)
            if config.is_gguf
            else _write_folder(config, model, tokenizer)
        )
    result = {
        "path": str(config.out),
        "architecture": model.config.model_type,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weight_format": config.weight_format,
        **written,
        "tokenizer": tokenizer is not None,
    }
    if config.as_json:
        print(json.dumps(result, indent=2))
    else:
        _print_table(result)


def _write_folder(config: ExportConfig, model: "Model", tokenizer: Any) -> dict[str, Any]:
    from ziphius.models.weights import WeightFormat, save

    save(
        model,
        config.out,
        tokenizer,
        weight_format=cast(WeightFormat, config.weight_format),
        max_shard_bytes=size_in_bytes(config.max_shard_size, "max_shard_size"),
    )
    files = sorted(config.out.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    return {"weight_files": len(files), "weight_bytes": size}


def _tokenizer_fields(config: ExportConfig, tokenizer: Any) -> dict[str, Any]:
    from ziphius.models.weights import read_model_config

    if tokenizer is None:
        raise CheckpointError(
            f"{config.model} holds no tokenizer, which a GGUF file carries: put its tokenizer.json "
            "there."
        )
    rows = read_model_config(config.model).vocab_size
    if config.resize_embeddings:
        rows = max(rows, tokenizer.vocab_size)
    fields: dict[str, Any] = tokenizer.gguf_fields(rows)
    return fields


def _write_gguf(config: ExportConfig, model: "Model", fields: dict[str, Any]) -> dict[str, Any]:
    from ziphius.models.weights import GgufFormat, save_gguf

    weight_format = cast(GgufFormat, config.weight_format)
    tensors = save_gguf(model, config.out, fields, weight_format=weight_format)
    size = config.out.stat().st_size
    return {"weight_files": 1, "weight_bytes": size, "tensors": tensors}


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
    if "tensors" in result:
        table.add_row("tensors", ", ".join(f"{n} {kind}" for kind, n in result["tensors"].items()))
    table.add_row("tokenizer", "written" if result["tokenizer"] else "none in the source")
    console = Console()
    console.print(table)
    console.print(f"Saved in {result['path']}", markup=False, highlight=False, soft_wrap=True)
