"""GRPO, group relative policy optimisation, on rewards that a task verifies.

Sources: DeepSeekMath (arXiv 2402.03300), section 4; DeepSeek-R1 (arXiv 2501.12948), section 2.2;
the arithmetic, with what it takes from later papers, is in `rl/objective.py`. What is settled here:

1. The answers come from the model that trains, at its present weights, in the numbers it trains
   in, through one engine for the whole run. Every token is scored with the experts it was sampled
   through, so that trainer and sampler agree: the largest difference of a log-probability is a
   metric of every step, in float32 a few millionths, and with `exact_logprobs` 0
   (`rollout/exact.py`).
2. Groups whose rewards are all equal are dropped, from the sum and from what it is divided by, the
   penalty against a reference included. Where asked for, their prompts are replaced by others
   first, as DAPO does (arXiv 2503.14476, section 3.2), up to a stated number of times. A step
   without any other group moves nothing.
3. Nothing else moves: no balance loss, router biases stand still. MTP layers are left out: a
   sampled answer is no text to imitate, and layers that are not trained cannot leak a gradient
   into the head they share.

Shapes: G groups, A completions of a group, X sampled tokens.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ziphius.core.device import resolve_dtype
from ziphius.core.errors import ConfigError
from ziphius.data.batch import Batch
from ziphius.dist.world import ALONE, World
from ziphius.engine.native_runner import write_program
from ziphius.models.forward_batch import ForwardBatch
from ziphius.models.model import Model
from ziphius.ops.logprobs import head_logprobs
from ziphius.ops.native.program_builder import Program
from ziphius.rl.batch import GrpoBatch, build_batch
from ziphius.rl.objective import clipped_losses, k3_penalties
from ziphius.rl.problems import ProblemStream
from ziphius.rl.rollout_batch import (
    ASKED,
    COMPLETIONS,
    FIGURES,
    FORMAT,
    GROUPS,
    SAMPLED,
    STEPS,
    RolloutBatch,
    from_json,
    sample_rollout_batch,
    to_json,
)
from ziphius.rl.settings import GrpoConfig
from ziphius.rollout.engine import RolloutEngine
from ziphius.rollout.exact import Sampled, exact_logprobs
from ziphius.rollout.sample import sample_groups
from ziphius.tasks import Problem
from ziphius.text.tokenizer import Tokenizer
from ziphius.train.config import TrainConfig
from ziphius.train.errors import TrainingError
from ziphius.train.stage import LossOutput, Stage, Term

KEPT = "kept tokens"
"""Tokens of groups that teach something: what the losses are divided by."""
VALIDATION_FIRST_ID = 2**48
"""Sequences of measurements begin here, far from those of any step."""


class GrpoStage(Stage):
    """Learn from sampled completions.

    Args:
        model: that will be trained, and samples. Its present weights are the reference, if one is
            kept.
        tokenizer: with the chat format that the model speaks.
        problems: says what each round of sampling asks.
        config: how completions become a gradient.
        train: rows, seed and numbers of the run.
        validation: held-out problems, one answer each.
        data_fingerprint: names the problems.
        world: the ranks that share the problems.
    """

    name = "grpo"

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        problems: ProblemStream,
        config: GrpoConfig,
        train: TrainConfig,
        *,
        validation: Sequence[Problem] = (),
        data_fingerprint: str = "",
        world: World = ALONE,
    ) -> None:
        self.model, self.problems = model, problems
        self.config, self.train, self.world = config, train, world
        self.validation, self.data_fingerprint = validation, data_fingerprint
        self.device = next(model.parameters()).device
        self.dtype = resolve_dtype(train.dtype, self.device)
        self.engine = RolloutEngine(
            model, tokenizer, dtype=self.dtype, record_routes=config.replay_routes
        )
        self.reference: Model | None = None
        if config.beta:
            self.reference = copy.deepcopy(model).eval().requires_grad_(False)
        self._reference_program: Program | None = None
        if config.exact_logprobs:
            self._refuse_inexact()
        self._rollouts: RolloutBatch | None = None
        self._steps_done = 0

    def batches(self, step: int) -> list[Batch]:
        """Sample, or take up what was sampled for an earlier step, as this rank's micro-batches."""
        if self.config.exact_logprobs:
            self.engine.update_weights(step)
        number, update = divmod(step, self.config.num_iterations)
        if self._rollouts is None or self._rollouts.number != number:
            assert update == 0, "completions of an earlier step are part of the state"
            self._rollouts = self._sample(number)
        self._steps_done = step + 1
        return list(self._micro_batches(self._rollouts, is_fresh=update == 0))

    def weights(self, batch: Batch) -> dict[str, float]:
        """Count the tokens of groups that teach something, and what was sampled."""
        assert isinstance(batch, GrpoBatch)
        keys = (SAMPLED, COMPLETIONS, ASKED, GROUPS, STEPS)
        counts = {key: batch.counts.get(key, 0.0) for key in keys}
        return {KEPT: float(len(batch.targets_X)), **counts}

    def loss(self, model: Model, batch: Batch, progress: float) -> LossOutput:
        """Return the clipped objective, the penalty if there is a reference, and the figures."""
        assert isinstance(batch, GrpoBatch)
        routes = batch.routes if self.config.replay_routes else {}
        logprobs_X, routings = self._logprobs(model, batch, routes)
        config = self.config
        losses_X, clipped_X = clipped_losses(
            logprobs_X,
            batch.rollout_logprobs_X,
            batch.advantages_X,
            config.epsilon,
            config.epsilon_high,
        )
        terms = {
            "policy": Term(losses_X.sum(), KEPT),
            "clip_ratio": Term(clipped_X.sum().float(), KEPT, 0.0),
        }
        if batch.ref_logprobs_X is not None:
            penalties_X = k3_penalties(logprobs_X, batch.rollout_logprobs_X, batch.ref_logprobs_X)
            terms["kl"] = Term(penalties_X.sum(), KEPT, config.beta)
        figures = FIGURES | ({FORMAT: ASKED} if config.format_bonus else {})
        for name, key in figures.items():
            total = torch.tensor(batch.figures.get(name, 0.0), device=logprobs_X.device)
            terms[name] = Term(total, key, 0.0)
        difference_X = (logprobs_X.detach() - batch.rollout_logprobs_X).abs()
        is_measured = batch.is_fresh and difference_X.numel() > 0
        if config.exact_logprobs and is_measured:
            assert not difference_X.any(), "trainer and sampler run one program on the same weights"
        metrics = {"sampling_logp_difference_max": difference_X.max() if is_measured else 0.0}
        return LossOutput(terms, metrics, routings)

    def validate(self, model: Model) -> dict[str, float]:
        """Answer the held-out problems once each; `loss` is the share that is wrong."""
        assert self.validation, "there is nothing to validate on"
        assert model is self.model, "the engine has the weights of another model"
        size, rank = self.world.size, self.world.rank
        share = -(-len(self.validation) // size)
        mine = self.validation[rank * share : (rank + 1) * share]
        groups = sample_groups(
            self.engine,
            mine,
            self.config.rollout.model_copy(update={"num_generations": 1}),
            seed=self.train.seed,
            first_sequence_id=VALIDATION_FIRST_ID + rank * share,
        )
        found = [rollout for group in groups for rollout in group]
        sums = {
            "completions": float(len(found)),
            "correct": float(sum(rollout.is_correct for rollout in found)),
            "tokens": float(sum(len(rollout.token_ids) for rollout in found)),
        }
        sums = self.world.sum_numbers(sums, self.device)
        correct = sums["correct"] / sums["completions"]
        length = sums["tokens"] / sums["completions"]
        return {"loss": 1 - correct, "pass@1": correct, "completions/mean_length": length}

    def fingerprint(self) -> str:
        """Name the problems and how they are answered."""
        return f"{self.data_fingerprint} {self.config.model_dump_json()}"

    def state(self) -> dict[str, Any]:
        """Return the completions that later steps still learn from; between two rollout batches,
        nothing."""
        if self._rollouts is None or self._steps_done % self.config.num_iterations == 0:
            return {}
        return {"rollout_batch": to_json(self._rollouts), "steps_done": self._steps_done}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        if state and "rollout_batch" not in state:
            raise TrainingError(
                "The checkpoint lies between two steps on the same completions, as an earlier "
                "version kept them: go on from one between two rollout batches, or start a new run "
                "from its weights."
            )
        if state:
            self._rollouts = from_json(state["rollout_batch"])
            self._steps_done = state["steps_done"]

    def _sample(self, number: int) -> RolloutBatch:
        """Sample this rank's share of a round; its version is the steps that led to its weights."""
        self.engine.update_weights(number * self.config.num_iterations)
        return sample_rollout_batch(
            self.engine,
            self.problems,
            self.config,
            number=number,
            seed=self.train.seed,
            world=self.world,
        )

    def _micro_batches(self, found: RolloutBatch, *, is_fresh: bool) -> Sequence[GrpoBatch]:
        rows = self.train.resolved_micro_batch_size(self.world.size)
        at_once = max(1, rows // self.config.rollout.num_generations)
        groups = found.groups or [found.spare]
        batches = [
            replace(self._with_reference(build_batch(groups[i : i + at_once])), is_fresh=is_fresh)
            for i in range(0, len(groups), at_once)
        ]
        # Counts are of the step that sampled; a number of the whole step stands on one rank only.
        none = {} if is_fresh else {name: 0.0 for name, key in FIGURES.items() if key == STEPS}
        counts = found.counts | {STEPS: float(self.world.is_first)}
        batches[0] = replace(batches[0], figures=found.figures | none, counts=counts)
        return batches

    def _with_reference(self, batch: GrpoBatch) -> GrpoBatch:
        """Score the tokens with the reference, through experts of its own choice."""
        if self.reference is None:
            return batch
        with torch.no_grad(), self._autocast():
            scores_X, _ = self._logprobs(self.reference, batch.to(self.device), {})
        return replace(batch, ref_logprobs_X=scores_X.cpu())

    def _logprobs(
        self, model: Model, batch: GrpoBatch, routes: Mapping[int, Tensor]
    ) -> tuple[Tensor, dict[int, Any]]:
        """Return the log-probabilities of the sampled tokens, and how tokens were routed; exact
        ones have that behind the backward pass."""
        temperature = self.config.rollout.sampling.temperature
        forward = ForwardBatch(
            batch.ids_BT,
            documents_BT=batch.documents_BT,
            branches_BT=batch.branches_BT,
            routes=routes,
        )
        if self.config.exact_logprobs:
            limit = self.engine.tokenizer.vocab_size
            sampled = Sampled(batch.sources_X, batch.targets_X, temperature, limit)
            return exact_logprobs(self._packed(model), model, forward, sampled)
        output = model(forward)
        hidden_XD = F.embedding(batch.sources_X, output.hidden_BTD[0])
        weight_WD = model.head.weight
        assert isinstance(weight_WD, Tensor)
        scores_X = head_logprobs(hidden_XD, weight_WD, batch.targets_X, temperature=temperature)
        return scores_X, dict(output.routings)

    def _packed(self, model: Model) -> Program:
        """Return the packed weights that score exactly: the sampler's, or the reference's."""
        if model is not self.reference:
            assert self.engine.program is not None, "a model without one is refused at the start"
            return self.engine.program
        if self._reference_program is None:
            self._reference_program = write_program(model, self.dtype)
        return self._reference_program

    def _refuse_inexact(self) -> None:
        """Raise where the sampler does not run a native program."""
        if self.train.activation_checkpointing:
            raise ConfigError(
                "train.activation_checkpointing has no effect with grpo.exact_logprobs, which "
                "computes every layer again in any case: leave it out."
            )
        self.engine.update_weights()
        if self.engine.program is None:
            raise ConfigError(f"grpo.exact_logprobs: {self.engine.not_native}; leave it out.")

    def _autocast(self) -> torch.autocast:
        is_on = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype if is_on else None, enabled=is_on)
