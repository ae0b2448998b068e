"""`ops/native/program.py`: records are those of the C++ code; what no step can have is refused."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor

from tests.paged import Sequences, paged_cache
from tests.tiny import V2_EXPERTS, V3_EXPERTS, build, grouped_config, latent_config
from ziphius.engine.native_runner import NativeRunner, pages_of, step_tokens, write_program
from ziphius.models.config import ModelConfig
from ziphius.models.forward_batch import ForwardBatch
from ziphius.models.int8 import Int8Linear
from ziphius.models.layers import Linear
from ziphius.models.lora import add_adapters
from ziphius.models.lora_config import LoraConfig
from ziphius.models.model import Model
from ziphius.models.moe import RoutedExperts
from ziphius.ops import native
from ziphius.ops.cache_rows import RowLayout
from ziphius.ops.native import program_records
from ziphius.ops.native.program import Pages, StepExtras, pack_weight
from ziphius.ops.native.program_builder import NotNative, Program
from ziphius.ops.native.program_records import KINDS, Norm, Place

pytestmark = pytest.mark.skipif(not native.serves(), reason=f"native kernels {native.status()}")
TOPK = {"topk_method": "topk", "scoring_func": "softmax", "norm_topk_prob": False}
TOPK |= {"n_group": 1, "topk_group": 1}
HEADER = (Path(native.__file__).parent / "program.h").read_text()


@pytest.mark.parametrize("record", [Place, Norm, *KINDS], ids=lambda record: record.__name__)
def test_a_record_has_the_fields_of_the_header(record: type[Any]) -> None:
    [body] = re.findall(rf"^struct {record.__name__} {{(.*?)^}};", HEADER, re.M | re.S)
    declared = []
    for line in re.sub(r"//.*", "", body).split(";"):
        if line.strip():
            kind, names = line.split(maxsplit=1)
            declared += [(name.strip(), kind) for name in names.split(",")]
    types = {int: "int64_t", float: "double", Place: "Place", Norm: "Norm"}
    own = [(name.removesuffix("_"), types[kind]) for name, kind in get_type_hints(record).items()]
    assert own == declared


def test_kinds_have_the_numbers_of_the_header() -> None:
    for name, members in (
        ("Kind", [kind.__name__ for kind in KINDS]),
        ("Into", list(program_records.Into.__members__)),
        ("Scoring", list(program_records.Scoring.__members__)),
    ):
        [words] = re.findall(rf"^enum {name} : int64_t {{ (.*) }};", HEADER, re.M)
        assert [re.sub("_", "", word.strip()).lower() for word in words.split(",")] == [
            re.sub("_", "", member).lower() for member in members
        ]


def step(
    config: ModelConfig | None = None, **runner: Any
) -> tuple[Model, NativeRunner, ForwardBatch]:
    """A runner that has computed some tokens, and the batch that comes next."""
    model = build(config or latent_config()).eval()
    cache = paged_cache(model, 12, 4, torch.float32)
    sequences = Sequences(cache, [torch.arange(9), torch.arange(6)])
    native_runner = NativeRunner(model, cache, **runner)
    native_runner(sequences.batch([(0, 3), (1, 5)]))
    return model, native_runner, sequences.batch([(0, 4), (1, 1)])


def changed(x: Tensor, place: Any, value: int) -> Tensor:
    x = x.clone()
    x[place] = value
    return x


@pytest.mark.parametrize(
    ("field", "place", "value", "complaint"),
    [
        ("input_ids_BT", (0, 1), 61, "a token id is not one of the vocabulary of 61"),
        ("input_ids_BT", (0, 4), -1, "a token id"),
        ("logits_rows_L", 0, 5, "a row is not one of the 5 tokens"),
        ("logits_rows_L", 1, -1, "a row is not"),
        ("cu_seqlens_Z1", 0, 1, "do not rise from 0 to the 5 tokens"),
        ("cu_seqlens_Z1", 1, 5, "one or more a sequence"),
        ("cu_seqlens_Z1", 1, 0, "one or more a sequence"),
        ("seq_lens_Z", 0, 3, "shorter than its new tokens"),
        ("seq_lens_Z", 0, 13, "longer than its block table"),
        ("block_tables_ZJ", (0, 0), 12, "a block is not one of the cache's 12"),
        ("block_tables_ZJ", (1, 1), -1, "a block is not"),
        ("slot_mapping_M", 0, 0, "a slot is not where"),
        ("slot_mapping_M", 4, 2**40, "a slot is not where"),
    ],
)
def test_a_wrong_batch_is_refused_and_writes_nothing(
    field: str, place: Any, value: int, complaint: str
) -> None:
    _, runner, batch = step()
    assert batch.paged is not None
    batch = replace(batch, logits_rows_L=torch.tensor([3, 4]))
    if field.endswith(("_BT", "_L")):
        batch = replace(batch, **{field: changed(getattr(batch, field), place, value)})
    else:
        paged = replace(batch.paged, **{field: changed(getattr(batch.paged, field), place, value)})
        batch = replace(batch, paged=paged)
    before = [part.clone() for parts in batch.paged.cache.parts for part in parts]
    with pytest.raises(ValueError, match=complaint):
        runner(batch)
    after = [part for parts in batch.paged.cache.parts for part in parts]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old.nan_to_num(7.0), new.nan_to_num(7.0))


def test_two_tokens_are_not_written_to_one_slot() -> None:
    _, runner, batch = step()
    paged = batch.paged
    assert paged is not None
    tables_ZJ = paged.block_tables_ZJ[:1].expand(2, -1).contiguous()
    slots_M = tables_ZJ[0, 0] * 4 + torch.tensor([0, 1, 2, 3, 0])
    lengths_Z = torch.tensor([4, 1])
    twice = replace(paged, block_tables_ZJ=tables_ZJ, slot_mapping_M=slots_M, seq_lens_Z=lengths_Z)
    with pytest.raises(ValueError, match="written twice"):
        runner(replace(batch, paged=twice))


def test_extras_that_a_program_has_no_use_for_are_refused() -> None:
    model, _, batch = step()
    written = write_program(model, takes_adapters=True)
    tokens = step_tokens(batch.input_ids_BT, batch.paged)
    pages = pages_of(batch.paged.cache)
    packed = written.pack_adapter({})
    for adapters_Z in ([1, 0], [0, -2]):
        extras = StepExtras(adapters_Z=torch.tensor(adapters_Z), adapters=[packed])
        with pytest.raises(ValueError, match="not among those given"):
            written.run(tokens, pages, extras, threads=1)
    extras = StepExtras(adapters_Z=torch.tensor([0, -1]), adapters=[packed])
    with pytest.raises(ValueError, match="packed for another program"):
        write_program(model).run(tokens, pages, extras, threads=1)
    extras = StepExtras(received_MD=torch.zeros(5, 24))
    with pytest.raises(ValueError, match="received rows"):
        written.run(tokens, pages, extras, threads=1)


def test_batches_of_another_kind_are_refused() -> None:
    model, runner, batch = step()
    assert batch.paged is not None
    with pytest.raises(ValueError, match="of its own cache"):
        runner(ForwardBatch(batch.input_ids_BT))
    other = replace(batch.paged, cache=paged_cache(model, 12, 4, torch.float32))
    with pytest.raises(ValueError, match="of its own cache"):
        runner(replace(batch, paged=other))
    with pytest.raises(ValueError, match="replay"):
        runner(replace(batch, routes={1: torch.zeros(1, 5, 2, dtype=torch.int64)}))
    with pytest.raises(ValueError, match="positions differ"):
        runner(replace(batch, positions_BT=torch.zeros(1, 5, dtype=torch.int64)))
    runner(replace(batch, positions_BT=batch.paged.positions_M()[None]))


def test_a_cache_of_other_rows_is_refused() -> None:
    model = build(latent_config())
    cache = paged_cache(build(grouped_config()), 12, 4, torch.float32)
    sequences = Sequences(cache, [torch.arange(3)])
    with pytest.raises(
        ValueError, match=r"layer 0 keeps rows of \(18,\), the cache has \(16, 16\)"
    ):
        NativeRunner(model, cache)(sequences.batch([(0, 3)]))


class OtherNorm(torch.nn.Module):
    """Something that no program knows."""


class OtherLinear(Linear):
    """A layer that computes something else and inherits `emit`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def with_adapters(model: Model) -> None:
    add_adapters(model, LoraConfig(rank=2), seed=0)


