"""What llama.cpp calls the weights of a model, and how it lays them out: for reading and writing.

Three things differ from Hugging Face's files, besides the names:

1. query and key rows of llama models are in the order of llama.cpp's own rotation, whose pairs are
   (0, 1), (2, 3), ... instead of halves;
2. `kv_b_proj` of latent attention is two tensors per head: the keys' part [N, C, P], transposed for
   the absorbed form, and the values' part [N, V, C];
3. the experts of a layer are stacked, gate and up apart.
"""

import re
from collections.abc import Iterator

from torch import Tensor

from ziphius.models.config import ModelConfig
from ziphius.models.weights.names import DOWN, GATE_UP, ROUTER_BIAS

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
ROUTER = ".ffn_gate_inp.weight"

_MODULES: dict[str, str] = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


def gguf_name(name: str) -> str:
    """Translate the name of a weight that llama.cpp has as one tensor, too."""
    module, _, kind = name.rpartition(".")
    match = _LAYER.fullmatch(module)
    return f"blk.{match[1]}.{_MODULES[match[2]]}.{kind}" if match else f"{_MODULES[module]}.{kind}"


def gguf_tensors(name: str, tensor: Tensor, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """View a tensor of a model as the one or two that llama.cpp wants, with their names."""
    layer = ".".join(name.split(".")[2:3])
    if name.endswith(".kv_b_proj.weight"):
        assert config.qk_nope_head_dim is not None
        heads_NXC = tensor.unflatten(0, (config.num_attention_heads, -1))
        yield f"blk.{layer}.attn_k_b.weight", heads_NXC[:, : config.qk_nope_head_dim].mT
        yield f"blk.{layer}.attn_v_b.weight", heads_NXC[:, config.qk_nope_head_dim :]
    elif name.endswith(GATE_UP):
        for kind, half in zip(("gate", "up"), tensor.chunk(2, dim=1), strict=True):
            yield f"blk.{layer}.ffn_{kind}_exps.weight", half
    elif name.endswith(DOWN):
        yield f"blk.{layer}.ffn_down_exps.weight", tensor
    elif name.endswith(ROUTER_BIAS):
        yield f"blk.{layer}.exp_probs_b.bias", tensor
    else:
        yield gguf_name(name), in_gguf_order(tensor, gguf_name(name), config)


def in_our_order(tensor: Tensor, name: str, config: ModelConfig) -> Tensor:
    """Undo llama.cpp's order of query and key rows, [N, H/2, 2] -> [N, 2, H/2]."""
    if not _is_reordered(name, config):
        return tensor
    assert config.head_dim is not None
    return _swapped(tensor, config.head_dim // 2, 2)


def in_gguf_order(tensor: Tensor, name: str, config: ModelConfig) -> Tensor:
    """Put query and key rows into llama.cpp's order, [N, 2, H/2] -> [N, H/2, 2]."""
    if not _is_reordered(name, config):
        return tensor
    assert config.head_dim is not None
    return _swapped(tensor, 2, config.head_dim // 2)


def _is_reordered(name: str, config: ModelConfig) -> bool:
    return config.model_type == "llama" and re.search(r"attn_[qk]\.", name) is not None


def _swapped(tensor: Tensor, outer: int, inner: int) -> Tensor:
    pairs = tensor.reshape(-1, outer, inner, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)
