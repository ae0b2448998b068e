"""`ops/native/`: declarations are those of the C++ code; what a kernel cannot read is refused."""

import ast
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny import build as build_model
from tests.tiny import grouped_config
from tests.twins import draw
from tests.unit.ops.native.test_sizes import KERNELS
from ziphius.ops import native
from ziphius.ops.cache_rows import RowLayout
from ziphius.ops.native import (
    attention,
    build,
    dense,
    digest,
    experts,
    heads,
    int8,
    pointwise,
    program,
    routing,
    sampling,
)
from ziphius.ops.native.binding import Kernel, address, own_address, row_address
from ziphius.ops.native.program_builder import Program

FOLDER = Path(build.__file__).parent
SOURCES = sorted(FOLDER.glob("*.cpp"))
C_TYPES = {"f": "float", "b": "bf16", "i": "int8", "e": "fp8"}
here = pytest.mark.skipif(not native.serves(), reason=f"native kernels {native.status()}")


def declared(kernel: Kernel) -> list[str]:
    """Write the declaration of each symbol of a kernel, as the Python side understands it."""
    lines = []
    for kind in kernel.kinds.values():
        parameters = kernel.parameters
        for letter, dtype in zip("TU", (kind[:1], kind[1:]), strict=True):
            parameters = re.sub(rf"\b{letter}\b", C_TYPES.get(dtype, "?"), parameters)
        lines.append(f"{kernel.returns} {kernel.symbol(kind)}({parameters});")
    return lines


