"""Plain logit distillation: the student's probabilities move towards the teacher's, token by token.

Source: Hinton, Vinyals, Dean (arXiv 1503.02531), section 2: at every position that is learned,
T^2 * KL(teacher || student), both softened by the temperature T; T^2 keeps the size of the
gradient. On the same rows as supervised fine-tuning, and mixed with its loss.

Shapes: B rows, T tokens, X positions that count, D hidden (student), W vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ziphius.core.errors import ConfigError
from ziphius.data.batch import Batch
from ziphius.data.loader import Loader
from ziphius.dist.world import ALONE, World
from ziphius.distill.logit_config import LogitConfig
from ziphius.models.config import ModelConfig
from ziphius.models.forward_batch import ForwardBatch
from ziphius.models.model import Model
from ziphius.ops import native
from ziphius.ops.logprobs import LOGITS_BLOCK, summed_cross_entropy
from ziphius.ops.targets import rows_that_count, targets_ahead
from ziphius.train.config import TrainConfig
from ziphius.train.fingerprint import frozen_sum
from ziphius.train.stage import LossOutput, Term
from ziphius.train.stages.language import NEXT
from ziphius.train.stages.sft import Sft

KL = "kl"


class LogitDistillation(Sft):
    """Learn a teacher's probabilities on conversations.

    Args:
        loader: the rows, in micro-batches.
        model_config: of the student, a dense model without MTP layers.
        config: batch sizes and seq_len.
        teacher: on the device of the student; frozen here, and always in evaluation mode.
        logits: temperature and mixture.
        validation: held-out conversations; without any nothing is measured.
        baselines: of those.
        data_fingerprint: names the conversations and their order.
        world: the ranks that share the rows.

    Raises:
        ConfigError: the vocabularies differ, the teacher's context is too short, or the student has
            parts that this stage does not teach.
    """

    name = "logit-distillation"

    def __init__(
        self,
        loader: Loader,
        model_config: ModelConfig,
        config: TrainConfig,
        *,
        teacher: Model,
        logits: LogitConfig,
        validation: Sequence[Batch] = (),
        baselines: Mapping[str, float] | None = None,
        data_fingerprint: str = "",
        world: World = ALONE,
    ) -> None:
        super().__init__(
            loader,
            model_config,
            config,
            validation=validation,
            baselines=baselines,
            data_fingerprint=data_fingerprint,
            world=world,
        )
        _check(model_config, teacher.config, config)
        self.teacher = teacher.requires_grad_(False).eval()
        self.logits = logits
        self._teacher_sum = frozen_sum(teacher)

    def loss(self, model: Model, batch: Batch, progress: float) -> LossOutput:
        """Return the distance to the teacher, and the loss on the text."""
        student_XD, teacher_XD, targets_X = self._hidden(model, batch)
        weight_WD = _head(model)
        far = summed_kl(
            student_XD, weight_WD, teacher_XD, _head(self.teacher), self.logits.temperature
        )
        terms = {KL: Term(far, NEXT, 1.0 - self.logits.hard_share)}
        if self.logits.hard_share:
            hard = summed_cross_entropy(student_XD, weight_WD, targets_X)
            terms[NEXT] = Term(hard, NEXT, self.logits.hard_share)
        return LossOutput(terms)

    def validate(self, model: Model) -> dict[str, float]:
        """Measure held-out conversations as fine-tuning does, and the distance to the teacher."""
        figures = super().validate(model)
        device = next(model.parameters()).device
        sums = {KL: 0.0, NEXT: 0.0}
        for index, batch in enumerate(self.validation):
            if index % self.world.size == self.world.rank:
                student_XD, teacher_XD, _ = self._hidden(model, batch.to(device))
                far = summed_kl(student_XD, _head(model), teacher_XD, _head(self.teacher), 1.0)
                sums[KL] += float(far)
                sums[NEXT] += self.weights(batch)[NEXT]
        sums = self.world.sum_numbers(sums, device)
        return figures | {KL: sums[KL] / max(1.0, sums[NEXT])}

    def fingerprint(self) -> str:
        """Name the conversations, the shape of the batches, the teacher and the mixture."""
        return f"{super().fingerprint()} from {self._teacher_sum} by {self.logits!r}"

    def _hidden(self, model: Model, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return both models' states at the positions that count, and the tokens that follow."""
        ids_BT, documents_BT = batch.ids_BT, batch.documents_BT
        targets_BT, counts_BT = targets_ahead(
            ids_BT, 1, documents_BT=documents_BT, loss_mask_BT=batch.loss_mask_BT
        )
        tokens = ForwardBatch(ids_BT, documents_BT=documents_BT)
        student_BTD = model(tokens).hidden_BTD
        with torch.no_grad():
            teacher_BTD = self.teacher(tokens).hidden_BTD
        student_XD, teacher_XD, targets_X = rows_that_count(
            counts_BT, student_BTD, teacher_BTD, targets_BT
        )
        return student_XD, teacher_XD, targets_X


