"""An engine around a model: its cache, its runner and its sampler."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ziphius.core.errors import ConfigError
from ziphius.core.memory import free_bytes, refuse_too_large
from ziphius.engine.adapters import AdapterRunner, AdapterStore, MixedTorchRunner
from ziphius.engine.config import EngineConfig
from ziphius.engine.drafts import Target, build_proposer
from ziphius.engine.drafts.proposer import Proposer
from ziphius.engine.engine import Engine
from ziphius.engine.limits import Limits
from ziphius.engine.native_runner import (
    NativeRunner,
    refuse_other_devices,
    refuse_other_numbers,
    write_program,
)
from ziphius.engine.runner import Runner, TorchRunner
from ziphius.engine.sampler import BatchSampler
from ziphius.models.attention_spec import CacheSpec, cache_specs
from ziphius.models.cache import PagedCache, token_bytes
from ziphius.models.config import ModelConfig
from ziphius.models.fingerprint import model_fingerprint
from ziphius.models.model import Model
from ziphius.models.offload import expert_cache
from ziphius.ops.native.program_builder import NotNative, Program

CACHE_DTYPES = {"bfloat16": torch.bfloat16, "int8": torch.int8, "fp8": torch.float8_e4m3fn}
"""By `EngineConfig.cache_dtype`, which `auto` leaves to the weights."""


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch off training behaviour inside the block; afterwards each module is as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def limits_of(model: Model) -> Limits:
    """Return what a model can be asked."""
    return Limits(model.config.max_position_embeddings, model.config.vocab_size)


def build_engine(
    model: Model,
    config: EngineConfig,
    *,
    vocab_limit: int | None = None,
    record_routes: bool = False,
    adapters: AdapterStore | None = None,
    draft_model: Model | None = None,
) -> Engine:
    """Give a model an engine.

    Args:
        model: shared, not copied; in evaluation mode and not trained while a step runs.
        config: limits; without `num_blocks` the cache is as large as it is useful, or as a quarter
            of the free memory.
        vocab_limit: tokens the tokenizer knows. Published embeddings are padded past them (V3:
            129,280 rows for 128,815 tokens); such ids are never drawn, and log-probabilities still
            count them.
        record_routes: return with a sequence's last token the experts of all.
        adapters: of this model, that requests may name; more can be added later.
        draft_model: of `config.speculation`, if its method is `model`; in evaluation mode.

    Raises:
        ConfigError: settings that exclude each other, or a method of speculation that does not suit
            the model or the draft model.
    """
    _refuse_together(config, adapters, draft_model, record_routes)
    device = model.model.embed_tokens.weight.device
    cache = new_cache(model, config, draft_model)
    proposer = _proposer(model, cache, config, draft_model)
    runner, not_native = build_runner(
        model,
        cache,
        record_routes=record_routes,
        return_hidden=proposer is not None and proposer.needs_hidden,
        takes_adapters=adapters is not None,
    )
    kind = type(runner).__name__
    if adapters is not None:
        runner = _adapter_runner(runner, model, adapters, record_routes)
    engine = Engine(
        runner,
        cache,
        BatchSampler(vocab_limit),
        config,
        limits_of(model),
        proposer=proposer,
        device=device,
        adapters=adapters,
        not_native=not_native,
    )
    parts = (part for part in (adapters, expert_cache(model)) if part is not None)
    engine.figures += [part.metrics for part in parts]
    if config.disk_cache is not None:
        folder, size = config.disk_cache, config.disk_cache_bytes
        engine.keep_on_disk(folder, size, model=model_fingerprint(model), runner=kind)
    return engine


def _adapter_runner(
    plain: Runner, model: Model, adapters: AdapterStore, record_routes: bool
) -> AdapterRunner:
    if isinstance(plain, NativeRunner):
        return AdapterRunner(plain, plain, adapters)
    return AdapterRunner(plain, MixedTorchRunner(model, record_routes=record_routes), adapters)


def _proposer(
    model: Model, cache: PagedCache, config: EngineConfig, draft_model: Model | None
) -> Proposer | None:
    """Make what guesses tokens ahead, if the config asks for it."""
    if config.speculation is None:
        return None
    target = Target(
        model, cache, config.max_num_batched_tokens, lambda *pair: build_runner(*pair)[0]
    )
    return build_proposer(config.speculation, target, draft_model)


def _refuse_together(
    config: EngineConfig,
    adapters: AdapterStore | None,
    draft_model: Model | None,
    record_routes: bool,
) -> None:
    """Raise for settings that exclude each other."""
    if record_routes and config.disk_cache is not None:
        raise ConfigError("routes are not kept on disk: record them without disk_cache.")
    if adapters is not None and config.speculation is not None:
        raise ConfigError("drafts know no adapters: leave out either speculation or adapters.")
    if draft_model is not None and config.speculation is None:
        raise ConfigError("a draft model would have no effect without speculation")


def new_cache(model: Model, config: EngineConfig, draft_model: Model | None = None) -> PagedCache:
    """Make the cache of an engine, in the numbers of the weights or those of `cache_dtype`.

    Args:
        model: that the engine runs.
        config: of the engine; without `num_blocks` what is free decides.
        draft_model: for whose cache room is left.

    Raises:
        DeviceError: not even one sequence fits.
    """
    embedding = model.model.embed_tokens.weight
    dtype = CACHE_DTYPES.get(config.cache_dtype, embedding.dtype)
    specs = _specs(model.config, config)
    block_bytes = token_bytes(specs, dtype) * config.block_size
    if draft_model is not None:
        own = cache_specs(draft_model.config), draft_model.model.embed_tokens.weight.dtype
        block_bytes += token_bytes(*own) * config.block_size
    return PagedCache(
        specs,
        config.num_blocks or _default_blocks(model.config, config, block_bytes, embedding.device),
        config.block_size,
        dtype=dtype,
        device=embedding.device,
        read_dtype=embedding.dtype,
    )


def _specs(model: ModelConfig, config: EngineConfig) -> list[CacheSpec]:
    """Say what is cached: of the MTP layers at most the first, and that only to draft with."""
    drafts = config.speculation is not None and config.speculation.method == "mtp"
    return cache_specs(model)[: model.num_hidden_layers + drafts]


def build_runner(
    model: Model,
    cache: PagedCache,
    *,
    record_routes: bool = False,
    return_hidden: bool = False,
    takes_adapters: bool = False,
) -> tuple[Runner, str | None]:
    """Return the native program of a model; where it has none the module tree, and why."""
    try:
        refuse_other_numbers(model)
        native_runner = NativeRunner(
            model,
            cache,
            record_routes=record_routes,
            return_hidden=return_hidden,
            takes_adapters=takes_adapters,
        )
        return native_runner, None
    except NotNative as reason:
        runner = TorchRunner(model, record_routes=record_routes, return_hidden=return_hidden)
        return runner, str(reason)


def packed_program(
    model: Model, dtype: torch.dtype, arena: Tensor | None = None
) -> tuple[Program | None, str | None]:
    """Pack a model's weights, or say why no native program computes it.

    Args:
        model: whose weights are read.
        dtype: what products multiply in.
        arena: memory of an earlier program of the model, to be used again.
    """
    try:
        refuse_other_devices(model)
        return write_program(model, dtype, arena), None
    except NotNative as reason:
        return None, str(reason)


def _default_blocks(
    model: ModelConfig, config: EngineConfig, block_bytes: int, device: torch.device
) -> int:
    """Return how many blocks all sequences can fill, or what a quarter of the memory has room for.

    Raises:
        DeviceError: not even one sequence fits.
    """
    blocks_each = -(-model.max_position_embeddings // config.block_size)
    most = blocks_each * config.max_num_seqs
    free = free_bytes(device)
    if free is None:
        return most
    refuse_too_large("One block of the cache", block_bytes, device)
    return max(1, min(most, free // 4 // block_bytes))
