"""LoRA (arXiv 2106.09685): a frozen projection W plus a trained product of low rank, alpha / r B A.

Layers are changed in place and keep their names: `q_proj.weight` stays what it was, and beside it
stand `q_proj.lora_A.weight` [r, in] and `q_proj.lora_B.weight` [out, r], as PEFT calls them. B
starts at zero, so a model with fresh adapters is the model without them.

Whoever reads `.weight` of such a layer, as the absorbed form of latent attention does, gets the
merged weight; the layer's own product takes the cheap way around.

Routed experts stay as they are: each sees few tokens, and their stacked tensors are no projections.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ziphius.core.errors import CheckpointError, ConfigError, OutputError
from ziphius.core.files import new_folder, write_file
from ziphius.models.layers import Linear
from ziphius.models.model import Model
from ziphius.models.weights.names import layer_of
from ziphius.train.adapter_config import CONFIG_FILE, read_adapter_config
from ziphius.train.lora_config import LoraConfig

WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
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
        return frozen + product.to(frozen.dtype)


def add_adapters(model: Model, config: LoraConfig, *, seed: int) -> list[str]:
    """Freeze a model and give its projections fresh adapters, in place.

    Args:
        model: any model without adapters.
        config: with a rank above 0.
        seed: decides A.

    Returns:
        The names of the projections.
    """
    assert config.rank, "rank 0 means no adapters"
    _refuse_existing(model)
    layers = dict(_targets(model, config.targets))
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for layer in layers.values():
        _adapt(layer, config.rank, config.alpha / config.rank)
        assert isinstance(layer, LoraLinear)
        _begin(layer, generator)
    return list(layers)


def merge_adapters(model: Model) -> None:
    """Fold all adapters into their weights, in place; the model is a plain one afterwards.

    The weights are trainable again. In bfloat16 the sum is rounded once.
    """
    for _, layer in list(_adapters(model)):
        merged = layer.weight.detach()
        layer.__class__ = Linear  # type: ignore[assignment]
        layer._parameters["weight"] = nn.Parameter(merged)
        del layer.lora_A, layer.lora_B, layer.scaling
    model.requires_grad_(True)


def adapter_tensors(model: Model) -> dict[str, Tensor]:
    """Name the tensors of all adapters as they are named in the model."""
    return {
        f"{name}.{part}.weight": getattr(layer, part).weight
        for name, layer in _adapters(model)
        for part in ("lora_A", "lora_B")
    }


def save_adapters(model: Model, folder: Path, *, base: str) -> None:
    """Write the adapters to a new folder in PEFT's format.

    Args:
        model: with adapters.
        folder: must not exist or be empty.
        base: name or path of the model without them.
    """
    layers = dict(_adapters(model))
    ranks = {name: layer.lora_A.out_features for name, layer in layers.items()}
    alphas = {name: layer.scaling * ranks[name] for name, layer in layers.items()}
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    tensors = {
        _PREFIX + name: tensor.detach().cpu().contiguous()
        for name, tensor in adapter_tensors(model).items()
    }
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: own for name, own in ranks.items() if own != rank},
        "alpha_pattern": {name: own for name, own in alphas.items() if own != alpha},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        # Whole names: a last part such as up_proj would also match where there is no adapter.
        "target_modules": list(layers),
    }
    with new_folder(folder) as unfinished:
        try:
            save_file(tensors, unfinished / WEIGHTS_FILE, metadata={"format": "pt"})
        except (OSError, SafetensorError) as error:
            raise OutputError(f"Cannot write {folder / WEIGHTS_FILE}: {error}.") from error
        write_file(unfinished / CONFIG_FILE, json.dumps(config, indent=2) + "\n")


def load_adapters(model: Model, folder: Path) -> None:
    """Add adapters in PEFT's format to the model they were made for, in place.

    They may be PEFT's own; what of its settings is applied stands in `adapter_config.py`. Layers
    that predict further tokens, which transformers lacks, stay as they are if the file has no
    adapter for any of them.

    Raises:
        CheckpointError: a setting is refused, or file, settings and model do not fit together.
    """
    settings = read_adapter_config(folder)
    file = folder / WEIGHTS_FILE
    try:
        tensors = load_file(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder} holds no adapters that can be read: {error}.") from error
    layers = dict(_projections(model))
    found = {name for name in layers if any(part in tensors for part in _file_names(name))}
    chosen = settings.select(list(layers))
    if chosen is None:
        chosen = [name for name in layers if name in found]
    further = {name for name in layers if _is_further(model, name)}
    if found.isdisjoint(further):
        chosen = [name for name in chosen if name not in further]
    expected = [part for name in chosen for part in _file_names(name)]
    for part in (*expected, *tensors):
        if (part in tensors) != (part in expected):
            where = "is left over" if part in tensors else "is missing"
            raise CheckpointError(f"{file}: {part} {where}.")
    _refuse_existing(model)
    model.requires_grad_(False)
    for name in chosen:
        layer, rank = layers[name], settings.rank(name)
        _adapt(layer, rank, settings.scaling(name))
        assert isinstance(layer, LoraLinear)
        for part, own in zip(_file_names(name), (layer.lora_A, layer.lora_B), strict=True):
            if own.weight.shape != tensors[part].shape:
                raise CheckpointError(
                    f"{file}: {part} has the shape {list(tensors[part].shape)}, "
                    f"not {list(own.weight.shape)}."
                )
            own.weight.data.copy_(tensors[part])


def _file_names(name: str) -> tuple[str, str]:
    return f"{_PREFIX}{name}.lora_A.weight", f"{_PREFIX}{name}.lora_B.weight"


def _is_further(model: Model, name: str) -> bool:
    layer = layer_of(f"{name}.")
    return layer is not None and layer >= model.config.num_hidden_layers


def _refuse_existing(model: Model) -> None:
    if found := dict(_adapters(model)):
        raise ConfigError(f"The model has adapters already, on {next(iter(found))}.")


def _projections(model: Model) -> Iterator[tuple[str, Linear]]:
    """Name the projections of attention and of dense and shared feed-forward layers."""
    for name, module in model.named_modules():
        if isinstance(module, Linear) and any(mark in name for mark in _IN_BLOCKS):
            yield name, module


def _adapters(model: Model) -> Iterator[tuple[str, LoraLinear]]:
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


def _targets(model: Model, wanted: Sequence[str]) -> Iterator[tuple[str, Linear]]:
    """Find the projections whose name ends as one of the wanted ones does, or all in blocks."""
    layers = dict(_projections(model))
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


def _adapt(layer: Linear, rank: int, scaling: float) -> None:
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
