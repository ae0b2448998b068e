"""Who guesses the next tokens: one file per proposer."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ziphius.core.errors import ConfigError
from ziphius.engine.drafts.model import ModelProposer
from ziphius.engine.drafts.mtp import MtpProposer, build_mtp_runner
from ziphius.engine.drafts.ngram import MOST_TOKENS, NgramProposer
from ziphius.engine.drafts.proposer import Proposer
from ziphius.engine.runner import Runner
from ziphius.engine.speculation_config import SpeculationConfig
from ziphius.models.attention_spec import cache_specs
from ziphius.models.cache import PagedCache
from ziphius.models.model import Model


@dataclass(frozen=True)
class Target:
    """The model that is drafted for, and its engine's cache."""

    model: Model
    cache: PagedCache
    max_num_batched_tokens: int
    build_runner: Callable[[Model, PagedCache], Runner]
    """Makes the runner of a draft model."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.model.embed_tokens.weight.device


def build_proposer(
    config: SpeculationConfig, target: Target, draft_model: Model | None = None
) -> Proposer:
    """Build the proposer that a config names.

    Args:
        config: with the method.
        target: what to draft for.
        draft_model: of method `model`, on the target's device.

    Raises:
        ConfigError: the models do not suit the method, or each other.
    """
    if draft_model is not None and config.method != "model":
        raise ConfigError(
            f"a draft model would have no effect: the method of speculation is {config.method}"
        )
    return DRAFTS[config.method](config, target, draft_model)


def _ngram(config: SpeculationConfig, target: Target, draft_model: Model | None) -> Proposer:
    if target.model.config.vocab_size > MOST_TOKENS:
        raise ConfigError(f"method ngram knows {MOST_TOKENS:,} tokens, the model has more")
    return NgramProposer(config.prompt_lookup_max, config.prompt_lookup_min)


def _model(config: SpeculationConfig, target: Target, draft_model: Model | None) -> Proposer:
    if draft_model is None:
        raise ConfigError("method model needs a draft model: name one, or choose another method")
    own, its = target.model.config.vocab_size, draft_model.config.vocab_size
    if own != its:
        raise ConfigError(
            f"the draft model has a vocabulary of {its:,} tokens and the model one of {own:,}: "
            "drafts must be tokens of the same vocabulary"
        )
    cache = PagedCache(
        cache_specs(draft_model.config),
        target.cache.num_blocks,
        target.cache.block_size,
        dtype=draft_model.model.embed_tokens.weight.dtype,
        device=target.device,
    )
    return ModelProposer(
        lambda view: target.build_runner(draft_model, view),
        cache,
        context_length=draft_model.config.max_position_embeddings,
        max_num_batched_tokens=target.max_num_batched_tokens,
        device=target.device,
    )


def _mtp(config: SpeculationConfig, target: Target, draft_model: Model | None) -> Proposer:
    runner = build_mtp_runner(target.model, target.cache)
    return MtpProposer(runner, target.cache, device=target.device)


DRAFTS: dict[str, Callable[[SpeculationConfig, Target, Model | None], Proposer]] = {
    "ngram": _ngram,
    "model": _model,
    "mtp": _mtp,
}
"""By `SpeculationConfig.method`."""
