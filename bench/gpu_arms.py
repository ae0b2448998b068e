"""What `bench/gpu.py` measures: shapes, training arms, ways to attend, generation, GRPO.

Random tokens in rows of several documents; weights are drawn on the GPU.

Shapes: B rows, T tokens, N heads, H width of a key, V of a value.
"""

import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ziphius.data.batch import Batch
from ziphius.dist.world import ALONE
from ziphius.models.config import ModelConfig
from ziphius.models.cost import count_parameters, model_cost
from ziphius.models.forward_batch import ForwardBatch
from ziphius.models.losses import next_token_loss
from ziphius.models.model import Model
from ziphius.models.presets import derive, get_preset
from ziphius.models.published import to_published
from ziphius.recipes.family_settings import family_shape
from ziphius.train.config import TrainConfig
from ziphius.train.guard import Guard
from ziphius.train.loop import same_numbers_each_time
from ziphius.train.optim import build_optimizer
from ziphius.train.optimizer_config import OptimizerConfig
from ziphius.train.stages.language import LanguageStage
from ziphius.train.step import Stepper

DEVICE = torch.device("cuda")
DOCUMENTS = 4
"""Of a row; their lengths differ."""
LEARNING_RATE = 3e-4


@dataclass(frozen=True)
class Shape:
    """A model, and the rows of a step."""

    name: str
    config: ModelConfig
    batch: int
    seq_len: int

    @cached_property
    def flops(self) -> int:
        """Matrix FLOPs of training, per token."""
        flops = model_cost(self.config, batch=self.batch, context=self.seq_len).flops
        return flops.training + flops.training_mtp

    def describe(self) -> dict[str, Any]:
        """Say what is trained."""
        counts = count_parameters(self.config)
        return {
            "parameters": counts.main + counts.mtp,
            "active": counts.active + counts.mtp_active,
            "batch": self.batch,
            "seq_len": self.seq_len,
            "documents_a_row": DOCUMENTS,
        }


DENSE = Shape("dense", get_preset("smollm2-135m"), batch=8, seq_len=2_048)
EXPERTS = Shape(
    "experts",
    derive(
        get_preset("v3-10m"),
        vocab_size=32_768,
        hidden_size=1_024,
        num_hidden_layers=12,
        intermediate_size=2_816,
        num_attention_heads=16,
        num_key_value_heads=16,
        q_lora_rank=384,
        kv_lora_rank=256,
        qk_nope_head_dim=64,
        qk_rope_head_dim=32,
        v_head_dim=64,
        n_routed_experts=32,
        moe_intermediate_size=512,
        num_nextn_predict_layers=0,
    ),
    batch=8,
    seq_len=2_048,
)
MAIN_JOB = Shape("main job", family_shape(), batch=8, seq_len=256)


@dataclass
class Arm:
    """One implementation, ready to step."""

    step: Callable[[], Tensor | float]
    """Train on the next batch; return the loss."""


def build(config: ModelConfig) -> Model:
    """Draw a model on the GPU: on the CPU the larger one takes ten seconds."""
    with DEVICE:
        model = Model(config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, config.initializer_range)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        for buffer in model.buffers():
            buffer.zero_()
    return model


class Rows:
    """A loader of random rows, the same for every arm."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    def batch(self, step: int, micro: int, rank: int, world_size: int) -> Batch:
        """Return the rows of a step."""
        batch, seq_len = self.shape.batch, self.shape.seq_len
        generator = torch.Generator().manual_seed(step)
        ids_BT = torch.randint(
            0, self.shape.config.vocab_size, (batch, seq_len), generator=generator
        )
        cuts = torch.rand(batch, DOCUMENTS - 1, generator=generator).sort(dim=1).values
        places_T = torch.arange(seq_len) / seq_len
        documents_BT = (places_T >= cuts[:, :, None]).sum(dim=1)
        return Batch(ids_BT, documents_BT, domains=("random",) * batch)

    def micros(self, step: int, world_size: int) -> int:
        """All rows at once."""
        return 1

    def tokens_per_step(self, step: int) -> int:
        """Return the tokens of a step."""
        return self.shape.batch * self.shape.seq_len


def stepper(
    shape: Shape,
    *,
    deterministic: bool = False,
    optimizer: str = "adamw",
    dtype: str = "bfloat16",
) -> Arm:
    """Train as a run does: packed rows, stage, step, statistics."""
    model = build(shape.config).train()
    config = TrainConfig(
        budget="1000-steps",
        seq_len=shape.seq_len,
        global_batch_size=shape.batch,
        dtype=dtype,
        optimizer=OptimizerConfig(name=optimizer),
    )
    stage = _Language(Rows(shape), shape.config, config)
    step = Stepper(
        stage,
        model,
        build_optimizer(model, config.optimizer),
        config,
        guard=Guard(config.guard),
        ema=None,
        world=ALONE,
        device=DEVICE,
        dtype=getattr(torch, dtype),
        folder=Path(tempfile.gettempdir()),
    )
    done = iter(range(10**9))

    def run() -> float:
        with same_numbers_each_time(deterministic):
            return step.run(next(done), progress=0.1, learning_rate=LEARNING_RATE).loss

    return Arm(run)


class _Language(LanguageStage):
    name = "bench"

    def validate(self, model: Model) -> dict[str, float]:
        raise NotImplementedError("the benchmark measures no quality")

    def fingerprint(self) -> str:
        return ""


def bare(shape: Shape) -> Arm:
    """Train by the loop that a user would write: causal rows, PyTorch's fused AdamW."""
    model = build(shape.config).train()

    def loss(ids_BT: Tensor) -> Tensor:
        return next_token_loss(model, model(ids_BT), ids_BT).mean

    return _loop(shape, model, loss)


