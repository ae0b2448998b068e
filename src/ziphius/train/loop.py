"""The one loop of all stages: it owns the order of things, and a stage only says what a loss is.

The order of a run: take the lock, go on from the newest checkpoint, measure the start, and then
for every step: the learning rate from the schedule, the step, the record, the plan, a measurement
if it is due, a checkpoint if it is due. A signal ends the run after the step that is going on.
"""

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils import deterministic as settings

from ziphius.core.device import resolve_dtype
from ziphius.core.memory import keep_freed_memory
from ziphius.dist.world import ALONE, World
from ziphius.models.model import Model
from ziphius.ops import native
from ziphius.ops.precision import prefer_onednn_for_float32
from ziphius.train.activation_checkpointing import activation_checkpointing
from ziphius.train.budget import parse_budget
from ziphius.train.config import TrainConfig
from ziphius.train.ema import Ema
from ziphius.train.guard import Guard
from ziphius.train.interrupt import StopRequest, stop_requests
from ziphius.train.optim import build_optimizer
from ziphius.train.plan import Pace, planned_steps, progress, refuse_spent
from ziphius.train.rates import peak_rate
from ziphius.train.result import TrainResult
from ziphius.train.schedules import learning_rate_factor
from ziphius.train.seams import Recorder, StepRecord, Store, TrainState, ValidationRecord
from ziphius.train.stage import Stage
from ziphius.train.step import StepOutcome, Stepper

FIRST_SAVE_S = 30.0
"""Until the first checkpoint of a run: even a short one has something to go on from."""


def train(
    stage: Stage,
    model: Model,
    config: TrainConfig,
    folder: Path,
    *,
    store: Store,
    recorder: Recorder | None,
    world: World = ALONE,
) -> TrainResult:
    """Train a model until its budget is spent or a signal comes; a run that is there goes on.

    Args:
        stage: batches and losses.
        model: on its device, with the weights of the start; trained in place.
        config: how.
        folder: of the run; a step that fails is saved there.
        store: where checkpoints go and come from.
        recorder: where figures go; None on all ranks but the first.
        world: the ranks that do this together. Each calls this with the same arguments; the first
            one writes.

    Raises:
        DivergenceError: loss or gradient went wrong; see `train/guard.py`.
    """
    with ExitStack() as stack:
        if world.is_first:
            stack.enter_context(store.lock())
        stack.enter_context(same_numbers_each_time(config.deterministic))
        keep_freed_memory()
        stack.enter_context(fast_float32(next(model.parameters()).device))
        stack.enter_context(activation_checkpointing(model, config.activation_checkpointing))
        request = stack.enter_context(stop_requests())
        if recorder is not None:
            stack.callback(recorder.close)
        run = _Run(stage, model, config, folder, store, recorder, world, request)
        run.resume()
        run.go()
        return run.finish()


@contextmanager
def same_numbers_each_time(is_on: bool) -> Iterator[None]:
    """Let torch take only kernels whose result does not hang on the timing of threads."""
    before = torch.are_deterministic_algorithms_enabled()
    fills_before = settings.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(is_on)
    if is_on:  # cuBLAS reads it when it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Filling fresh memory with NaN finds errors of kernels, at a price; it changes no result.
    settings.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        settings.fill_uninitialized_memory = fills_before  # type: ignore[attr-defined]


@contextmanager
def fast_float32(device: torch.device) -> Iterator[None]:
    """Let the faster library multiply float32 matrices on a CPU, where it is as exact."""
    matrices = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matrices.fp32_precision
    if device.type == "cpu":
        prefer_onednn_for_float32()
    try:
        yield
    finally:
        matrices.fp32_precision = before


