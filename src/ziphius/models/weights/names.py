"""Names in checkpoint files and where each tensor lives in a model.

INT8 weights have their scales beside them, `weight_scale` of one number per row. Names in both are
equal but for four things:
    1. routed experts are one file tensor each, `experts.{e}.{gate,up,down}_proj.weight`, and two
       stacked parameters in memory, `experts.gate_up_proj` [E, 2F, D] and `experts.down_proj`
       [E, D, F];
    2. every MTP layer also carries copies of the embedding and of the head in the files;
    3. the head of tied embeddings is the embedding itself (some files carry a copy of it);
    4. files of older programs carry rotary frequencies, which are computed from the config.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from ziphius.models.config import ModelConfig
from ziphius.models.int8 import SCALE as INT8_SCALE

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
SCALE_SUFFIX = "_scale_inv"
GATE_UP = ".experts.gate_up_proj"
FREQUENCIES = ".rotary_emb.inv_freq"
ROUTER_BIAS = ".e_score_correction_bias"
DOWN = ".experts.down_proj"

_PROJECTION = re.compile(r"\.(self_attn|mlp)\..*_(proj|proj_with_mqa)\.weight$")
_LAYER = re.compile(r"model\.layers\.(\d{1,6})\.")


@dataclass(frozen=True)
class Slot:
    """The place in a model that one file tensor fills: a tensor, or a part of stacked ones."""

    name: str
    """Name of the model's own tensor."""
    shape: tuple[int, ...]
    """Shape of the file tensor."""
    expert: int | None = None
    """Row of the stack of experts."""
    rows: tuple[int, int] | None = None
    """First and last row of the gate or the up half; None is all rows."""

    def of(self, tensor: Tensor) -> Tensor:
        """View the part of the model's tensor that belongs to the file tensor."""
        if self.expert is None:
            return tensor
        part = tensor[self.expert]
        return part if self.rows is None else part[slice(*self.rows)]


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Name every parameter and buffer of a model once: tied tensors under their first name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def file_slots(model: nn.Module) -> dict[str, Slot]:
    """Map the name of every tensor that a checkpoint of this model must hold to its place."""
    return {
        file_name: slot
        for name, tensor in model_tensors(model).items()
        for file_name, slot in _slots_of(name, tuple(tensor.shape))
    }


def file_copies(config: ModelConfig) -> dict[str, str]:
    """Map the name of every copy that files may carry to the name of the tensor it repeats."""
    head = EMBEDDING if config.tie_word_embeddings else HEAD
    copies = {HEAD: EMBEDDING} if config.tie_word_embeddings else {}
    for layer in mtp_layers(config):
        copies[f"model.layers.{layer}.embed_tokens.weight"] = EMBEDDING
        copies[f"model.layers.{layer}.shared_head.head.weight"] = head
    return copies


def file_frequencies(config: ModelConfig) -> dict[str, tuple[int]]:
    """Name the rotary frequencies that files may carry; they repeat the config and are not read."""
    width = config.qk_rope_head_dim if config.attention == "mla" else config.head_dim
    assert width is not None
    layers = config.num_hidden_layers + config.num_nextn_predict_layers
    return {
        f"model.layers.{layer}.self_attn{FREQUENCIES}": (width // 2,) for layer in range(layers)
    }


def mtp_layers(config: ModelConfig) -> range:
    """List the layer numbers that the MTP layers have."""
    first = config.num_hidden_layers
    return range(first, first + config.num_nextn_predict_layers)


def layer_of(name: str) -> int | None:
    """Read the number of the layer that a tensor belongs to, or None outside the layers."""
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def is_projection(file_name: str) -> bool:
    """Tell which weights the published FP8 files quantize.

    They are the linear projections of attention and feed-forward layers; embedding, head, norms,
    router and `eh_proj` stay in bfloat16.
    """
    return _PROJECTION.search(file_name) is not None


def int8_layer_of(file_name: str) -> str:
    """Name the layer of the model that holds an INT8 weight of a file."""
    owner = file_name.rpartition(".")[0]
    experts, mark, _ = owner.partition(".experts.")
    return experts + mark.removesuffix(".") if mark else owner


def _slots_of(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, Slot]]:
    stem = name.removesuffix(INT8_SCALE)
    ending = "weight" + name[len(stem) :]
    if stem.endswith(GATE_UP):
        experts, both, width = shape
        half = both // 2
        prefix = stem.removesuffix("gate_up_proj")
        for expert in range(experts):
            for kind, first in (("gate", 0), ("up", half)):
                slot = Slot(name, (half, width), expert, (first, first + half))
                yield f"{prefix}{expert}.{kind}_proj.{ending}", slot
    elif stem.endswith(DOWN):
        prefix = stem.removesuffix("down_proj")
        for expert in range(shape[0]):
            yield f"{prefix}{expert}.down_proj.{ending}", Slot(name, shape[1:], expert)
    else:
        yield name, Slot(name, shape)