def with_int8(model: Model) -> None:
    mlp = model.model.layers[0].mlp
    mlp.down_proj = Int8Linear(mlp.down_proj)


def with_a_subclass(model: Model) -> None:
    model.model.layers[1].self_attn.o_proj.__class__ = OtherLinear


def with_a_hook(model: Model) -> None:
    model.model.norm.register_forward_hook(lambda *call: None)


def with_two_dtypes(model: Model) -> None:
    model.model.layers[0].mlp.bfloat16()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_adapters, "LoraLinear has no native operation"),
        (with_int8, "Int8Linear has no native operation"),
        (with_a_subclass, "OtherLinear has no native operation"),
        (lambda model: setattr(model.model, "norm", OtherNorm()), "OtherNorm has no native"),
        (lambda model: setattr(model, "pattern", object()), "object has no native"),
        (with_a_hook, "a RMSNorm has hooks"),
        (with_two_dtypes, "a weight is torch.bfloat16 among others in torch.float32"),
        (lambda model: model.double(), "weights are torch.float64"),
    ],
)
def test_a_model_that_no_program_computes_says_why(change: Any, reason: str) -> None:
    model = build(latent_config())
    change(model)
    with pytest.raises(NotNative, match=reason):
        write_program(model)


def test_without_kernels_there_is_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "serves", lambda *tensors: False)
    with pytest.raises(NotNative, match="native kernels are"):
        Program(torch.float32)


