"""LoRA (arXiv 2106.09685): a frozen projection W plus a trained product of low rank, alpha / r B A.

Layers are changed in place and keep their names: `q_proj.weight` stays what it was, and beside it
stand `q_proj.lora_A.weight` [r, in] and `q_proj.lora_B.weight` [out, r], as PEFT calls them. B
starts at zero, so a model with fresh adapters is the model without them.

Whoever reads `.weight` of such a layer, as the absorbed form of latent attention does, gets the
merged weight; the layer's own product takes the cheap way around.

Routed experts stay as they are: each sees few tokens, and their stacked tensors are no projections.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ziphius.core.errors import ConfigError
from ziphius.models.layers import Linear
from ziphius.models.lora_config import LoraConfig
from ziphius.models.model import Model

_IN_BLOCKS = (".self_attn.", ".mlp.")


class LoraLinear(Linear):
    """A projection with an adapter; made from a plain one by `add_adapters`, never built."""

    lora_A: Linear
    lora_B: Linear
    scaling: float

    def forward(self, x_D: Tensor) -> Tensor:
        """Add the adapter's output to that of the frozen weight."""
        base: Tensor = F.linear(x_D, self._parameters["weight"], self.bias)  # type: ignore[arg-type]
        # Adapters are float32; beside a frozen weight in bfloat16 they multiply in bfloat16 too.
        down, up = (layer.weight.to(x_D.dtype) for layer in (self.lora_A, self.lora_B))
        return base + self.scaling * F.linear(F.linear(x_D, down), up)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """Return the merged weight."""
        frozen = self._parameters["weight"]
        assert frozen is not None
        product = self.scaling * (self.lora_B.weight @ self.lora_A.weight)
        return (frozen + product).to(frozen.dtype)


def add_adapters(model: Model, config: LoraConfig, *, seed: int) -> list[str]:
    """Freeze a model and give its projections fresh adapters, in place.

    Args:
        model: any model without adapters.
        config: with a rank above 0.
        seed: decides A.

    Returns:
        The names of the projections.

    Raises:
        ConfigError: the model has adapters already or none of the projections wanted, or the rank
            is above the smallest side of one of them.
    """
    assert config.rank, "rank 0 means no adapters"
    refuse_adapters(model)
    layers = dict(_targets(model, config.targets))
    _refuse_rank(layers, config.rank)
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for layer in layers.values():
        adapt(layer, config.rank, config.alpha / config.rank)
        assert isinstance(layer, LoraLinear)
        _begin(layer, generator)
    return list(layers)


def merge_adapters(model: Model) -> None:
    """Fold all adapters into their weights, in place; the model is a plain one afterwards.

    The weights are trainable again. In bfloat16 the sum is rounded once.
    """
    for _, layer in list(adapted_layers(model)):
        merged = layer.weight.detach()
        layer.__class__ = Linear  # type: ignore[assignment]
        layer._parameters["weight"] = nn.Parameter(merged)
        del layer.lora_A, layer.lora_B, layer.scaling
    model.requires_grad_(True)


def adapter_tensors(model: Model) -> dict[str, Tensor]:
    """Name the tensors of all adapters as they are named in the model."""
    return {
        f"{name}.{part}.weight": getattr(layer, part).weight
        for name, layer in adapted_layers(model)
        for part in ("lora_A", "lora_B")
    }


def refuse_adapters(model: Model) -> None:
    """Raise a ConfigError if a model has adapters: a second set would be one on the first."""
    if found := dict(adapted_layers(model)):
        raise ConfigError(f"The model has adapters already, on {next(iter(found))}.")


def projections(model: Model) -> Iterator[tuple[str, Linear]]:
    """Name the projections of attention and of dense and shared feed-forward layers."""
    for name, module in model.named_modules():
        if isinstance(module, Linear) and any(mark in name for mark in _IN_BLOCKS):
            yield name, module


def adapted_layers(model: Model) -> Iterator[tuple[str, LoraLinear]]:
    """Name the projections that have an adapter."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


def _targets(model: Model, wanted: Sequence[str]) -> Iterator[tuple[str, Linear]]:
    """Find the projections whose name ends as one of the wanted ones does, or all in blocks."""
    layers = dict(projections(model))
    endings = [f".{name}" for name in wanted]
    for ending in endings:
        if not any(f".{name}".endswith(ending) for name in layers):
            known = sorted({name.rpartition(".")[2] for name in layers})
            raise ConfigError(
                f"targets: the model has no projection {ending[1:]!r}; it has {', '.join(known)}."
            )
    for name, layer in layers.items():
        if not endings or f".{name}".endswith(tuple(endings)):
            yield name, layer


def _refuse_rank(layers: Mapping[str, Linear], rank: int) -> None:
    """Refuse a rank that a product B A of a weight's shape cannot have."""
    sides = {name: min(layer.in_features, layer.out_features) for name, layer in layers.items()}
    smallest = min(sides, key=sides.__getitem__)
    if rank > sides[smallest]:
        layer = layers[smallest]
        raise ConfigError(
            f"--lora.rank {rank} is too high: the largest useful rank is {sides[smallest]}, the "
            f"smaller side of {smallest} [{layer.out_features}, {layer.in_features}]. Lower it, "
            "or name wider projections with --lora.targets."
        )


def adapt(layer: Linear, rank: int, scaling: float) -> None:
    """Make a projection one with an adapter, whose weights are still to be filled."""
    weight = layer.weight
    # Adapters stay float32 beside bf16 weights.
    down = Linear(layer.in_features, rank).to(weight.device, torch.float32)
    up = Linear(rank, layer.out_features).to(weight.device, torch.float32)
    layer.__class__ = LoraLinear
    assert isinstance(layer, LoraLinear)
    layer.lora_A, layer.lora_B = down, up
    layer.scaling = scaling


def _begin(layer: LoraLinear, generator: torch.Generator) -> None:
    """Draw as PEFT does: A uniform within 1 / sqrt(in), B zero."""
    bound = layer.in_features**-0.5
    drawn = torch.empty(layer.lora_A.weight.shape).uniform_(-bound, bound, generator=generator)
    layer.lora_A.weight.data.copy_(drawn)
    layer.lora_B.weight.data.zero_()
