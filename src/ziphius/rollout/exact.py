"""Log-probabilities of sampled tokens to the bit those of the sampler, with their gradients.

A sampler and a trainer that each have kernels of their own disagree in the last bits, so that
probability ratios begin away from 1. Here the forward pass of the trainer is the sampler's native
program (`ops/native/program_builder.py`), in which a row has one order of sums whatever is beside
it: batch-invariant kernels on both sides, as vLLM with torchtitan and SGLang have them for
on-policy RL. The backward pass is activation checkpointing (arXiv 1604.06174): each decoder layer
is computed again by its module, from the input that the program left, with the program's routes.

Shapes: M tokens of a row, Z runs of a chunk, J tokens of the longest one, X sampled tokens (of
`streams_XMD` decoder layers), Y expert layers, K experts per token, D hidden.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ziphius.engine.native_runner import pages_of, step_tokens
from ziphius.models.cache import PagedCache
from ziphius.models.forward_batch import ForwardBatch, PagedTokens
from ziphius.models.gates import Routing
from ziphius.models.model import Model
from ziphius.models.segments import BranchRuns, branch_runs
from ziphius.ops import native
from ziphius.ops.logprobs import head_logprobs, score_rows
from ziphius.ops.native.program import ProgramOutput, StepExtras
from ziphius.ops.native.program_builder import Program

_MOST_TOKENS, _MOST_LOGITS = 2048, 16 * 2**20
"""Of one run of the program; they limit memory alone."""


class Sampled(NamedTuple):
    """Tokens to be scored, and how they were drawn."""

    sources_X: Tensor
    """Place in the row of the token that predicts each of them."""
    targets_X: Tensor
    """The tokens."""
    temperature: float
    vocab_limit: int
    """Tokens that the sampler draws (`engine/build.py`): where sums are cut hangs on it."""


def exact_logprobs(
    program: Program, model: Model, batch: ForwardBatch, sampled: Sampled
) -> tuple[Tensor, dict[int, Routing]]:
    """Return the log-probabilities [X] of sampled tokens, and by layer how tokens were routed.

    The routings are there once the backward pass has computed the layers; without gradients there
    are none.

    Args:
        program: of the model's present weights, as the sampler has it.
        model: on the CPU.
        batch: a row of branches (`models/segments.py`). Its routes are those of all expert layers,
            or none: then gates choose, and drop no token in training either.
        sampled: what is scored.
    """
    with torch.no_grad():
        logprobs_X, streams_XMD, routes = _run(program, model, batch, sampled)
    if not torch.is_grad_enabled():
        return logprobs_X, {}
    with _recomputed_layers(model, streams_XMD):
        output = model(replace(batch, routes=routes))
    weight_WD = model.head.weight
    assert isinstance(weight_WD, Tensor)
    scores_X = head_logprobs(
        F.embedding(sampled.sources_X, output.hidden_BTD[0]),
        weight_WD,
        sampled.targets_X,
        temperature=sampled.temperature,
        known_X=logprobs_X,
    )
    return scores_X, output.routings


def _run(
    program: Program, model: Model, batch: ForwardBatch, sampled: Sampled
) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
    """Run the program over the row, in chunks, whose cuts no bit depends on.

    Returns:
        Log-probabilities, the stream behind each layer, and the routes taken.
    """
    assert batch.documents_BT is not None
    assert batch.branches_BT is not None
    runs = branch_runs(batch.documents_BT, batch.branches_BT)
    layers = range(model.config.num_hidden_layers)
    expert_layers = [layer for layer in layers if model.config.is_expert_layer(layer)]
    replayed_MYK = _laid_out(batch, expert_layers)
    tokens = batch.input_ids_BT.shape[1]
    cache = PagedCache(model.cache_specs()[: len(layers)], num_blocks=tokens, block_size=1)
    chunk = min(_MOST_TOKENS, max(1, _MOST_LOGITS // model.config.vocab_size))
    logprobs_X = torch.empty(len(sampled.targets_X))
    outputs = []
    for start in range(0, tokens, chunk):
        end = min(start + chunk, tokens)
        own_X = ((sampled.sources_X >= start) & (sampled.sources_X < end)).nonzero().flatten()
        output = program.run(
            step_tokens(
                batch.input_ids_BT[:, start:end],
                _paged(runs, cache, start, end),
                sampled.sources_X[own_X] - start,
            ),
            pages_of(cache),
            StepExtras(replayed_MYK=None if replayed_MYK is None else replayed_MYK[start:end]),
            threads=torch.get_num_threads(),
            record_routes=replayed_MYK is None,
            return_streams=True,
        )
        logprobs_X[own_X] = _scores(output, sampled, own_X)
        outputs.append(output)
    streams_XMD = torch.cat([o.streams_XMD for o in outputs if o.streams_XMD is not None], dim=1)
    if batch.routes or not expert_layers:
        return logprobs_X, streams_XMD, dict(batch.routes)
    chosen_MYK = torch.cat([o.routes_MYK for o in outputs if o.routes_MYK is not None]).long()
    routes = dict(zip(expert_layers, chosen_MYK.transpose(0, 1).unsqueeze(1), strict=True))
    return logprobs_X, streams_XMD, routes


def _laid_out(batch: ForwardBatch, expert_layers: list[int]) -> Tensor | None:
    """Lay out the routes of a batch as programs read them, [M, Y, K]."""
    if not batch.routes:
        return None
    assert sorted(batch.routes) == expert_layers, "routes are of all expert layers, or of none"
    return torch.stack([batch.routes[layer][0] for layer in expert_layers], dim=1).short()


def _scores(output: ProgramOutput, sampled: Sampled, own_X: Tensor) -> Tensor:
    """Return the log-probabilities of the tokens that a run has logits of."""
    targets_X = sampled.targets_X[own_X]
    temperatures_X = torch.full((len(own_X),), sampled.temperature)
    limit = sampled.vocab_limit
    return score_rows(output.logits_LW, targets_X, temperatures_X, limit=limit)[0]


def _paged(runs: BranchRuns, cache: PagedCache, start: int, end: int) -> PagedTokens:
    """Make sequences of the runs' tokens from `start` to `end`; token m of the row has slot m.

    A branch reads its trunk where the trunk wrote it, in the same step too: every layer writes the
    rows of all tokens before it reads any.
    """
    ends_Z = runs.starts_Z + runs.lengths_Z
    is_here_Z = (runs.starts_Z < end) & (ends_Z > start)
    starts_Z, trunk_starts_Z = runs.starts_Z[is_here_Z], runs.trunk_starts_Z[is_here_Z]
    trunks_Z, ends_Z = runs.trunk_lengths_Z[is_here_Z], ends_Z[is_here_Z].clamp(max=end)
    new_Z = ends_Z - starts_Z.clamp(min=start)
    lengths_Z = trunks_Z + ends_Z - starts_Z
    place_J = torch.arange(int(lengths_Z.max()))
    in_trunk_ZJ = place_J < trunks_Z[:, None]
    first_ZJ = torch.where(in_trunk_ZJ, trunk_starts_Z[:, None], (starts_Z - trunks_Z)[:, None])
    bounds_Z1 = F.pad(new_Z.cumsum(0), (1, 0))
    return PagedTokens(
        cache, bounds_Z1, lengths_Z, torch.arange(start, end), (first_ZJ + place_J).contiguous()
    )


@contextmanager
def _recomputed_layers(model: Model, streams_XMD: Tensor) -> Iterator[None]:
    """Let decoder layers return what is known, and compute only in the backward pass."""
    layers = model.model.layers[: model.config.num_hidden_layers]
    for layer, stream_MD in zip(layers, streams_XMD, strict=True):
        weights = [weight for weight in layer.parameters() if weight.requires_grad]
        known = partial(_recomputed, layer.forward, stream_MD.unsqueeze(0), weights)
        # An attribute of the instance comes before the method of the class.
        object.__setattr__(layer, "forward", known)
    try:
        yield
    finally:
        for layer in layers:
            object.__delattr__(layer, "forward")


def _recomputed(
    compute: Callable[..., Tensor],
    known_BTD: Tensor,
    weights: list[nn.Parameter],
    hidden_BTD: Tensor,
    context: Any,
) -> Tensor:
    again = partial(compute, context=context)
    out_BTD: Tensor = native.apply(_Recomputed, again, known_BTD, hidden_BTD, *weights)
    return out_BTD


class _Recomputed(torch.autograd.Function):
    """A function of known result, which the backward pass computes for its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        compute: Callable[[Tensor], Tensor],
        known: Tensor,
        x: Tensor,
        *weights: nn.Parameter,
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.compute, ctx.weights = compute, weights
        ctx.is_autocast = torch.is_autocast_enabled(x.device.type)
        ctx.autocast_dtype = torch.get_autocast_dtype(x.device.type)
        return known

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        [x] = ctx.saved_tensors
        as_before = torch.autocast(x.device.type, ctx.autocast_dtype, enabled=ctx.is_autocast)
        with torch.enable_grad(), as_before:
            x = x.detach().requires_grad_()
            out = ctx.compute(x)
        grads = torch.autograd.grad(out, (x, *ctx.weights), grad, allow_unused=True)
        return None, None, *grads
