"""Kernels of `pointwise.cpp`: norms, the gated activation, sums of chosen rows, cross entropy.

Shapes: X rows of any leading shape, D and F widths, W vocabulary, M tokens, K rows of each, J rows
to choose from.
"""

import torch
from torch import Tensor

from ziphius.ops.native.binding import Kernel, address, optional_address, own_address, row_address

_RMS_NORM = Kernel(
    "rms_norm",
    "const T* x, const U* update, const float* weight, T* sum, U* out, float* inverse, "
    "int64_t rows, int64_t width, float eps",
    kinds=("ff", "fb", "bb"),
)
_RMS_NORM_BACKWARD = Kernel(
    "rms_norm_backward",
    "const U* grad, const T* grad_sum, const T* x, const float* weight, const float* inverse, "
    "T* grad_x, U* grad_update, float* grad_weight, int64_t rows, int64_t width",
    kinds=("ff", "fb", "bb"),
)
_SWIGLU = Kernel(
    "swiglu", "const T* gate, const T* up, T* out, int64_t rows, int64_t width, int64_t stride"
)
_SWIGLU_BACKWARD = Kernel(
    "swiglu_backward",
    "const T* grad, const T* gate, const T* up, T* grad_gate, T* grad_up, "
    "int64_t rows, int64_t width, int64_t stride",
)
_COMBINE = Kernel(
    "combine",
    "const T* rows, int64_t num_rows, const int64_t* slots, const float* weights, const T* base, "
    "T* out, int64_t tokens, int64_t per_token, int64_t width",
    returns="int64_t",
)
_CROSS_ENTROPY = Kernel(
    "cross_entropy",
    "T* logits, const int64_t* targets, float* losses, float* normalizers, "
    "int64_t rows, int64_t width",
    returns="int64_t",
)