def transformers(shape: Shape) -> Arm:
    """Train transformers' model of the same shape by the same loop."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**to_published(shape.config))
    make: Any = AutoModelForCausalLM.from_config  # has no types
    with DEVICE:
        model = make(config, attn_implementation="sdpa").train()
    assert sum(p.numel() for p in model.parameters()) == count_parameters(shape.config).main

    def loss(ids_BT: Tensor) -> Tensor:
        found: Tensor = model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss
        return found

    return _loop(shape, model, loss)


def _loop(shape: Shape, model: nn.Module, loss: Callable[[Tensor], Tensor]) -> Arm:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    rows, done = Rows(shape), iter(range(10**9))

    def step() -> float:
        ids_BT = rows.batch(next(done), 0, 0, 1).ids_BT.to(DEVICE, non_blocking=True)
        with torch.autocast("cuda", torch.bfloat16):
            value = loss(ids_BT)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return value.item()

    return Arm(step)


def gradients(
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    routes: Mapping[int, Tensor] | None = None,
) -> tuple[tuple[Tensor, dict[str, Tensor]], dict[int, Tensor]]:
    """Return logits and gradients of two packed rows, and the experts that were chosen, on the CPU.

    Near ties may go another way on another device; `routes` makes them go the same.
    """
    model = Model(config)
    model.initialize(seed=0)
    model = model.to(device).train()
    rows = Rows(Shape("", config, batch=2, seq_len=128))
    batch = rows.batch(0, 0, 0, 1).to(device)
    sent = {layer: experts.to(device) for layer, experts in (routes or {}).items()}
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = model(ForwardBatch(batch.ids_BT, documents_BT=batch.documents_BT, routes=sent))
        loss = next_token_loss(model, output, batch.ids_BT, documents_BT=batch.documents_BT).mean
        logits = model.logits(output.hidden_BTD).detach().float().cpu()
    loss.backward()
    grads = {
        name: parameter.grad.float().cpu()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    shape = batch.ids_BT.shape
    chosen = {i: r.experts_MK.cpu().view(*shape, -1) for i, r in output.routings.items()}
    return (logits, grads), chosen


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference over the norm."""
    return float((found - expected).norm() / expected.norm().clamp(min=1e-20))


def waits(arm: Arm) -> Counter[str]:
    """Count where a step makes the host wait for the GPU, by file and line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            arm.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return Counter(
        f"{'/'.join(Path(warning.filename).parts[-2:])}:{warning.lineno}"
        for warning in caught
        if "synchroniz" in str(warning.message)
    )


def generation(model: Model, sequences: int, prompt: int, new: int) -> dict[str, float]:
    """Prefill and decode through the engine; tokens per second of both."""
    from ziphius.engine.build import build_engine
    from ziphius.engine.config import EngineConfig
    from ziphius.engine.generate import Generation, Request
    from ziphius.ops.sampling_config import SamplingConfig

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.config.vocab_size, (sequences, prompt), generator=generator)
    requests = [
        Request(row, new, number, SamplingConfig(temperature=1.0))
        for number, row in enumerate(ids.tolist())
    ]
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):  # the first one warms up
        model.eval()
        config = EngineConfig(
            max_num_seqs=sequences,
            max_num_batched_tokens=sequences * prompt,
            num_blocks=sequences * (-(-(prompt + new) // 16)),
        )
        with Generation(build_engine(model, config), requests) as steps:
            torch.cuda.synchronize()
            times = [time.perf_counter()]
            for _ in steps:
                torch.cuda.synchronize()
                times.append(time.perf_counter())
    return {
        "prefill_tokens_per_s": round(sequences * prompt / (times[1] - times[0])),
        "decode_tokens_per_s": round(sequences * (new - 1) / (times[-1] - times[1])),
        "decode_step_ms": round(1e3 * (times[-1] - times[1]) / (new - 1), 3),
        "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
    }


def grpo(dtype: str) -> Arm:
    """Sample and learn as the main job does, from a random model; rewards are made up."""
    import rl

    return Arm(rl.Ours(dtype, shape=MAIN_JOB.config, device=DEVICE, prompts=64).step)


def attention_ways(heads: int, key: int, value: int, names: Sequence[str]) -> dict[str, Any]:
    """Time ways to attend within documents, and hold them against the mask."""
    torch.manual_seed(0)
    batch, tokens = 8, 2_048
    shape = Shape("", MAIN_JOB.config, batch, tokens)
    documents_BT = Rows(shape).batch(0, 0, 0, 1).documents_BT.to(DEVICE)
    widths = (key, key, value)
    inputs = [
        torch.randn(batch, heads, tokens, w, device=DEVICE, dtype=torch.bfloat16).requires_grad_()
        for w in widths
    ]
    expected = WAYS["mask"](documents_BT, *inputs)().detach()
    found: dict[str, Any] = {}
    for name in names:
        try:
            way = WAYS[name](documents_BT, *inputs)
            worst = float((way().detach() - expected).abs().max())
            found[name] = _timed(way, inputs)
            found[name]["max_difference"] = round(worst, 5)
        except Exception as error:
            found[name] = {"failed": f"{type(error).__name__}: {error}"[:400]}
    return found


def _timed(way: Callable[[], Tensor], inputs: list[Tensor]) -> dict[str, float]:
    def both() -> None:
        out = way()
        torch.autograd.grad(out, inputs, torch.ones_like(out))

    def milliseconds(run: Callable[[], object]) -> float:
        for _ in range(3):
            run()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(10):
            run()
        torch.cuda.synchronize()
        return round(100 * (time.perf_counter() - start), 3)

    return {"forward_ms": milliseconds(way), "both_ms": milliseconds(both)}


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend to all that came before, other documents too: what the kernel can do at best."""
    padded = F.pad(v, (0, q.shape[3] - v.shape[3]))
    return F.scaled_dot_product_attention(q, k, padded, is_causal=True)[..., : v.shape[3]]


