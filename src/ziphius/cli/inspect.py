"""`ziphius inspect`: what a model is and what it costs, from its config alone."""

import json
from dataclasses import asdict
from typing import Annotated

import tyro
from pydantic import Field
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from ziphius.cli.options import AsJson
from ziphius.core.config import Config
from ziphius.core.errors import ConfigError
from ziphius.core.files import existing_path
from ziphius.models.adapter_cost import AdapterMemory, adapter_memory
from ziphius.models.config import ModelConfig
from ziphius.models.cost import Dtype, ModelCost, model_cost
from ziphius.models.presets import PRESETS

DEFAULT_CONTEXT = 4_096


class InspectConfig(Config):
    """What `ziphius inspect` needs to know."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PRESET|FOLDER|GGUF")]
    """A preset, a model folder or a .gguf file."""
    batch: Annotated[int, Field(ge=1)] = 1
    """Sequences held in memory at once."""
    context: Annotated[
        Annotated[int, Field(ge=1)] | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")
    ] = None
    """Tokens of each sequence; by default 4,096, or what the model reaches if that is less."""
    dtype: Dtype = "bfloat16"
    """Data type of weights and cache; training keeps float32 masters beside smaller ones, but below
    adapters, where weights stay as they are."""
    lora_rank: Annotated[int, Field(ge=1)] = 16
    """Rank of adapters on all projections, of which the memory to train them is told."""
    as_json: AsJson = False
    """Print the result as one JSON document."""


def inspect(config: InspectConfig) -> None:
    """Show a model's parameters, FLOPs, cache bytes, and the memory to train and to serve it.

    Nothing is built or loaded; of a folder or file only the description is read.

    Example:
        ziphius inspect v3
        ziphius inspect v3 --batch 32 --context 131072
        ziphius inspect path/to/model --json
    """
    model = _find_config(config.model)
    context = config.context or min(DEFAULT_CONTEXT, model.max_position_embeddings)
    result = model_cost(model, batch=config.batch, context=context, dtype=config.dtype)
    adapters = adapter_memory(
        model, tokens=config.batch * context, dtype=config.dtype, rank=config.lora_rank
    )
    if config.as_json:
        data = {
            "model": config.model,
            "config": model.model_dump(mode="json"),
            **asdict(result),
            "adapters": asdict(adapters),
        }
        print(json.dumps(data, indent=2))
        return
    console = Console()
    for table in (
        _shape_table(config.model, model),
        _parameter_table(result),
        _flops_table(result),
        _cache_table(result),
        _memory_table(result, adapters),
    ):
        console.print(table)


def _find_config(name: str) -> ModelConfig:
    """Read a path that exists, else take the preset of that name."""
    path = existing_path(name)
    if path is not None:
        # Imports torch, which a preset does not need.
        from ziphius.models.weights import read_model_config

        return read_model_config(path)
    if name not in PRESETS:
        raise ConfigError(
            f"{name!r}: there is no such folder or file, and no preset of that name. "
            f"Presets: {', '.join(PRESETS)}."
        )
    return PRESETS[name]


def _shape_table(name: str, model: ModelConfig) -> Table:
    table = Table(Column("shape", no_wrap=True), "", title=escape(name))
    table.add_row("architecture", model.model_type)
    table.add_row("layers", _layers(model))
    table.add_row("hidden size", f"{model.hidden_size:,}")
    table.add_row("vocabulary", f"{model.vocab_size:,}" + ", tied" * model.tie_word_embeddings)
    table.add_row("attention", _attention(model))
    if model.n_routed_experts:
        table.add_row("experts", _experts(model))
    table.add_row("dense width", f"{model.intermediate_size:,}")
    table.add_row("longest context", f"{model.max_position_embeddings:,} tokens, {_rope(model)}")
    return table


def _layers(model: ModelConfig) -> str:
    layers = range(model.num_hidden_layers)
    experts = sum(map(model.is_expert_layer, layers))
    text = f"{len(layers)}: {len(layers) - experts} dense, {experts} with experts"
    mtp_layers = model.num_nextn_predict_layers
    return text + (f"; {mtp_layers} for MTP" if mtp_layers else "")


def _attention(model: ModelConfig) -> str:
    heads = f"{model.num_attention_heads} heads of {model.q_head_dim}"
    if model.attention == "mla":
        query = f"query latent {model.q_lora_rank}" if model.q_lora_rank else "direct query"
        cached = f"cached latent {model.kv_lora_rank} + {model.qk_rope_head_dim}"
        return f"latent, {heads}, {query}, {cached}"
    return f"grouped, {heads}, {model.num_key_value_heads} for keys and values"


def _experts(model: ModelConfig) -> str:
    chosen = f"{model.num_experts_per_tok} of {model.n_routed_experts}"
    groups = f" from {model.topk_group} of {model.n_group} groups" if model.n_group > 1 else ""
    shared = f", {model.n_shared_experts} shared" if model.n_shared_experts else ""
    return f"{chosen}{groups}{shared}, width {model.moe_intermediate_size:,}, {model.topk_method}"


def _rope(model: ModelConfig) -> str:
    scaling = model.rope_scaling
    stretched = f", {scaling.type} x {scaling.factor:g}" if scaling else ""
    return f"RoPE base {model.rope_theta:,.0f}{stretched}"


def _parameter_table(result: ModelCost) -> Table:
    table = _table("parameters", "count", "", "share")
    counts = result.parameters
    for part in (
        "embedding",
        "head",
        "attention",
        "dense_layers",
        "routed_experts",
        "shared_experts",
        "routers",
        "norms",
    ):
        count = getattr(counts, part)
        share = f"{count / counts.main:.1%}"
        table.add_row(part.replace("_", " "), f"{count:,}", _human(count), share)
    table.add_section()
    for label, count in (
        ("all", counts.main),
        ("active per token", counts.active),
        ("active without embedding", counts.active_without_embedding),
        ("active without embedding, head", counts.active_trunk),
        ("MTP layers, in addition", counts.mtp),
        ("  active per token", counts.mtp_active),
        ("router biases, in addition", counts.router_biases),
    ):
        table.add_row(label, f"{count:,}", _human(count), f"{count / counts.main:.1%}")
    return table


def _flops_table(result: ModelCost) -> Table:
    table = _table(f"FLOP per token, context {result.context:,}", "")
    for label, count in (
        ("training", result.flops.training),
        ("training, MTP layers", result.flops.training_mtp),
        ("prefill", result.flops.prefill),
        ("decode", result.flops.decode),
    ):
        table.add_row(label, f"{_human(count)}FLOP".replace(" B", " G"))
    return table


def _cache_table(result: ModelCost) -> Table:
    title = f"cache, {result.dtype}"
    table = _table(title, "per token", f"{result.batch:,} x {result.context:,} tokens", "of MHA")
    cache = result.cache_bytes
    tokens = result.batch * result.context
    for label, size in (
        ("this model", cache.own),
        ("MHA: every head", cache.mha),
        ("GQA: 8 groups", cache.gqa),
        ("MQA: one", cache.mqa),
    ):
        row = (f"{size:,} B", _human_bytes(size * tokens), f"{size / cache.mha:.1%}")
        table.add_row(label, *row)
    return table


def _memory_table(result: ModelCost, adapters: AdapterMemory) -> Table:
    shape = f"{result.batch:,} x {result.context:,} tokens"
    table = _table(f"memory (estimate), {shape}", result.dtype)
    memory = result.memory
    for label, size in (
        ("serve", memory.serve),
        ("  weights", memory.weights),
        ("  cache", memory.cache),
        ("  working set of a prefill", memory.working),
        ("  on a CPU besides, packed", memory.packed),
        ("train with AdamW", memory.train),
        ("  float32 masters and copies", memory.masters),
        ("  gradients", memory.gradients),
        ("  moments", memory.moments),
        ("  activations", memory.activations),
        ("  libraries, loss and holes", memory.runtime),
        (f"train adapters of rank {adapters.rank}", adapters.train),
        (f"  weights, frozen in {result.dtype}", adapters.frozen),
        (f"  {_human(adapters.parameters).strip()} adapters, AdamW", adapters.adapters),
        ("  activations", adapters.activations),
        ("  libraries, loss and holes", adapters.runtime),
    ):
        table.add_row(label, _human_bytes(size))
    return table


def _table(first: str, *others: str) -> Table:
    columns = (Column(title, justify="right", no_wrap=True) for title in others)
    return Table(Column(first, no_wrap=True), *columns)


def _human(count: float) -> str:
    """Write 671026404352 as 671.03 B."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:.0f} "


def _human_bytes(size: int) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:,.2f} {unit}"
    return f"{size} B"
