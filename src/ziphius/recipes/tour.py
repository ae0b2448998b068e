"""A tour of the family in seconds: a tiny model of each make, costed, at work, and checked.

Nothing is trained: the weights are random and so is the text. What is checked holds for any
weights, and the whole toolkit stands on it: the cache changes nothing, the two forms of latent
attention agree, and a saved model comes back as it was.

Shapes: B sequences, T tokens, N heads, H query width, S all tokens, X cached row, W vocabulary.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ziphius.core.device import resolve_device
from ziphius.engine.generate import Request, generate
from ziphius.engine.load import Loaded, load_preset
from ziphius.models.attention.backend import AttentionGroup
from ziphius.models.attention.latent import LatentAttention
from ziphius.models.cost import ModelCost, model_cost
from ziphius.models.model import Model
from ziphius.models.presets import PRESETS
from ziphius.models.sequences import Sequences
from ziphius.models.weights import load, save
from ziphius.ops.sampling_config import SamplingConfig

PROMPT = "The deepest-diving whale"
NEW_TOKENS = 12
CHECKED_TOKENS = 24
ROUNDING = 2e-5
"""Bound on differences that only the order of fp32 sums explains, relative to the largest value."""


@dataclass(frozen=True)
class Check:
    """One comparison of two ways to the same numbers."""

    name: str
    difference: float
    """Largest absolute difference over the largest absolute value."""
    bound: float

    @property
    def passed(self) -> bool:
        """Tell whether the difference is within its bound; NaN is not."""
        return self.difference <= self.bound


@dataclass(frozen=True)
class FamilyReport:
    """What the tour found out about one tiny model."""

    preset: str
    cost: ModelCost
    text: str
    """Continuation of `PROMPT` by random weights."""
    checks: tuple[Check, ...]


def tour(out: Path | None) -> Iterator[FamilyReport]:
    """Visit every preset that ends in -tiny; keep the saved models in `out`, if given."""
    for name in PRESETS:
        if name.endswith("-tiny"):
            with _saving_folder(out, name) as folder:
                yield visit(name, folder)


def visit(name: str, folder: Path) -> FamilyReport:
    """Build one preset with random weights, generate, check, and save it as the new `folder`."""
    loaded = load_preset(name, device=resolve_device("auto"))
    model = loaded.model
    checks = [check_cache(model)]
    if model.config.attention == "mla":
        checks.append(check_absorbed(model))
    checks.append(check_saving(loaded, folder))
    return FamilyReport(
        name,
        model_cost(model.config, context=model.config.max_position_embeddings),
        _continue_prompt(loaded),
        tuple(checks),
    )


@torch.inference_mode()
def check_cache(model: Model) -> Check:
    """Compare the logits of tokens fed one by one through the cache with those of one pass."""
    ids_BT = _random_ids(model)
    sequences = Sequences(model, *ids_BT.shape)
    steps = [model(sequences.rows(ids_B1)).wanted_LD for ids_B1 in ids_BT.split(1, dim=1)]
    cached_BTW = model.logits(torch.stack(steps, dim=1))
    difference = _relative_difference(cached_BTW, _logits(model, ids_BT))
    return Check("cached = uncached", difference, ROUNDING)


@torch.inference_mode()
def check_absorbed(model: Model) -> Check:
    """Compare the two forms of latent attention, in every layer, on random queries and rows."""
    generator = torch.Generator().manual_seed(0)
    causal = AttentionGroup(None, is_causal=True)
    worst = 0.0
    for module in model.modules():
        if isinstance(module, LatentAttention):
            shape = (2, module.num_heads, CHECKED_TOKENS, module.nope_width + module.rope_width)
            query_BNTH = torch.randn(shape, generator=generator)
            width = module.latent_width + module.rope_width
            row_BSX = torch.randn(2, CHECKED_TOKENS, width, generator=generator)
            query_BNTH, row_BSX = (part.to(_weight(model)) for part in (query_BNTH, row_BSX))
            expanded = module.expanded(query_BNTH, row_BSX, causal)
            absorbed = module.absorbed(query_BNTH, row_BSX, causal)
            worst = max(worst, _relative_difference(absorbed, expanded))
    return Check("absorbed = expanded", worst, ROUNDING)


@torch.inference_mode()
def check_saving(loaded: Loaded, folder: Path) -> Check:
    """Save model and tokenizer, load them back and compare logits, which must be equal."""
    model = loaded.model
    save(model, folder, loaded.tokenizer, weight_format="float32")
    ids_BT = _random_ids(model)
    again = load(folder, dtype=_dtype(model), device=ids_BT.device)
    difference = _relative_difference(_logits(again, ids_BT), _logits(model, ids_BT))
    return Check("saved = loaded", difference, 0.0)


def _continue_prompt(loaded: Loaded) -> str:
    tokenizer = loaded.tokenizer
    request = Request(
        tokenizer.encode(PROMPT),
        NEW_TOKENS,
        sequence_id=0,
        sampling=SamplingConfig(temperature=0.0),
    )
    [completion] = generate(loaded.model, [request], vocab_limit=tokenizer.vocab_size)
    return tokenizer.decode(completion.token_ids)


@contextmanager
def _saving_folder(out: Path | None, name: str) -> Iterator[Path]:
    if out is not None:
        yield out / name
        return
    with tempfile.TemporaryDirectory(prefix="ziphius-tour-") as temporary:
        yield Path(temporary) / name


def _weight(model: Model) -> Tensor:
    return model.model.embed_tokens.weight


def _dtype(model: Model) -> torch.dtype:
    return _weight(model).dtype


def _random_ids(model: Model) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(model.config.vocab_size, (2, CHECKED_TOKENS), generator=generator)
    return ids_BT.to(_weight(model).device)


def _logits(model: Model, ids_BT: Tensor) -> Tensor:
    return model.logits(model(ids_BT).hidden_BTD).float()


def _relative_difference(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())
