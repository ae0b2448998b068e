"""Pretraining: the next token of running text, with the losses the model's parts ask for."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from ziphius.data.baselines import Baselines, bits_per_byte
from ziphius.data.batch import Batch
from ziphius.data.loader import Loader
from ziphius.data.validation import ValidationSet
from ziphius.dist.world import ALONE, World
from ziphius.models.config import ModelConfig
from ziphius.models.forward_batch import ForwardBatch
from ziphius.models.losses import mtp_losses, next_token_loss
from ziphius.models.model import Model
from ziphius.train.config import TrainConfig
from ziphius.train.stages.language import LanguageStage, mtp_term

TOKENS_AT_ONCE = 16_384
"""Tokens of a batch of held-out rows."""
ALL = ""


class Pretrain(LanguageStage):
    """Learn from rows of packed documents.

    Args:
        loader, model_config, config, data_fingerprint, world: see `LanguageStage`.
        validation: held-out rows; None measures nothing.
        baselines: of those rows.
    """

    name = "pretrain"

    def __init__(
        self,
        loader: Loader,
        model_config: ModelConfig,
        config: TrainConfig,
        *,
        validation: ValidationSet | None = None,
        baselines: Baselines | None = None,
        data_fingerprint: str = "",
        world: World = ALONE,
    ) -> None:
        super().__init__(
            loader, model_config, config, data_fingerprint=data_fingerprint, world=world
        )
        self.validation, self.measured_baselines = validation, baselines

    def validate(self, model: Model) -> dict[str, float]:
        """Measure the held-out rows: mean losses and bits per byte, in all and by domain.

        Domains count by their share of the validation rows, which is that of the mix.
        """
        assert self.validation is not None, "there is nothing to validate on"
        device = next(model.parameters()).device
        depths = range(model.config.num_nextn_predict_layers + 1)
        sums = defaultdict[str, float](float)
        for index, batch in enumerate(self.validation.batches(self._rows_at_once)):
            is_mine = index % self.world.size == self.world.rank
            found = _measure(model, batch.to(device)) if is_mine else _Measured.nothing(len(depths))
            for where in (ALL, batch.domains[0]):
                # Every rank adds to every name, so that the sums over ranks have the same keys.
                sums[f"{where}/bytes"] += found.bytes_count
                for depth in depths:
                    sums[f"{where}/nats{depth}"] += found.nats[depth]
                    sums[f"{where}/tokens{depth}"] += found.tokens[depth]
        return _figures(self.world.sum_numbers(sums, device), len(depths), self.validation.rows)

    def baselines(self) -> dict[str, float]:
        """Return what uniform, unigram and bigram models reach on the held-out rows."""
        if self.measured_baselines is None:
            return {}
        known = self.measured_baselines.total
        return {"uniform": known.uniform, "unigram": known.unigram, "bigram": known.bigram}

    def fingerprint(self) -> str:
        """Name the text, the seed and the shape of the batches."""
        config = self.config
        return f"{self.data_fingerprint} seed {config.seed} {config.batch_sizes} x {config.seq_len}"

    @property
    def _rows_at_once(self) -> int:
        return max(1, TOKENS_AT_ONCE // self.config.seq_len)


@dataclass
class _Measured:
    """Sums over one batch of held-out rows; index 0 is the next token, the others are MTP's."""

    nats: list[float]
    tokens: list[int]
    bytes_count: int

    @classmethod
    def nothing(cls, depths: int) -> Self:
        return cls([0.0] * depths, [0] * depths, 0)


def _measure(model: Model, batch: Batch) -> _Measured:
    ids_BT, documents_BT, loss_mask_BT = batch.ids_BT, batch.documents_BT, batch.loss_mask_BT
    output = model(ForwardBatch(ids_BT, documents_BT=documents_BT))
    losses = [
        next_token_loss(
            model, output, ids_BT, documents_BT=documents_BT, loss_mask_BT=loss_mask_BT
        ),
        *mtp_losses(model, output, ids_BT, documents_BT=documents_BT, loss_mask_BT=loss_mask_BT),
    ]
    return _Measured(
        [float(loss.loss_sum) for loss in losses],
        [int(loss.tokens) for loss in losses],
        batch.bytes_count,
    )


def _figures(sums: Mapping[str, float], depths: int, domains: Iterable[str]) -> dict[str, float]:
    figures = {}
    for where in (ALL, *domains):
        ending = "" if where == ALL else f"/{where}"
        figures[f"loss{ending}"] = sums[f"{where}/nats0"] / max(1.0, sums[f"{where}/tokens0"])
        if size := sums[f"{where}/bytes"]:
            figures[f"bits_per_byte{ending}"] = bits_per_byte(sums[f"{where}/nats0"], int(size))
        for depth in range(1, depths):
            nats, tokens = sums[f"{where}/nats{depth}"], sums[f"{where}/tokens{depth}"]
            figures[f"{mtp_term(depth)}{ending}"] = nats / max(1.0, tokens)
    return figures