@here
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_declarations_are_those_of_the_code(source: Path, tmp_path: Path) -> None:
    """C++ refuses a second declaration of a C function that differs from the first in any type."""
    text = source.read_text()
    kernels = [
        kernel
        for kernel in KERNELS.values()
        if re.search(rf"\b{kernel.name}(_##suffix|_b)?\(", text[text.index('extern "C"') :])
    ]
    assert kernels
    lines = [line for kernel in kernels for line in declared(kernel)]
    again = tmp_path / "again.cpp"
    again.write_text(f'#include "{source}"\nextern "C" {{\n' + "\n".join(lines) + "\n}\n")
    compiler = shutil.which("g++") or shutil.which("clang++")
    assert compiler is not None
    words = [compiler, *build.COMMON_FLAGS, "-fsyntax-only", str(again)]
    found = subprocess.run(words, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_every_kernel_of_the_code_has_one_declaration() -> None:
    exported = set()
    for source in SOURCES:
        text = source.read_text()
        part = text[text.index('extern "C"') :]
        exported |= set(re.findall(r"^ *(?:void|int64_t) (\w+?)(?:_##suffix|_b)?\(", part, re.M))
    assert exported == KERNELS.keys()


def test_addresses_are_given_out_by_one_file() -> None:
    """A call site that took a tensor's address itself would go round the checks."""
    found = set()
    for path in FOLDER.parents[1].rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "data_ptr":
                found.add(path.name)
    assert found == {"binding.py"}


@pytest.mark.parametrize(
    ("tensor", "complaint"),
    [
        (torch.zeros(2, 3, dtype=torch.float64), "got a Tensor of float64"),
        (torch.zeros(3, 2), r"\[3, 2\]"),
        (torch.zeros(3, 2).t(), r"strides \[1, 2\]"),
        (torch.zeros(2, 3, device="meta"), "on meta"),
        (torch.zeros(2, 3).to_sparse(), "sparse"),
        (torch.zeros(1, 3).expand(2, 3), r"strides \[0, 1\]"),
    ],
)
def test_a_tensor_that_is_something_else_is_refused(tensor: Tensor, complaint: str) -> None:
    for give in (address, row_address):
        with pytest.raises(ValueError, match=f"^rows: a kernel needs float32 .*{complaint}"):
            give("rows", tensor, torch.float32, (2, 3))


class Elsewhere(Tensor):
    """A tensor whose numbers another one holds, as those of DTensor: its address is null."""

    @classmethod
    def __torch_dispatch__(cls, *call: Any) -> Any:
        raise NotImplementedError


def test_a_tensor_without_memory_is_refused() -> None:
    elsewhere = Tensor._make_wrapper_subclass(Elsewhere, (2, 3), dtype=torch.float32)
    with pytest.raises(ValueError, match="got a Elsewhere of float32"):
        address("rows", elsewhere, torch.float32, (2, 3))
    with pytest.raises(ValueError, match="a Elsewhere that has no memory"):
        own_address(elsewhere)
    assert own_address(torch.zeros(0, 3)) == 0


def test_columns_of_wider_rows_have_a_stride() -> None:
    wide = torch.zeros(4, 10)
    place, stride = row_address("rows", wide[:, 2:5], torch.float32, (4, 3))
    assert (place, stride) == (wide.data_ptr() + 2 * 4, 10)
    assert row_address("rows", wide, torch.float32, (4, 10)) == (wide.data_ptr(), 10)


Call = tuple[Callable[..., Any], dict[str, Tensor]]


def pointwise_calls() -> dict[str, Call]:
    x = {name: draw(6, 8) for name in ("x_XD", "update_XD", "grad_XD", "grad_sum_XD")}
    weight = {"weight_D": draw(8)}
    rows = {name: draw(6, 8) for name in ("gate_XF", "up_XF")}
    grads = {name: draw(6, 8) for name in ("grad_XF", "grad_gate_XF", "grad_up_XF")}
    chosen = {"slot_MK": draw(6, 12).topk(2).indices, "weights_MK": draw(6, 2)}
    to_norm, of_norm = {"x_XD", "update_XD"}, {"x_XD", "grad_XD", "grad_sum_XD"}
    return {
        "rms_norm": (
            partial(pointwise.rms_norm, eps=1e-6, dtype=torch.float32),
            {name: x[name] for name in to_norm} | weight,
        ),
        "rms_norm_backward": (
            pointwise.rms_norm_backward,
            {name: x[name] for name in of_norm} | weight | {"inverse_X": draw(6)},
        ),
        "swiglu": (pointwise.swiglu, rows),
        "swiglu_backward": (pointwise.swiglu_backward, rows | grads),
        "combine": (pointwise.combine, chosen | {"rows_JD": draw(12, 8), "base_MD": draw(6, 8)}),
        "cross_entropy": (
            pointwise.cross_entropy,
            {"logits_XW": draw(6, 8), "targets_X": torch.arange(6)},
        ),
    }


def attention_calls() -> dict[str, Call]:
    angles = {"cos_BTr": draw(2, 3, 2), "sin_BTr": draw(2, 3, 2)}
    inputs = {
        "query_BNTH": draw(2, 3, 5, 8),
        "key_BNSH": draw(2, 3, 5, 8),
        "value_BNSV": draw(2, 3, 5, 4),
        "mask_BTS": torch.ones(2, 5, 5, dtype=torch.bool),
    }
    outputs = {name: draw(2, 3, 5, 4) for name in ("out_BNTV", "grad_BNTV")}
    options: dict[str, Any] = {"is_causal": True, "scale": 1.0}
    return {
        "latent_queries": (
            partial(heads.latent_queries, backward=False),
            {"from_": draw(2, 3, 4, 9), **angles},
        ),
        "rotate": (
            partial(heads.rotate, halves=True, backward=False),
            {"x_BTNR": draw(2, 3, 5, 4), **angles},
        ),
        "latent_keys": (
            partial(heads.latent_keys, nope=5),
            {"expanded_BTNX": draw(2, 3, 4, 9), "shared_BTR": draw(2, 3, 2)},
        ),
        "latent_keys_backward": (
            partial(heads.latent_keys_backward, nope=5),
            {"grad_key_BNTH": draw(2, 4, 3, 7), "grad_value_BNTV": draw(2, 4, 3, 6)},
        ),
        "attention_forward": (partial(attention.attention_forward, **options), inputs),
        "attention_backward": (
            partial(attention.attention_backward, **options),
            inputs | outputs | {"lse_BNT": draw(2, 3, 5)},
        ),
    }


def expert_calls() -> dict[str, Call]:
    chosen = draw(6, 4).topk(2).indices
    order = routing.sort_pairs(chosen, 4)
    parts = {"pairs_Z": order.pairs_Z, "offsets": order.offsets}
    through = {"x_MD": draw(6, 8), "gate_up_E2FD": draw(4, 10, 8), "down_EDF": draw(4, 8, 5)}
    back = {"grad_MD": draw(6, 8), "weights_MK": draw(6, 2), "gate_up_Z2F": draw(12, 10)}

    def forward(pairs_Z: Tensor, offsets: Tensor, **tensors: Tensor) -> Any:
        sorted_pairs = order._replace(pairs_Z=pairs_Z, offsets=offsets)
        return experts.experts_forward(order=sorted_pairs, keep=True, **tensors)

    def backward(pairs_Z: Tensor, offsets: Tensor, **tensors: Tensor) -> Any:
        sorted_pairs = order._replace(pairs_Z=pairs_Z, offsets=offsets)
        return experts.experts_backward(order=sorted_pairs, **tensors)

    return {
        "top_experts": (
            partial(routing.top_experts, top_k=2, groups=2, top_groups=1, judges=1),
            {"scores_ME": draw(6, 8)},
        ),
        "sort_pairs": (partial(routing.sort_pairs, num_experts=4), {"experts_MK": chosen}),
        "experts_forward": (forward, through | parts),
        "experts_backward": (backward, through | back | parts),
    }


def product_calls() -> dict[str, Call]:
    return {
        "dense": (
            partial(dense.dense, transposed=True),
            {"x_MI": draw(6, 8), "weight": draw(4, 8)},
        ),
        "dense_gradient": (
            dense.dense_gradient,
            {"grad_MO": draw(6, 4).bfloat16(), "x_MI": draw(6, 8).bfloat16()},
        ),
        "int8_linear": (
            int8.int8_linear,
            {
                "x_JK": draw(6, 8),
                "starts_G1": torch.tensor([0, 2, 6]),
                "weight_GNK": torch.ones(2, 3, 8, dtype=torch.int8),
                "scale_GN1": draw(2, 3, 1),
                "bias_N": draw(3),
            },
        ),
    }


def sampling_calls() -> dict[str, Call]:
    columns = {
        "keys_L": torch.arange(6),
        "temperatures_L": draw(6).abs() + 0.1,
        "top_k_L": torch.arange(6),
        "top_p_L": torch.full((6,), 0.9, dtype=torch.float64),
        "min_p_L": torch.full((6,), 0.1),
        "positions_L": torch.arange(6),
    }
    logits = {"logits_LW": draw(6, 8)}
    given = {"ids_L": torch.arange(6), "temperatures_L": columns["temperatures_L"]}
    return {
        "sample": (partial(sampling.sample, limit=8), logits | columns),
        "score": (partial(sampling.score, limit=8), logits | given),
    }


def program_calls() -> dict[str, Call]:
    """A step of two sequences, one with a token before the new one."""
    written = Program(torch.float32)
    model = build_model(grouped_config())
    model.emit(written)
    written.pack()
    parts = {f"part{index}": torch.zeros(8, 16) for index in range(4)}
    tokens = {
        "input_ids_M": torch.tensor([3, 5, 7]),
        "cu_seqlens_Z1": torch.tensor([0, 2, 3]),
        "seq_lens_Z": torch.tensor([2, 2]),
        "slot_mapping_M": torch.tensor([0, 1, 5]),
        "block_tables_ZJ": torch.tensor([[0], [1]]),
        "logits_rows_L": torch.tensor([1, 2]),
    }

    def run(part0: Tensor, part1: Tensor, part2: Tensor, part3: Tensor, **named: Tensor) -> Any:
        layouts = [(RowLayout(16, 8),) * 2] * 2
        parts = [(part0, part1), (part2, part3)]
        pages = program.Pages(parts, layouts, torch.float32, 4)
        return written.run(program.StepTokens(**named), pages, threads=1)

    def pack(weight_OI: Tensor, arena: Tensor) -> None:
        program.pack_weight(weight_OI, arena, 0, 1)

    return {
        "program_run": (run, tokens | parts),
        "pack_weight": (
            pack,
            {"weight_OI": draw(3, 5), "arena": torch.zeros(4096, dtype=torch.uint8)},
        ),
        "digest": (digest.digest, {"words_X": torch.arange(5, dtype=torch.int32)}),
    }


def calls() -> dict[str, Call]:
    """A call of each wrapper that works, its tensors by name."""
    parts = (
        pointwise_calls(),
        attention_calls(),
        expert_calls(),
        product_calls(),
        program_calls(),
        sampling_calls(),
    )
    return {name: call for part in parts for name, call in part.items()}


ALLOWED = {
    "longer": {  # the last dimension is what gives the kernel its size
        ("cross_entropy", "logits_XW"),
        ("sample", "logits_LW"),
        ("score", "logits_LW"),
        ("latent_queries", "from_"),
        ("latent_keys", "expanded_BTNX"),
        ("latent_keys", "shared_BTR"),
        ("latent_keys_backward", "grad_key_BNTH"),
        ("latent_keys_backward", "grad_value_BNTV"),
        ("attention_forward", "value_BNSV"),
        ("sort_pairs", "experts_MK"),
        ("dense_gradient", "grad_MO"),
        ("dense_gradient", "x_MI"),
        ("pack_weight", "weight_OI"),
        ("pack_weight", "arena"),
        ("digest", "words_X"),
        ("program_run", "block_tables_ZJ"),  # entries behind a sequence's last block
        ("program_run", "logits_rows_L"),
    },
    "dimension": {("int8_linear", "x_JK")},  # rows of any leading shape
    "gaps": {("rotate", "x_BTNR")},  # is made contiguous
}


@here
@pytest.mark.parametrize("name", KERNELS)
def test_each_tensor_of_each_kernel_is_looked_at(name: str) -> None:
    """One at a time it gets a wrong dtype or place, gaps, a dimension more, or is one longer."""
    function, tensors = calls()[name]
    function(**tensors)
    for key, x in tensors.items():
        wrongs = {
            "dtype": x.to(torch.int16),
            "place": x.to("meta"),
            "gaps": torch.stack((x, x), -1)[..., 0],
            "dimension": x[None],
            "longer": torch.cat((x, x[..., -1:]), -1),
        }
        for kind, wrong in wrongs.items():
            if (name, key) not in ALLOWED.get(kind, set()):
                with pytest.raises(ValueError):  # noqa: PT011
                    function(**tensors | {key: wrong})


@here
@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (
            lambda: pointwise.cross_entropy(draw(3, 5), torch.tensor([0, 5, 1])),
            "are 0 to 5; a .* 5",
        ),
        (lambda: pointwise.cross_entropy(draw(3, 5), torch.tensor([0, -1, 1])), "are -1 to 1"),
        (lambda: pointwise.combine(draw(3, 5), torch.tensor([[-1]]), None, None), "begin at -1"),
        (lambda: routing.sort_pairs(torch.tensor([[0, 4]]), 3), "are 0 to 4; of 3"),
        (lambda: routing.sort_pairs(torch.tensor([[0, -2]]), 3), "are -2 to 0; of 3"),
        (lambda: top(groups=3), "8 experts are not cut into 3"),
        (lambda: top(top_k=5), "no 5 experts in 1 of 2 groups, each of 4"),
        (lambda: top(judges=5), "judged by 5"),
        (lambda: in_groups([0, 2]), "do not go from 0 to 3"),
        (lambda: in_groups([1, 3]), "do not go from 0 to 3"),
        (lambda: in_groups([0, 4, 3]), "do not go from 0 to 3"),
        (lambda: in_groups(None, groups=2), "do not say where"),
        (lambda: through_experts(pairs=[0, 1, 9]), "not in an order"),
        (lambda: through_experts(offsets=[0, 3, 2]), "not in an order"),
        (lambda: heads.rotate(draw(1, 1, 1, 3), ANGLE, ANGLE, halves=True, backward=False), "of 3"),
        (lambda: heads.latent_queries(draw(1, 1, 1, 1), ANGLE, ANGLE, backward=False), "no 2"),
        (lambda: heads.latent_keys(draw(1, 1, 1, 3), draw(1, 1, 2), 4), "4 of 3"),
        (lambda: heads.latent_keys_backward(draw(1, 1, 1, 3), draw(1, 1, 1, 2), 4), "4 of 3"),
        (lambda: causal(3, 4), "3 have 4"),
        (lambda: scored([0, 5]), "ids are 0 to 5; a vocabulary of 5"),
        (lambda: scored([0, -1]), "ids are -1 to 0"),
        (lambda: scored([0, 1], limit=6), "up to 6 cannot be drawn from a vocabulary of 5"),
        (lambda: scored([0, 1], limit=0), "up to 0"),
        (lambda: dense.dense(draw(2, 3), draw(4, 3).bfloat16(), transposed=True), "dense takes"),
    ],
)
def test_numbers_out_of_range_are_refused(call: Callable[[], Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        call()


ANGLE = torch.zeros(1, 1, 1)


def top(**changes: int) -> Tensor:
    options = {"top_k": 2, "groups": 2, "top_groups": 1, "judges": 1} | changes
    return routing.top_experts(draw(3, 8), **options)


def scored(ids: list[int], limit: int = 5) -> Any:
    return sampling.score(draw(2, 5), torch.tensor(ids), torch.ones(2), limit=limit)


def in_groups(starts: list[int] | None, groups: int = 1) -> Tensor:
    """Three rows through INT8 weights."""
    groups = len(starts) - 1 if starts else groups
    weight, scale = torch.ones(groups, 4, 5, dtype=torch.int8), torch.ones(groups, 4, 1)
    places = None if starts is None else torch.tensor(starts)
    return int8.int8_linear(draw(3, 5), places, weight, scale, None)


def through_experts(pairs: Sequence[int] = (0, 1, 2), offsets: Sequence[int] = (0, 1, 3)) -> Any:
    """Three tokens, each through one of two experts."""
    slot_MK = torch.zeros(3, 1, dtype=torch.int64)
    order = routing.SortedPairs(torch.tensor(pairs), slot_MK, torch.tensor(offsets), 3)
    return experts.experts_forward(draw(3, 4), order, draw(2, 6, 4), draw(2, 4, 3), keep=False)


def causal(queries: int, keys: int) -> Any:
    query, key = draw(1, 1, queries, 4), draw(1, 1, keys, 4)
    return attention.attention_forward(query, key, key, None, is_causal=True, scale=1.0)


@here
def test_a_refused_row_of_targets_leaves_the_logits_alone() -> None:
    logits = draw(3, 5)
    before = logits.clone()
    with pytest.raises(ValueError, match="vocabulary of 5"):
        pointwise.cross_entropy(logits, torch.tensor([0, 1, 5]))
    assert torch.equal(logits, before)
