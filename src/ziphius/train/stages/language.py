"""What stages that learn from tokens share: rows, and losses (next token, MTP, balance, z).

Every stage that learns from tokens shares these sums and their weights; what differs between stages
is which tokens count, and that stands in the batch.

Two of V2's balance losses, by device and by communication, and its expert loss without `seq_aux`
are products of means over the batch: they are taken over each micro-batch and not over the step, as
V2 took them over what one device held.

Shapes: B rows, T tokens.
"""

from dataclasses import dataclass

from ziphius.data.batch import Batch
from ziphius.data.loader import Loader
from ziphius.dist.world import ALONE, World
from ziphius.models.balance import balance_loss
from ziphius.models.config import ModelConfig
from ziphius.models.forward_batch import ForwardBatch
from ziphius.models.losses import mtp_losses, next_token_loss
from ziphius.models.model import Model
from ziphius.ops.targets import targets_ahead
from ziphius.train.config import TrainConfig
from ziphius.train.stage import LossOutput, Stage, Term

NEXT, BALANCE, Z = "next_token", "balance", "z"
SEQUENCES = "sequences"


@dataclass(frozen=True, kw_only=True)
class StepBatch(Batch):
    """A micro-batch that knows its place in its step."""

    first_row: int = 0
    """Number of its first row among all rows of the step, over micro-batches and ranks."""


class LanguageStage(Stage):
    """A stage that learns from the rows of a loader.

    Args:
        loader: the rows, in micro-batches.
        model_config: of the model that is trained.
        config: seq_len, weights of the losses, batch sizes.
        data_fingerprint: names the text.
        world: the ranks that share the rows.
    """

    def __init__(
        self,
        loader: Loader,
        model_config: ModelConfig,
        config: TrainConfig,
        *,
        data_fingerprint: str = "",
        world: World = ALONE,
    ) -> None:
        self.loader, self.model_config, self.config = loader, model_config, config
        self.data_fingerprint, self.world = data_fingerprint, world

    def batches(self, step: int) -> list[Batch]:
        """Return this rank's micro-batches of a step."""
        rank, size = self.world.rank, self.world.size
        found: list[Batch] = []
        for micro in range(self.loader.micros(step, size)):
            batch = self.loader.batch(step, micro, rank, size)
            first_row = (micro * size + rank) * len(batch.ids_BT)
            found.append(StepBatch(**vars(batch), first_row=first_row))
        return found

    def weights(self, batch: Batch) -> dict[str, float]:
        """Count the targets that count, by depth, and rows."""
        return language_weights(batch, self.model_config)

    def loss(self, model: Model, batch: Batch, progress: float) -> LossOutput:
        """Return all losses of a micro-batch."""
        return language_losses(model, batch, self.config, progress)


def mtp_term(depth: int) -> str:
    """Name the term, and its weight, of a depth of multi-token prediction, counted from 1."""
    return f"mtp{depth}"


def language_weights(batch: Batch, config: ModelConfig) -> dict[str, float]:
    """Count what the losses of a micro-batch are divided by, from the data alone."""
    weights: dict[str, float] = {NEXT: _targets(batch, 1), SEQUENCES: _sequences(batch)}
    for depth in range(1, config.num_nextn_predict_layers + 1):
        weights[mtp_term(depth)] = _targets(batch, 1 + depth)
    return weights


def language_losses(model: Model, batch: Batch, config: TrainConfig, progress: float) -> LossOutput:
    """Return the terms that the model's parts and the config ask for, and the routings."""
    ids_BT, documents_BT, loss_mask_BT = batch.ids_BT, batch.documents_BT, batch.loss_mask_BT
    first_row = batch.first_row if isinstance(batch, StepBatch) else 0
    output = model(ForwardBatch(ids_BT, documents_BT=documents_BT, first_row=first_row))
    main = next_token_loss(
        model,
        output,
        ids_BT,
        documents_BT=documents_BT,
        loss_mask_BT=loss_mask_BT,
        squares=config.z_loss > 0,
    )
    terms = {NEXT: Term(main.loss_sum, NEXT)}
    depths = model.config.num_nextn_predict_layers
    if depths:
        losses = mtp_losses(
            model, output, ids_BT, documents_BT=documents_BT, loss_mask_BT=loss_mask_BT
        )
        for depth, loss in enumerate(losses, 1):
            coefficient = config.mtp.weight(progress) / depths
            terms[mtp_term(depth)] = Term(loss.loss_sum, mtp_term(depth), coefficient)
    if balances(model.config):
        # The alphas are in the loss already, which is a mean over rows that hold text.
        mean = balance_loss(model.config, output.routings, len(ids_BT))
        loss_sum = _sequences(batch) * mean
        terms[BALANCE] = Term(loss_sum, SEQUENCES)
    if main.squares_sum is not None:  # PaLM (arXiv 2204.02311), section 5
        terms[Z] = Term(main.squares_sum, NEXT, config.z_loss)
    return LossOutput(terms, routings=dict(output.routings))


def balances(config: ModelConfig) -> bool:
    """Tell whether a model has a loss that balances its experts."""
    alphas = (config.aux_loss_alpha, config.device_loss_alpha, config.communication_loss_alpha)
    return any(alphas)


def _sequences(batch: Batch) -> int:
    """Count the rows that hold more than padding."""
    return int((batch.documents_BT >= 0).any(dim=1).sum())


def _targets(batch: Batch, places: int) -> int:
    _, counts_BT = targets_ahead(
        batch.ids_BT, places, documents_BT=batch.documents_BT, loss_mask_BT=batch.loss_mask_BT
    )
    return int(counts_BT.sum())
