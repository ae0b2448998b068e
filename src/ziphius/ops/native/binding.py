"""What the functions of this package call kernels with: typed symbols and checked addresses.

A kernel reads and writes where it is told to, whatever lies there. So a tensor's address is given
out in this file only, and only for a tensor that is what the kernel takes it for.
"""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ziphius.ops.native import build

DTYPES = {
    "f": torch.float32,
    "b": torch.bfloat16,
    "i": torch.int8,
    "e": torch.float8_e4m3fn,
}
_TYPES = {"int64_t": ctypes.c_int64, "int": ctypes.c_int, "float": ctypes.c_float}


class Kernel:
    """A kernel's name and declaration, and its compiled functions, one for each kind of tensors.

    Args:
        name: what its symbols begin with.
        parameters: as in C++; T stands for the type of the kind's first letter, U of its second.
        kinds: letters of `DTYPES`, which end the symbol; "" where T and U do not occur.
        returns: its result, as in C++.
    """

    def __init__(
        self, name: str, parameters: str, kinds: Sequence[str] = ("f", "b"), returns: str = "void"
    ) -> None:
        self.name = name
        self.parameters = parameters
        self.kinds = {tuple(DTYPES[letter] for letter in kind): kind for kind in kinds}
        self.returns = returns
        self._functions: dict[tuple[torch.dtype, ...], Callable[..., int]] = {}

    def of(self, *dtypes: torch.dtype) -> Callable[..., int]:
        """Return the function for tensors of these dtypes.

        Raises:
            ValueError: there is none.
        """
        return self._functions.get(dtypes) or self._bound(dtypes)

    def _bound(self, dtypes: tuple[torch.dtype, ...]) -> Callable[..., int]:
        if dtypes not in self.kinds:
            known = ", ".join(_named(kind) for kind in self.kinds)
            raise ValueError(f"{self.name} takes {known}, not {_named(dtypes)}.")
        library = build.library()
        assert library is not None, "kernels are called where native.serves() says that they run"
        function: Any = getattr(library, self.symbol(self.kinds[dtypes]))
        function.argtypes = [_type(parameter) for parameter in self.parameters.split(", ")]
        function.restype = None if self.returns == "void" else _TYPES[self.returns]
        self._functions[dtypes] = function
        return self._functions[dtypes]

    def symbol(self, kind: str) -> str:
        """Name the compiled function of a kind."""
        return f"{self.name}_{kind}" if kind else self.name


def address(name: str, x: Tensor, dtype: torch.dtype, shape: Sequence[int]) -> int:
    """Return where a tensor's numbers lie, one after the other.

    Args:
        name: what the tensor is, for the message.
        x: the tensor.
        dtype: what it must have.
        shape: what it must have.

    Raises:
        ValueError: it has another dtype or shape, lies elsewhere than in this process's memory,
            or not in one run.
    """
    if x.dtype is dtype and x.shape == shape and x.is_cpu and x.is_contiguous():
        place = x.data_ptr()
        if place or 0 in x.shape:
            return place
    raise _refusal(name, x, dtype, shape, "contiguous")


def own_address(x: Tensor) -> int:
    """Return where a tensor lies that was made for the result, contiguous and of the right shape.

    Raises:
        ValueError: it has no memory: something else than a plain tensor was made.
    """
    place = x.data_ptr()
    if place or not x.numel():
        return place
    raise ValueError(f"a kernel cannot write into a {type(x).__name__} that has no memory.")


def optional_address(
    name: str, x: Tensor | None, dtype: torch.dtype, shape: Sequence[int]
) -> int | None:
    """Return the same, or for no tensor the null pointer."""
    return None if x is None else address(name, x, dtype, shape)


def row_address(name: str, x: Tensor, dtype: torch.dtype, shape: Sequence[int]) -> tuple[int, int]:
    """Return where rows begin and how far apart they lie: of two dimensions, columns of wider rows.

    Raises:
        ValueError: as `address` does.
    """
    if x.dim() != 2 or x.is_contiguous():
        return address(name, x, dtype, shape), shape[-1]
    (stride, step), width = x.stride(), x.shape[1]
    if x.dtype is dtype and x.shape == shape and x.is_cpu and step == 1 and stride >= width:
        return x.data_ptr(), stride
    raise _refusal(name, x, dtype, shape, "each row contiguous")


def _refusal(
    name: str, x: Tensor, dtype: torch.dtype, shape: Sequence[int], layout: str
) -> ValueError:
    strides = f"strides {list(x.stride())}" if x.layout == torch.strided else f"{x.layout}"
    found = f"{type(x).__name__} of {_named([x.dtype])} {list(x.shape)} on {x.device}, {strides}"
    wanted = f"{_named([dtype])} {list(shape)} on the CPU, {layout}"
    return ValueError(f"{name}: a kernel needs {wanted}, and got a {found}.")


def _type(parameter: str) -> Any:
    return ctypes.c_void_p if "*" in parameter else _TYPES[parameter.split()[0]]


def _named(dtypes: Sequence[torch.dtype]) -> str:
    return " and ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