def test_a_batch_that_comes_again_is_read_again() -> None:
    """An engine hands the same one out, and changes in place what it holds."""
    _, runner, batch = step()
    first = runner(batch).logits_LW.clone()
    batch.input_ids_BT.add_(1)
    again = runner(batch).logits_LW.clone()
    assert not torch.allclose(again, first)
    other = replace(batch, input_ids_BT=batch.input_ids_BT.clone())
    assert torch.equal(runner(other).logits_LW, again)
    batch.input_ids_BT[0, 2] = 61
    for _ in range(2):
        with pytest.raises(ValueError, match="a token id is not one"):
            runner(batch)


def test_weights_that_change_are_seen_after_a_refresh() -> None:
    model, runner, batch = step()
    before = runner(batch).logits_LW.clone()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(3.0)
    assert torch.equal(runner(batch).logits_LW, before)
    runner.refresh()
    after = runner(batch).logits_LW.clone()
    assert not torch.allclose(after, before)
    assert torch.equal(NativeRunner(model, batch.paged.cache)(batch).logits_LW, after)


@pytest.mark.parametrize("config", [latent_config(**V3_EXPERTS), grouped_config()])
def test_float32_weights_are_rounded_on_the_way_into_a_program(config: ModelConfig) -> None:
    """Those of products, to the bit as torch rounds; embeddings, norms and router stay."""
    model, runner, batch = step(config, dtype=torch.bfloat16)
    assert runner.program.dtype == torch.bfloat16
    found = runner(batch).logits_LW.clone()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear | RoutedExperts):
                for weight in module.parameters(recurse=False):
                    weight.copy_(weight.bfloat16())
    cache = batch.paged.cache
    assert torch.equal(NativeRunner(model, cache, dtype=torch.bfloat16)(batch).logits_LW, found)
    # Rounded, the other weights are those of a model in bfloat16, which gives something else.
    stored = model.bfloat16()
    theirs = NativeRunner(stored, cache)(batch).logits_LW.clone()
    assert not torch.equal(theirs, found)
    again = NativeRunner(stored.float(), cache, dtype=torch.bfloat16)
    assert torch.equal(again(batch).logits_LW, theirs)