def summed_kl(
    student_XD: Tensor,
    student_WD: Tensor,
    teacher_XD: Tensor,
    teacher_WD: Tensor,
    temperature: float,
) -> Tensor:
    """Return the sum of T^2 * KL(teacher || student) over positions, in float32.

    The student's gradient is taken block by block in the forward pass, so that the logits of both
    models exist for one block of positions only.

    Args:
        student_XD: its hidden states; gradients go here and to its head.
        student_WD: its head.
        teacher_XD: the teacher's, of its own width; no gradient.
        teacher_WD: its head.
        temperature: above 0.
    """
    assert len(student_WD) == len(teacher_WD), "the vocabularies differ"
    total: Tensor = native.apply(
        _SummedKl, student_XD, student_WD, teacher_XD, teacher_WD, temperature
    )
    return total


class _SummedKl(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student_XD: Tensor,
        student_WD: Tensor,
        teacher_XD: Tensor,
        teacher_WD: Tensor,
        temperature: float,
    ) -> Tensor:
        total = student_XD.new_zeros((), dtype=torch.float32)
        grad_XD = torch.zeros_like(student_XD)
        grad_WD = torch.zeros_like(student_WD, dtype=torch.float32)
        rows = max(1, LOGITS_BLOCK // len(student_WD))
        for first in range(0, len(student_XD), rows):
            block = slice(first, first + rows)
            # F.linear, so that autocast multiplies here what it multiplies in the models.
            own = F.log_softmax(F.linear(student_XD[block], student_WD).float() / temperature, -1)
            wanted = F.linear(teacher_XD[block], teacher_WD).float() / temperature
            wanted = F.log_softmax(wanted, -1)
            likely = wanted.exp()
            total += temperature**2 * (likely * (wanted - own)).sum()
            # d/dlogits of T^2 KL is T (student - teacher).
            grad_logits = (own.exp() - likely).mul_(temperature).to(student_XD.dtype)
            grad_XD[block] = F.linear(grad_logits, student_WD.t())
            grad_WD += F.linear(grad_logits.t(), student_XD[block].t()).float()
        ctx.save_for_backward(grad_XD, grad_WD.to(student_WD.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        [grad] = grads
        grad_XD, grad_WD = ctx.saved_tensors
        return (
            (grad_XD * grad).to(grad_XD.dtype),
            (grad_WD * grad).to(grad_WD.dtype),
            None,
            None,
            None,
        )


def _head(model: Model) -> Tensor:
    weight_WD = model.head.weight
    assert isinstance(weight_WD, Tensor)
    return weight_WD


def _check(student: ModelConfig, teacher: ModelConfig, config: TrainConfig) -> None:
    if student.vocab_size != teacher.vocab_size:
        raise ConfigError(
            f"The student knows {student.vocab_size} tokens and the teacher {teacher.vocab_size}: "
            "logits can only be compared over one vocabulary. Make the student with the teacher's "
            "tokenizer, or distil traces."
        )
    if config.seq_len > teacher.max_position_embeddings:
        raise ConfigError(
            f"seq_len = {config.seq_len}: the teacher is made for "
            f"{teacher.max_position_embeddings} tokens; give at most as many."
        )
    if student.n_routed_experts or student.num_nextn_predict_layers:
        part = "experts" if student.n_routed_experts else "MTP layers"
        raise ConfigError(
            f"The student has {part}, which logits alone do not teach: give a dense student, or "
            "distil traces."
        )
    if config.z_loss:
        raise ConfigError("train.z_loss has no effect on the distillation of logits.")