def rms_norm(
    x_XD: Tensor, update_XD: Tensor | None, weight_D: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise x, or x + update, and scale.

    Args:
        x_XD: the rows.
        update_XD: of the result's dtype; without it nothing is added.
        weight_D: float32.
        eps: added to the mean of squares.
        dtype: of the result.

    Returns:
        The sum, which is x itself without an update; the result; and float32 [X], what each row
        was multiplied by.
    """
    shape, kind = x_XD.shape, x_XD.dtype
    function = _RMS_NORM.of(kind, dtype)
    rows = shape[:-1].numel()
    sum_XD = x_XD if update_XD is None else torch.empty_like(x_XD)
    out_XD = torch.empty_like(x_XD, dtype=dtype)
    inverse_X = x_XD.new_empty(rows, dtype=torch.float32)
    function(
        address("x of rms_norm", x_XD, kind, shape),
        optional_address("update of rms_norm", update_XD, dtype, shape),
        address("weight of rms_norm", weight_D, torch.float32, shape[-1:]),
        None if update_XD is None else own_address(sum_XD),
        own_address(out_XD),
        own_address(inverse_X),
        *(rows, shape[-1], eps),
    )
    return sum_XD, out_XD, inverse_X


def rms_norm_backward(
    grad_XD: Tensor,
    grad_sum_XD: Tensor | None,
    x_XD: Tensor,
    weight_D: Tensor,
    inverse_X: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, of the update in the dtype of `grad_XD`, and of the weight.

    Args:
        grad_XD: of the result.
        grad_sum_XD: that of the sum by other ways; None where nothing was added to x, whose
            gradient then stands for that of an update too.
        x_XD: the sum that was normalised.
        weight_D: float32.
        inverse_X: as `rms_norm` returns it.
    """
    shape, kind, dtype = x_XD.shape, x_XD.dtype, grad_XD.dtype
    function = _RMS_NORM_BACKWARD.of(kind, dtype)
    rows = shape[:-1].numel()
    grad_x_XD, grad_weight_D = torch.empty_like(x_XD), torch.empty_like(weight_D)
    grad_update_XD = None
    if grad_sum_XD is not None and dtype is not kind:
        grad_update_XD = torch.empty_like(x_XD, dtype=dtype)
    function(
        address("gradient of rms_norm", grad_XD, dtype, shape),
        optional_address("gradient of the sum of rms_norm", grad_sum_XD, kind, shape),
        address("x of rms_norm", x_XD, kind, shape),
        address("weight of rms_norm", weight_D, torch.float32, shape[-1:]),
        address("scales of rms_norm", inverse_X, torch.float32, (rows,)),
        own_address(grad_x_XD),
        None if grad_update_XD is None else own_address(grad_update_XD),
        own_address(grad_weight_D),
        *(rows, shape[-1]),
    )
    return grad_x_XD, grad_x_XD if grad_update_XD is None else grad_update_XD, grad_weight_D


def swiglu(gate_XF: Tensor, up_XF: Tensor) -> Tensor:
    """Return silu(gate) * up; both may be halves of the rows of one tensor [X, 2F]."""
    shape, dtype = gate_XF.shape, gate_XF.dtype
    gate, stride = row_address("gate of swiglu", gate_XF, dtype, shape)
    up, up_stride = row_address("up of swiglu", up_XF, dtype, shape)
    _same_strides(stride, up_stride)
    out_XF = gate_XF.new_empty(shape)
    _SWIGLU.of(dtype)(gate, up, own_address(out_XF), shape[:-1].numel(), shape[-1], stride)
    return out_XF


def swiglu_backward(
    grad_XF: Tensor, gate_XF: Tensor, up_XF: Tensor, grad_gate_XF: Tensor, grad_up_XF: Tensor
) -> None:
    """Fill the last two, which lie in memory as gate and up do."""
    shape, dtype = gate_XF.shape, gate_XF.dtype
    named = {"gate": gate_XF, "up": up_XF, "gate's gradient": grad_gate_XF}
    named["up's gradient"] = grad_up_XF
    places, strides = zip(*(row_address(k, x, dtype, shape) for k, x in named.items()), strict=True)
    _same_strides(*strides)
    grad = address("gradient of swiglu", grad_XF, dtype, shape)
    _SWIGLU_BACKWARD.of(dtype)(grad, *places, shape[:-1].numel(), shape[-1], strides[0])


def _same_strides(*strides: int) -> None:
    if len(set(strides)) > 1:
        raise ValueError(f"rows of swiglu's tensors lie {strides} numbers apart, not the same.")


def combine(
    rows_JD: Tensor, slot_MK: Tensor, weights_MK: Tensor | None, base_MD: Tensor | None
) -> Tensor:
    """Return for each token its base and the weighted sum of its rows, [M, D].

    Args:
        rows_JD: what is summed.
        slot_MK: int64, the rows of each token; one from J on adds nothing.
        weights_MK: float32; 1 without it.
        base_MD: of the rows' dtype; 0 without it.
    """
    (tokens, per_token), (num_rows, width), dtype = slot_MK.shape, rows_JD.shape, rows_JD.dtype
    out_MD = rows_JD.new_empty(tokens, width)
    failed = _COMBINE.of(dtype)(
        address("rows of combine", rows_JD, dtype, (num_rows, width)),
        num_rows,
        address("slots of combine", slot_MK, torch.int64, (tokens, per_token)),
        optional_address("weights of combine", weights_MK, torch.float32, slot_MK.shape),
        optional_address("base of combine", base_MD, dtype, (tokens, width)),
        own_address(out_MD),
        *(tokens, per_token, width),
    )
    if failed:
        raise ValueError(f"slots of combine begin at {int(slot_MK.min())}; a row is 0 or more.")
    return out_MD


def cross_entropy(logits_XW: Tensor, targets_X: Tensor) -> tuple[Tensor, Tensor]:
    """Put the gradient p - target in the place of each row of logits.

    Args:
        logits_XW: overwritten.
        targets_X: int64, from 0 to W - 1; where one is not, nothing is overwritten.

    Returns:
        float32 -log p(target) and log sum exp(logits), [X].
    """
    (rows, width), dtype = logits_XW.shape, logits_XW.dtype
    losses_X, normalizers_X = logits_XW.new_empty(2, rows, dtype=torch.float32)
    failed = _CROSS_ENTROPY.of(dtype)(
        address("logits of cross_entropy", logits_XW, dtype, (rows, width)),
        address("targets of cross_entropy", targets_X, torch.int64, (rows,)),
        own_address(losses_X),
        own_address(normalizers_X),
        *(rows, width),
    )
    if failed:
        found = f"{int(targets_X.min())} to {int(targets_X.max())}"
        raise ValueError(f"targets are {found}; a vocabulary of {width} has 0 to {width - 1}.")
    return losses_X, normalizers_X