@dataclass
class _SaveClock:
    """When the next checkpoint is due."""

    every: str
    is_first: bool = True
    saved_step: int = 0
    saved_at: float = 0.0

    def is_due(self, step: int) -> bool:
        """Tell whether enough steps or enough time went by since the last one."""
        interval = parse_budget(self.every)
        if interval.unit == "steps":
            return step - self.saved_step >= interval.amount
        wait = min(FIRST_SAVE_S, interval.amount) if self.is_first else interval.amount
        return time.perf_counter() - self.saved_at >= wait

    def saved(self, step: int) -> None:
        """Start anew."""
        self.saved_step, self.saved_at = step, time.perf_counter()
        self.is_first = step == 0


class _Run:
    """One start of a run, from what is in its folder to its end or a signal."""

    def __init__(
        self,
        stage: Stage,
        model: Model,
        config: TrainConfig,
        folder: Path,
        store: Store,
        recorder: Recorder | None,
        world: World,
        request: StopRequest,
    ) -> None:
        self.config, self.folder, self.store, self.recorder = config, folder, store, recorder
        self.world, self.request = world, request
        self.device = next(model.parameters()).device
        budget = parse_budget(config.budget)
        self.state = TrainState(
            model,
            build_optimizer(model, config.optimizer),
            Ema(model, config.ema_decay) if config.ema_decay else None,
            stage,
            Guard(config.guard),
            plan={
                "budget": config.budget,
                "total_steps": planned_steps(budget, config.batch_sizes, config.seq_len),
                "planned_s": None,
            },
        )
        self.stepper = Stepper(
            stage,
            model,
            self.state.optimizer,
            config,
            guard=self.state.guard,
            ema=self.state.ema,
            world=world,
            device=self.device,
            dtype=resolve_dtype(config.dtype, self.device),
            folder=folder,
        )
        self.pace = Pace(config, budget.amount if budget.unit == "seconds" else 0.0)
        self.clock = _SaveClock(config.save_every)
        self.learning_rate = peak_rate(config.learning_rate, model.config)
        self.loss: float | None = None

    @property
    def total_steps(self) -> int | None:
        total: int | None = self.state.plan["total_steps"]
        return total

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        checkpoint, state = self.store.latest(), self.state
        if checkpoint is not None:
            exact = self.store.restore(state, checkpoint)
            refuse_spent(
                self.folder,
                self.config,
                step=state.step,
                seconds=state.seconds,
                total_steps=self.total_steps,
            )
            self.pace.planned_s = state.plan.get("planned_s")
            if self.pace.budget_s and self.total_steps is None and state.step:
                # Of another budget: without a length the rate would be that of the beginning.
                state.plan["total_steps"] = self.pace.guess(state.step, state.seconds)
            if self.recorder is not None:
                self.recorder.resumed(state.step, exact)
        self.clock.saved(state.step)

    def go(self) -> None:
        """Do steps until all are done or a signal came."""
        self._tell_of_slow_kernels()
        self.state.model.train()
        if self.state.step == 0 and self.config.validate_every:
            self._validate()
        while not self._is_done() and not self._is_stopped():
            self._step()
            step, every = self.state.step, self.config.validate_every
            if every and (step % every == 0 or step == self.total_steps):
                self._validate()
            if self._agreed(self.clock.is_due(step)):
                self._save()

    def finish(self) -> TrainResult:
        """Save the end of the run."""
        state = self.state
        if self.clock.saved_step != state.step or self.store.latest() is None:
            self._save()
        checkpoint = self.store.wait() if self.world.is_first else self.folder
        return TrainResult(
            stage=state.stage.name,
            folder=self.folder,
            checkpoint=checkpoint,
            step=state.step,
            total_steps=self.total_steps,
            tokens=state.tokens_seen,
            seconds=state.seconds,
            loss=self.loss,
            validation=state.validation,
            validation_step=state.validation_step,
            validation_at_start=state.validation_at_start,
            baselines=state.stage.baselines(),
            spikes=state.guard.spikes,
            skipped_steps=state.guard.skipped_steps,
            stopped_by=self.request.signal,
        )

    def _step(self) -> None:
        state, config = self.state, self.config
        started = time.perf_counter()
        done = progress(config.batch_sizes, state.step, self.total_steps)
        learning_rate = self.learning_rate * learning_rate_factor(
            config.schedule,
            step=state.step,
            progress=done,
            warmup_steps=config.warmup_steps,
            total_steps=self.total_steps,
        )
        outcome = self.stepper.run(state.step, progress=done, learning_rate=learning_rate)
        seconds = time.perf_counter() - started
        self.pace.observe(state.step, seconds)
        self.loss = outcome.loss
        state.step += 1
        state.tokens_seen += outcome.tokens
        state.seconds += seconds
        self._plan()
        self._record(outcome, seconds, learning_rate)

    def _plan(self) -> None:
        """Turn a budget of time into steps, as often as enough of them were measured."""
        state = self.state
        if self.pace.budget_s and self._agreed(self.pace.is_due(state.seconds)):
            total = self.pace.plan(state.step, state.seconds)
            state.plan["total_steps"] = int(self.world.of_first(total, self.device))
            state.plan["planned_s"] = self.pace.planned_s

    def _record(self, outcome: StepOutcome, seconds: float, learning_rate: float) -> None:
        state = self.state
        if self.recorder is None:
            return
        if outcome.jump is not None:
            self.recorder.warn(
                f"Step {state.step}: the loss jumped to {outcome.loss:.4g}, {outcome.jump:.1f} "
                "standard deviations above those before it."
            )
        if state.step % self.config.log_every and state.step != self.total_steps:
            return
        self.recorder.step(
            StepRecord(
                step=state.step,
                loss=outcome.loss,
                terms=outcome.terms | outcome.metrics,
                tokens=outcome.tokens,
                seconds=seconds,
                learning_rate=learning_rate,
                grad_norm=outcome.grad_norm,
                grad_norm_by_part=outcome.grad_norm_by_part,
                counts_by_layer=outcome.counts_by_layer,
                gate_entropy_by_layer=outcome.gate_entropy_by_layer,
                progress=progress(self.config.batch_sizes, state.step, self.total_steps),
                eta_s=self.pace.eta_s(state.step, self.total_steps, state.seconds),
                bytes_count=outcome.bytes_count,
                is_skipped=outcome.is_skipped,
            )
        )

    def _validate(self) -> None:
        state = self.state
        started = time.perf_counter()
        averaged: AbstractContextManager[None] = nullcontext()
        if self.config.validate_ema and state.ema is not None:
            averaged = state.ema.applied(state.model)
        state.model.eval()
        with torch.no_grad(), self.stepper.autocast(), averaged:
            state.validation = state.stage.validate(state.model)
        state.validation_step = state.step
        if state.step == 0:
            state.validation_at_start = state.validation
        state.model.train()
        seconds = time.perf_counter() - started
        self.pace.validation_s = seconds
        state.seconds += seconds
        if self.recorder is not None:
            self.recorder.validation(ValidationRecord(state.step, state.validation, seconds))

    def _save(self) -> None:
        self.clock.saved(self.state.step)
        if self.world.is_first:
            self.store.save_async(self.state)

    def _tell_of_slow_kernels(self) -> None:
        """Say once that a training on a CPU goes without compiled kernels, and why."""
        if self.recorder is not None and self.device.type == "cpu" and not native.serves():
            self.recorder.warn(f"Training is slow here: native kernels are {native.status()}.")

    def _is_done(self) -> bool:
        return self.total_steps is not None and self.state.step >= self.total_steps

    def _is_stopped(self) -> bool:
        """Tell whether a signal came to any rank."""
        stops = {"stop": float(self.request.signal is not None)}
        return self.world.sum_numbers(stops, self.device)["stop"] > 0

    def _agreed(self, decision: bool) -> bool:
        """Return the first rank's decision: clocks differ."""
        return bool(self.world.of_first(float(decision), self.device))
