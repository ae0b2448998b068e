"""One optimizer step: the only place that divides a summed loss by a count.

The order: count what the losses are divided by, over all micro-batches and ranks; backward through
each micro-batch with its sums divided by those global counts; add the gradients of all ranks up;
look at loss and gradient; clip; step; average the weights; move the router biases. Any split of the
rows into micro-batches and ranks therefore gives the same step, up to rounding.

A step in which nothing counts for the stage's first term, on no rank, has no target. It moves
nothing: momentum and weight decay would move the weights without a reason to.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ziphius.data.batch import Batch
from ziphius.dist.world import World
from ziphius.models.model import Model
from ziphius.train.config import TrainConfig
from ziphius.train.ema import Ema
from ziphius.train.errors import DivergenceError
from ziphius.train.failed_step import dump_step
from ziphius.train.guard import Guard
from ziphius.train.optim.parts import parts
from ziphius.train.stage import Stage
from ziphius.train.sums import Sums

TOKENS, BYTES = "all tokens", "bytes"
"""Counted beside the stage's own weights."""


@dataclass(frozen=True)
class StepOutcome:
    """What one step measured, over all micro-batches and ranks."""

    loss: float
    """Mean of the stage's first term."""
    terms: dict[str, float]
    """Mean of each term, without its coefficient."""
    metrics: dict[str, float]
    tokens: int
    bytes_count: int
    grad_norm: float
    """Before clipping."""
    grad_norm_by_part: dict[str, float]
    counts_by_layer: dict[int, list[int]]
    """Tokens that each expert of a layer received."""
    gate_entropy_by_layer: dict[int, float]
    """Mean entropy of a token's affinities, in nats."""
    jump: float | None
    """By how many standard deviations the loss jumped, if it did."""
    is_skipped: bool
    """The step had no target: weights, optimizer, averages and router biases are as before."""

    @property
    def is_finite(self) -> bool:
        """Tell whether the weights may take this step."""
        return all(map(math.isfinite, (*self.terms.values(), self.grad_norm)))


