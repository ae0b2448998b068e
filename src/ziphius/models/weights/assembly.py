"""A model under construction: built without memory, then filled tensor by tensor.

The peak of memory is the model and the tensor in hand, because a parameter gets its memory when its
first part arrives, and parts are copied to their place at once.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from ziphius.core.errors import CheckpointError
from ziphius.core.memory import refuse_too_large
from ziphius.models.config import ModelConfig
from ziphius.models.int8 import has_int8
from ziphius.models.layers import Linear
from ziphius.models.model import Model
from ziphius.models.moe import RoutedExperts
from ziphius.models.offload import expert_cache
from ziphius.models.weights.names import Slot, file_slots, model_tensors


class Assembly:
    """Fill an empty model and hand it over when nothing is missing.

    Parameters take the one dtype that is asked for; buffers (the router bias, INT8 numbers and
    their scales) keep their own. The finished model is in evaluation mode, and frozen if it has
    INT8 layers or offloaded experts.

    Args:
        config: of the model.
        int8_layers: names of layers to be INT8; what cannot be is left as it is.
    """

    def __init__(self, config: ModelConfig, int8_layers: Iterable[str] = ()) -> None:
        with torch.device("meta"):
            self.model = Model(config)
        layers = dict(self.model.named_modules())
        for name in int8_layers:
            layer = layers.get(name)
            if isinstance(layer, Linear | RoutedExperts):
                self.model.set_submodule(name, layer.to_int8())
        self._filled: dict[str, Tensor] = {}

    def count_numbers(self) -> int:
        """Count the parameters of the model, tied ones once, without the buffers."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def slots(self) -> dict[str, Slot]:
        """Map every file tensor the model is made of to its place."""
        return file_slots(self.model)

    def allocate(self, source: Path, dtype: torch.dtype, device: torch.device) -> None:
        """Reserve the memory of all tensors; pages are first used when they are filled.

        Raises:
            DeviceError: they do not fit into free memory; it says what of `source` would.
        """
        smaller = {}
        if dtype.itemsize > torch.bfloat16.itemsize:
            smaller["dtype bfloat16"] = self._size_bytes(torch.bfloat16)
        if device.type == "cpu" and not has_int8(self.model):
            how = "as INT8, which ziphius.quant.int8 makes of it on a machine that holds it"
            smaller[how] = self._int8_bytes()
        what = f"To load {source} as {str(dtype).removeprefix('torch.')}"
        refuse_too_large(what, self._size_bytes(dtype), device, smaller)
        for name, empty in model_tensors(self.model).items():
            own = dtype if isinstance(empty, nn.Parameter) else empty.dtype
            self._filled[name] = torch.empty(empty.shape, dtype=own, device=device)

    def _size_bytes(self, dtype: torch.dtype) -> int:
        cache = expert_cache(self.model)
        return (0 if cache is None else cache.size_bytes) + sum(
            tensor.numel() * (dtype if isinstance(tensor, nn.Parameter) else tensor.dtype).itemsize
            for tensor in model_tensors(self.model).values()
        )

    def _int8_bytes(self) -> int:
        """Estimate the size with projections and experts in INT8 and the rest in bfloat16."""
        in_projections = sum(
            parameter.numel()
            for module in self.model.modules()
            if isinstance(module, Linear | RoutedExperts)
            for parameter in module.parameters(recurse=False)
        )
        return self._size_bytes(torch.bfloat16) - in_projections

    def place(self, slot: Slot) -> Tensor:
        """View the memory that one file tensor goes to."""
        return slot.of(self._filled[slot.name])

    def finish(self) -> Model:
        """Put the filled tensors into the model. The assembly is used up."""
        for name, tensor in self._filled.items():
            owner, _, attribute = name.rpartition(".")
            module = self.model.get_submodule(owner)
            is_parameter = attribute in module._parameters
            setattr(module, attribute, nn.Parameter(tensor) if is_parameter else tensor)
        self._filled.clear()
        self.model.tie_weights()
        if has_int8(self.model) or expert_cache(self.model) is not None:
            self.model.requires_grad_(False)
        assert not any(tensor.is_meta for tensor in model_tensors(self.model).values())
        return self.model.eval()


def check_finite(name: str, tensor: Tensor, source: object) -> None:
    """Raise if a tensor holds NaN or infinity, which no trained weight should."""
    # aminmax lets NaN through and needs no memory, unlike isfinite.
    if tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
        raise CheckpointError(f"{source} holds NaN or infinity in {name}.")
