"""Supervised fine-tuning: what assistants wrote in conversations, packed with sample masking.

Source: DeepSeek-V3 report (arXiv 2412.19437), section 5.1. The losses are those of pretraining,
MTP included, over the tokens that the chat format says an assistant wrote; a row's conversations
never see each other.

Shapes: B rows, T tokens, M = B * T.
"""

from collections.abc import Mapping, Sequence

from ziphius.data.baselines import bits_per_byte
from ziphius.data.batch import Batch
from ziphius.data.loader import Loader
from ziphius.dist.world import ALONE, World
from ziphius.models.config import ModelConfig
from ziphius.models.model import Model
from ziphius.train.config import TrainConfig
from ziphius.train.stages.language import NEXT, LanguageStage, language_losses, mtp_term


class Sft(LanguageStage):
    """Learn to answer from conversations.

    Args:
        loader, model_config, config, data_fingerprint, world: see `LanguageStage`.
        validation: held-out conversations; without any nothing is measured.
        baselines: of those.
    """

    name = "sft"

    def __init__(
        self,
        loader: Loader,
        model_config: ModelConfig,
        config: TrainConfig,
        *,
        validation: Sequence[Batch] = (),
        baselines: Mapping[str, float] | None = None,
        data_fingerprint: str = "",
        world: World = ALONE,
    ) -> None:
        super().__init__(
            loader, model_config, config, data_fingerprint=data_fingerprint, world=world
        )
        self.validation, self.measured_baselines = validation, dict(baselines or {})

    def validate(self, model: Model) -> dict[str, float]:
        """Measure held-out conversations: mean losses of what assistants wrote, bits per byte."""
        assert self.validation, "there is nothing to validate on"
        device = next(model.parameters()).device
        names = [NEXT, *map(mtp_term, range(1, model.config.num_nextn_predict_layers + 1))]
        sums = dict.fromkeys([*names, *(f"{name} targets" for name in names), "bytes"], 0.0)
        for index, batch in enumerate(self.validation):
            if index % self.world.size != self.world.rank:
                continue
            weights = self.weights(batch)
            output = language_losses(model, batch.to(device), self.config, progress=0.0)
            for name in names:
                sums[name] += float(output.terms[name].loss_sum)
                sums[f"{name} targets"] += weights[name]
            sums["bytes"] += batch.bytes_count
        sums = self.world.sum_numbers(sums, device)
        figures = {name: sums[name] / max(1.0, sums[f"{name} targets"]) for name in names}
        figures = {"loss": figures.pop(NEXT), **figures}
        if sums["bytes"]:
            figures["bits_per_byte"] = bits_per_byte(sums[NEXT], int(sums["bytes"]))
        return figures

    def baselines(self) -> dict[str, float]:
        """Return what uniform, unigram and bigram models reach on the held-out conversations."""
        return self.measured_baselines

    def fingerprint(self) -> str:
        """Name the conversations, their order and the shape of the batches."""
        return f"{self.data_fingerprint} {self.config.batch_sizes} x {self.config.seq_len}"
