"""Which part of a model a parameter belongs to: for norms by part, and for who updates what."""

from torch import nn

from ziphius.models.gates import Gate
from ziphius.models.layers import Embedding
from ziphius.models.model import Model

_MARKS = (
    ("attention", (".self_attn.",)),
    ("router", (".mlp.gate.",)),
    ("experts", (".experts.", ".shared_experts.")),
    ("mlp", (".mlp.",)),
    ("embed", (".embed_tokens.",)),
)
"""What stands in the names of a part's parameters; the first that fits decides."""


def part_of(name: str) -> str:
    """Name the part of a parameter outside the MTP layers by its name in the state dict."""
    if "norm" in name.split(".")[-2]:
        return "norms"
    return next((part for part, marks in _MARKS if any(mark in name for mark in marks)), "head")


def parts(model: Model) -> dict[str, list[nn.Parameter]]:
    """Group the trainable parameters by part; each MTP layer is wholly of the part mtp."""
    mtp_layers = {id(p) for layer in model.model.mtp_layers for p in layer.parameters()}
    found: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = "mtp" if id(parameter) in mtp_layers else part_of(name)
            found.setdefault(part, []).append(parameter)
    return found


def is_muon_matrix(model: Model, name: str, parameter: nn.Parameter) -> bool:
    """Tell whether Muon takes a parameter: a matrix between hidden states, or a stack of them.

    Embedding, head and routers are tables of rows that each stand alone; AdamW takes them.
    """
    if parameter.dim() < 2:
        return False
    owner = model.get_submodule(name.rpartition(".")[0])
    return not isinstance(owner, Embedding | Gate) and owner is not model.head