def _masked(documents_BT: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend as `ops/attention.py` does, mask included."""
    tokens = q.shape[2]
    mask_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    mask_BTT = mask_BTT & torch.ones(tokens, tokens, dtype=torch.bool, device=DEVICE).tril()
    padded = F.pad(v, (0, q.shape[3] - v.shape[3]))
    out = F.scaled_dot_product_attention(q, k, padded, attn_mask=mask_BTT[:, None])
    return out[..., : v.shape[3]]


def _ends(documents_BT: Tensor) -> tuple[Tensor, int]:
    """Return where documents begin in the joined rows, the end behind, and the longest."""
    flat = documents_BT.flatten()
    begins = torch.ones_like(flat, dtype=torch.bool)
    begins[1:] = flat[1:] != flat[:-1]
    starts = begins.nonzero().flatten().to(torch.int32)
    ends = torch.cat((starts, starts.new_tensor([len(flat)])))
    return ends, int(ends.diff().max())


def _joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(0, 1)


def _apart(joined: Tensor, like: Tensor) -> Tensor:
    apart: Tensor = joined.unflatten(0, (like.shape[0], -1)).transpose(1, 2)
    return apart


def _varlen(documents_BT: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    ends, longest = _ends(documents_BT)
    padded = F.pad(v, (0, q.shape[3] - v.shape[3]))
    parameters = inspect.signature(varlen_attn).parameters
    causal: Any = {"window_size": (-1, 0)} if "window_size" in parameters else {"is_causal": True}
    rows = (_joined(q), _joined(k), _joined(padded))
    out = varlen_attn(*rows, ends, ends, longest, longest, **causal)
    assert isinstance(out, Tensor)
    return _apart(out, q)[..., : v.shape[3]]


def _jagged(documents_BT: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    ends, longest = _ends(documents_BT)
    padded = F.pad(v, (0, q.shape[3] - v.shape[3]))
    make: Any = torch.nested.nested_tensor_from_jagged
    query, key, value = (
        make(_joined(x), ends, min_seqlen=1, max_seqlen=longest).transpose(1, 2)
        for x in (q, k, padded)
    )
    out: Any = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    rows: Tensor = out.transpose(1, 2).values()
    return _apart(rows, q)[..., : v.shape[3]]


def _flex(documents_BT: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Tensor]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    tokens = q.shape[2]
    compiled: Any = torch.compile(flex_attention, dynamic=False)

    def sees(b: Tensor, h: Tensor, query: Tensor, seen: Tensor) -> Tensor:
        return (query >= seen) & (documents_BT[b, query] == documents_BT[b, seen])

    blocks = create_block_mask(sees, len(q), None, tokens, tokens, device="cuda")

    def run() -> Tensor:
        out: Tensor = compiled(q, k, v, block_mask=blocks)
        return out

    return run


Way = Callable[[], Tensor]
WAYS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Way]] = {
    "mask": lambda *inputs: partial(_masked, *inputs),
    "jagged": lambda *inputs: partial(_jagged, *inputs),
    "varlen": lambda *inputs: partial(_varlen, *inputs),
    "causal, documents not kept apart": lambda _, *inputs: partial(_causal, *inputs),
    "flex": lambda *inputs: _flex(*inputs),
}
"""Ways to attend within documents [B, T]: queries and keys [B, N, T, H], values [B, N, T, V]."""