class Stepper:
    """Do the optimizer steps of one run.

    The model, the optimizer, the averages and the guard are the caller's, and are changed here.
    """

    def __init__(
        self,
        stage: Stage,
        model: Model,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        *,
        guard: Guard,
        ema: Ema | None,
        world: World,
        device: torch.device,
        dtype: torch.dtype,
        folder: Path,
    ) -> None:
        self.stage, self.model, self.optimizer, self.config = stage, model, optimizer, config
        self.guard, self.ema = guard, ema
        self.world, self.device, self.dtype, self.folder = world, device, dtype, folder
        self.parts = parts(model)

    def run(self, step: int, *, progress: float, learning_rate: float) -> StepOutcome:
        """Do one step, or count it as skipped where there is nothing to learn.

        Raises:
            DivergenceError: the loss or the gradient is not finite, or the loss jumped and that is
                to stop the run. The weights are those from before the step.
        """
        batches = self.stage.batches(step)
        weights = self._global_weights(batches)
        sums = self._backward(batches, weights, progress)
        self._reduce_gradients()
        outcome = self._outcome(step, weights, sums)
        self._refuse_divergence(step, batches, sums, outcome)
        if outcome.is_skipped:
            self.guard.skipped_steps += 1
        else:
            self._update(step, outcome, progress=progress, learning_rate=learning_rate)
        # Gone before a checkpoint copies the state, so that one is not the peak of a run's memory.
        self.optimizer.zero_grad(set_to_none=True)
        return outcome

    def autocast(self) -> torch.autocast:
        """Return the context that losses are computed in."""
        is_on = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype if is_on else None, enabled=is_on)

    def _global_weights(self, batches: Sequence[Batch]) -> dict[str, float]:
        """Add the divisors up over the whole step, and with them all tokens and bytes."""
        totals: dict[str, float] = {}
        for batch in batches:
            found = {TOKENS: batch.tokens, BYTES: batch.bytes_count} | self.stage.weights(batch)
            for key, weight in found.items():
                totals[key] = totals.get(key, 0.0) + weight
        return self.world.sum_numbers(totals, self.device)

    def _backward(
        self, batches: Sequence[Batch], weights: Mapping[str, float], progress: float
    ) -> Sums:
        self.optimizer.zero_grad(set_to_none=True)
        sums = Sums()
        for batch in batches:
            with self.autocast():
                output = self.stage.loss(self.model, batch.to(self.device), progress)
            objective = torch.zeros((), device=self.device)
            for term in output.terms.values():
                share = term.coefficient / _divisor(weights[term.weight_key])
                objective = objective + share * term.loss_sum
            objective.backward()
            # Routings of layers that only the backward pass computes are there now.
            sums.add(output)
        return sums

    def _reduce_gradients(self) -> None:
        if self.world.size == 1:
            return
        trained = [parameter for members in self.parts.values() for parameter in members]
        for parameter in trained:
            if parameter.grad is None:  # another rank may have one
                parameter.grad = torch.zeros_like(parameter)
        self.world.sum_flat_([p.grad for p in trained if p.grad is not None])

    def _outcome(self, step: int, weights: Mapping[str, float], sums: Sums) -> StepOutcome:
        totals = sums.totals(self.world, self.device)
        terms = {
            name: loss_sum / _divisor(weights[sums.weight_keys[name]])
            for name, loss_sum in totals.terms.items()
        }
        first, loss = next(iter(terms.items()))
        is_skipped = weights[sums.weight_keys[first]] == 0
        is_observed = math.isfinite(loss) and not is_skipped
        by_part = self._norms()
        return StepOutcome(
            loss=loss,
            terms=terms,
            metrics=totals.metrics,
            tokens=int(weights[TOKENS]),
            bytes_count=int(weights[BYTES]),
            grad_norm=math.hypot(*by_part.values()),
            grad_norm_by_part=by_part,
            counts_by_layer=totals.counts,
            gate_entropy_by_layer=totals.entropies,
            jump=self.guard.observe(step, loss) if is_observed else None,
            is_skipped=is_skipped,
        )

    def _norms(self) -> dict[str, float]:
        """Return the norm of the gradient of each part."""
        norms = [
            torch.nn.utils.get_total_norm([p.grad for p in members if p.grad is not None])
            for members in self.parts.values()
        ]
        values = torch.stack([norm.to(self.device) for norm in norms]).tolist()
        return dict(zip(self.parts, values, strict=True))

    def _refuse_divergence(
        self, step: int, batches: Sequence[Batch], sums: Sums, outcome: StepOutcome
    ) -> None:
        is_stopping_jump = outcome.jump is not None and self.guard.config.on_spike == "stop"
        if outcome.is_finite and not is_stopping_jump:
            return
        bad = [
            name
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None and not parameter.grad.isfinite().all()
        ]
        report = {
            "step": step + 1,  # as it is recorded: the first step is 1
            "rank": self.world.rank,
            "terms": outcome.terms,
            "loss_sums_of_micro_batches": [float(loss) for loss in sums.losses],
            "domains": [list(batch.domains) for batch in batches],
            "grad_norm_by_part": outcome.grad_norm_by_part,
            "gradients_not_finite": bad,
            "jump_sigma": outcome.jump,
            "losses_before": list(self.guard.window),
        }
        saved = dump_step(self.folder, batches, report)
        raise DivergenceError(f"{_what_went_wrong(step, outcome, bad)} Its batch is in {saved}.")

    def _update(
        self, step: int, outcome: StepOutcome, *, progress: float, learning_rate: float
    ) -> None:
        if self.config.clip and outcome.grad_norm > self.config.clip:
            trained = [p for members in self.parts.values() for p in members]
            scale = self.config.clip / outcome.grad_norm
            torch._foreach_mul_([p.grad for p in trained if p.grad is not None], scale)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model, step)
        if self.config.bias_rate and progress < self.config.bias_until:
            counts = {
                layer: torch.tensor(counts, dtype=torch.float32, device=self.device)
                for layer, counts in outcome.counts_by_layer.items()
            }
            self.model.update_router_biases(counts, self.config.bias_rate)


def _divisor(weight: float) -> float:
    """Return the weight; where nothing counts the sum is 0 and stays it."""
    return weight or 1.0


def _what_went_wrong(step: int, outcome: StepOutcome, bad_gradients: Sequence[str]) -> str:
    terms = [name for name, value in outcome.terms.items() if not math.isfinite(value)]
    if terms:
        return f"Step {step + 1}: the loss is not finite ({', '.join(terms)})."
    if not math.isfinite(outcome.grad_norm):
        first = bad_gradients[0] if bad_gradients else "the norm of all"
        return (
            f"Step {step + 1}: the loss {outcome.loss:.4g} is finite, but {len(bad_gradients)} "
            f"gradients are not, the first of {first}. Try a smaller learning rate, or float32 "
            "where it was not."
        )
    return (
        f"Step {step + 1}: the loss jumped to {outcome.loss:.4g}, {outcome.jump:.1f} standard "
        "deviations above those before it (guard.on_spike is stop)."
    )