def test_weights_are_not_widened() -> None:
    model = build(latent_config()).bfloat16()
    with pytest.raises(
        NotNative, match=r"products in torch\.float32 of weights in torch\.bfloat16"
    ):
        write_program(model, torch.float32)


def test_routes_are_those_of_the_gates() -> None:
    model, runner, batch = step(latent_config(**V3_EXPERTS), record_routes=True)
    routes_MYK = runner(batch).routes_MYK
    with torch.no_grad():
        routing = model(batch).routings[1]
    assert routes_MYK.dtype == torch.int16
    assert torch.equal(routes_MYK[:, 0].long(), routing.experts_MK)
    _, without, batch = step(record_routes=True)
    assert without(batch).routes_MYK is None


@pytest.mark.parametrize(
    "config",
    [
        latent_config(**V3_EXPERTS),
        latent_config(**V2_EXPERTS),
        latent_config(**V3_EXPERTS | TOPK),
    ],
    ids=["sigmoid", "softmax", "topk"],
)
def test_routes_are_replayed_as_modules_do_it(config: ModelConfig) -> None:
    """In any order, and without the best expert: their weights are the gate's own."""
    model, _, batch = step(config)
    paged, top = batch.paged, config.num_experts_per_tok
    assert paged is not None
    order = torch.stack([torch.randperm(8)[:top] for _ in range(5)])
    output = write_program(model).run(
        step_tokens(batch.input_ids_BT, paged),
        pages_of(paged.cache),
        StepExtras(replayed_MYK=order[:, None].short()),
        threads=2,
        record_routes=True,
        return_hidden=True,
    )
    assert torch.equal(output.routes_MYK[:, 0].long(), order)
    with torch.no_grad():
        expected = model(replace(batch, routes={1: order[None]}))
    assert torch.allclose(output.hidden_MD, expected.hidden_BTD[0], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        chosen = model(batch)
    assert not torch.allclose(output.hidden_MD, chosen.hidden_BTD[0], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("expert", [-1, 8])
def test_a_route_to_no_expert_is_refused(expert: int) -> None:
    model, _, batch = step(latent_config(**V3_EXPERTS))
    routes_MYK = torch.zeros(5, 1, 2, dtype=torch.int16)
    routes_MYK[4, 0, 1] = expert
    tokens = step_tokens(batch.input_ids_BT, batch.paged)
    pages, extras = pages_of(batch.paged.cache), StepExtras(replayed_MYK=routes_MYK)
    program = write_program(model)
    with pytest.raises(ValueError, match="replayed: a route names an expert"):
        program.run(tokens, pages, extras, threads=1)


def test_hidden_states_are_returned_where_they_are_asked_for() -> None:
    model, runner, batch = step(return_hidden=True)
    hidden_MD = runner(batch).hidden_MD
    with torch.no_grad():
        expected_BTD = model(batch).hidden_BTD
    assert hidden_MD.shape == (5, 24)
    assert torch.allclose(hidden_MD, expected_BTD[0], rtol=1e-5, atol=1e-5)
    _, without, batch = step()
    assert without(batch).hidden_MD is None


def test_parts_of_a_cache_are_looked_at() -> None:
    parts = [(torch.zeros(8, 3),), (torch.zeros(8, 4), torch.zeros(7, 4))]
    layouts = [(RowLayout(3, 128),), (RowLayout(4, 128),) * 2]
    with pytest.raises(ValueError, match="part of the cache"):
        Pages(parts, layouts, torch.float32, 4)
    rows = [(torch.zeros(8, 8, dtype=torch.uint8),)]
    for numbers, wrong in ((torch.float32, RowLayout(3, 128)), (torch.int8, RowLayout(7, 128))):
        with pytest.raises(ValueError, match="part of the cache"):
            Pages(rows, [(wrong,)], numbers, 4)
    Pages(rows, [(RowLayout(3, 128),)], torch.int8, 4)


def test_a_weight_is_not_packed_past_its_arena() -> None:
    with pytest.raises(ValueError, match="ends at byte 4096 of an arena of 4000"):
        pack_weight(torch.zeros(3, 5), torch.zeros(4_000, dtype=torch.uint8), 0, 1)
