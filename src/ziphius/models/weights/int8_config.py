"""What config.json says of INT8 weights: the `int-quantized` format of compressed-tensors.

It is the one that vLLM and transformers read for weights by output channel and activations by
token, both symmetric: `weight` is int8, `weight_scale` [N, 1] beside it, and `ignore` names the
projections that stayed float (https://github.com/vllm-project/compressed-tensors).
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

METHOD = "compressed-tensors"
FORMAT = "int-quantized"

_COMMON = {"num_bits": 8, "type": "int", "symmetric": True}
WEIGHTS = {**_COMMON, "strategy": "channel", "dynamic": False}
ACTIVATIONS = {**_COMMON, "strategy": "token", "dynamic": True}


def quantization_config(model: nn.Module) -> dict[str, Any]:
    """Describe the weights of a model with INT8 layers."""
    kept_float = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return {
        "quant_method": METHOD,
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": WEIGHTS,
                "input_activations": ACTIVATIONS,
            }
        },
        "ignore": kept_float,
    }


def what_differs(quantization: Mapping[Any, Any]) -> str | None:
    """Say what this code cannot read of a description with this method; None if it can."""
    if (found := quantization.get("format")) != FORMAT:
        return f"describes weights in the format {found!r}; only {FORMAT!r} is known"
    groups = quantization.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        return "has no config_groups with one group of weights"
    [group] = groups.values()
    for part, wanted in (("weights", WEIGHTS), ("input_activations", ACTIVATIONS)):
        found = group.get(part) if isinstance(group, dict) else None
        if not isinstance(found, dict):
            return f"says nothing of {part}"
        for key, value in wanted.items():
            if found.get(key) != value:
                return f"describes {part} with {key} = {found.get(key)!r}; only {value!r} is known"
    return None
