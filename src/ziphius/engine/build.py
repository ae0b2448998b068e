"""An engine around a model: its cache, its runner and its sampler."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from ziphius.core.errors import ConfigError
from ziphius.core.memory import free_bytes, refuse_too_large
from ziphius.engine.config import EngineConfig
from ziphius.engine.drafts import Target, build_proposer
from ziphius.engine.engine import Engine
from ziphius.engine.limits import Limits
from ziphius.engine.native_runner import NativeRunner
from ziphius.engine.runner import Runner, TorchRunner
from ziphius.engine.sampler import BatchSampler
from ziphius.models.attention_spec import CacheSpec, cache_specs
from ziphius.models.cache import PagedCache
from ziphius.models.config import ModelConfig
from ziphius.models.model import Model
from ziphius.ops.native.program import NotNative


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
        draft_model: of `config.speculation`, if its method is `model`; in evaluation mode.

    Raises:
        ConfigError: the method of speculation does not suit the model or the draft model.
    """
    embedding = model.model.embed_tokens.weight
    specs = _specs(model.config, config)
    kept = [*specs, *(cache_specs(draft_model.config) if draft_model is not None else [])]
    num_blocks = config.num_blocks or _default_blocks(kept, model.config, config, embedding)
    cache = PagedCache(
        specs, num_blocks, config.block_size, dtype=embedding.dtype, device=embedding.device
    )
    proposer = None
    if config.speculation is not None:
        target = Target(
            model, cache, config.max_num_batched_tokens, lambda *pair: build_runner(*pair)[0]
        )
        proposer = build_proposer(config.speculation, target, draft_model)
    elif draft_model is not None:
        raise ConfigError("a draft model would have no effect without speculation")
    runner, not_native = build_runner(
        model,
        cache,
        record_routes=record_routes,
        return_hidden=proposer is not None and proposer.needs_hidden,
    )
    return Engine(
        runner,
        cache,
        BatchSampler(vocab_limit),
        config,
        limits_of(model),
        proposer=proposer,
        device=embedding.device,
        not_native=not_native,
    )


def _specs(model: ModelConfig, config: EngineConfig) -> list[CacheSpec]:
    """Say what is cached: of the MTP layers at most the first, and that only to draft with."""
    drafts = config.speculation is not None and config.speculation.method == "mtp"
    return cache_specs(model)[: model.num_hidden_layers + drafts]


def build_runner(
    model: Model, cache: PagedCache, *, record_routes: bool = False, return_hidden: bool = False
) -> tuple[Runner, str | None]:
    """Return the native program of a model; where it has none the module tree, and why."""
    device = model.model.embed_tokens.weight.device
    try:
        if device.type != "cpu":
            raise NotNative(f"native programs run on a CPU, not on {device}")
        if return_hidden:
            raise NotNative("native programs do not return the hidden states that MTP drafts need")
        return NativeRunner(model, cache, record_routes=record_routes), None
    except NotNative as reason:
        runner = TorchRunner(model, record_routes=record_routes, return_hidden=return_hidden)
        return runner, str(reason)


def _default_blocks(
    specs: Sequence[CacheSpec], model: ModelConfig, config: EngineConfig, embedding: Tensor
) -> int:
    """Return how many blocks all sequences can fill, or what a quarter of the memory has room for.

    Raises:
        DeviceError: not even one sequence fits.
    """
    blocks_each = -(-model.max_position_embeddings // config.block_size)
    row = sum(spec.numbers for spec in specs)
    block_bytes = row * config.block_size * embedding.dtype.itemsize
    most = blocks_each * config.max_num_seqs
    free = free_bytes(embedding.device)
    if free is None:
        return most
    refuse_too_large("One block of the cache", block_bytes, embedding.device)
    return max(1, min(most, free // 4 // block_bytes))
