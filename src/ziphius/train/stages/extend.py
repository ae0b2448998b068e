"""Context extension with YaRN: a trained model learns longer text, as DeepSeek-V3 did.

Source: DeepSeek-V3 report (arXiv 2412.19437), section 4.3: after pretraining at 4K two phases of
1,000 steps, at 32K and at 128K, with YaRN (scale 40, alpha 1, beta 32) and the last learning rate
of pretraining, 7.3e-6, held constant. `extended` makes the config, `Extend` is pretraining that
also measures by position in the document; `train/settings.py` derives how it is trained.

Shapes: B rows, T tokens, D hidden_size, W vocabulary, X positions that count.
"""

import torch

from ziphius.core.errors import ConfigError
from ziphius.data.batch import Batch
from ziphius.models.config import ModelConfig, YarnScaling
from ziphius.models.forward_batch import ForwardBatch
from ziphius.models.model import Model
from ziphius.models.patterns import document_positions
from ziphius.ops.logprobs import token_logprobs
from ziphius.ops.targets import targets_ahead
from ziphius.train.stages.pretrain import Pretrain


def extended(
    config: ModelConfig,
    context: int,
    *,
    trained_context: int | None = None,
    factor: float | None = None,
) -> ModelConfig:
    """Stretch the rotary frequencies of a model to a longer context.

    A model that has YaRN already keeps its original context and gets the larger factor, as V3's
    second phase would, had its factor not been set for 160K from the start.

    Args:
        config: of the trained model.
        context: tokens it is to reach.
        trained_context: tokens it was trained on; by default what its config, or its YaRN, says.
        factor: how far frequencies are stretched; by default just enough. A larger one leaves room
            for a further extension.

    Raises:
        ConfigError: nothing would become longer, or the frequencies are stretched in another way.
    """
    scaling = config.rope_scaling
    if scaling is not None and not isinstance(scaling, YarnScaling):
        raise ConfigError(
            f"rope_scaling is {scaling.type}: only plain RoPE and YaRN can be extended."
        )
    if scaling is not None and (scaling.attention_factor or scaling.attn_factor):
        raise ConfigError(
            "rope_scaling sets the temperature of attention for its own factor: take "
            "attention_factor and attn_factor out of config.json, or do not extend the model."
        )
    original = trained_context or config.max_position_embeddings
    if scaling is not None:
        if trained_context not in (None, scaling.original_max_position_embeddings):
            raise ConfigError(
                f"trained_context = {trained_context}: the model's YaRN says "
                f"{scaling.original_max_position_embeddings}; leave it away."
            )
        original = scaling.original_max_position_embeddings
    reached = original * (scaling.factor if scaling is not None else 1.0)
    if context <= reached:
        raise ConfigError(
            f"context = {context}: the model reaches {reached:.0f} tokens already; give more."
        )
    factor = context / original if factor is None else factor
    if factor * original < context:
        raise ConfigError(
            f"factor = {factor}: must be at least {context / original:g} to reach {context} from "
            f"{original}."
        )
    return config.model_copy(
        update={
            "rope_scaling": _yarn(config, original, factor),
            "max_position_embeddings": round(factor * original),
        }
    )


class Extend(Pretrain):
    """Pretraining on longer rows; validation adds `loss_within` and `loss_beyond` the old context.

    Both are means over held-out targets, by the position of the token they are predicted from in
    its document; `loss_beyond` is missing where no held-out document is that long.
    """

    name = "extend"

    def validate(self, model: Model) -> dict[str, float]:
        """Measure as pretraining does, and by position."""
        figures = super().validate(model)
        assert self.validation is not None
        device = next(model.parameters()).device
        sums = {f"{kind} {where}": 0.0 for where in WHERE for kind in ("nats", "targets")}
        border = self.trained_context
        for index, batch in enumerate(self.validation.batches(self._rows_at_once)):
            if index % self.world.size == self.world.rank:
                for name, value in loss_by_position(model, batch.to(device), border).items():
                    sums[name] += value
        sums = self.world.sum_numbers(sums, device)
        for where in WHERE:
            if targets := sums[f"targets {where}"]:
                figures[f"loss_{where}"] = sums[f"nats {where}"] / targets
        return figures

    @property
    def trained_context(self) -> int:
        """Return the context before all extensions."""
        scaling = self.model_config.rope_scaling
        assert isinstance(scaling, YarnScaling), "`extended` makes the config of this stage"
        return scaling.original_max_position_embeddings


WHERE = ("within", "beyond")


@torch.no_grad()
def loss_by_position(model: Model, batch: Batch, border: int) -> dict[str, float]:
    """Sum the loss of the next token, and count targets, before a position and from it on.

    Returns:
        `nats` and `targets`, each `within` and `beyond`, as in "nats beyond".
    """
    output = model(ForwardBatch(batch.ids_BT, documents_BT=batch.documents_BT))
    targets_BT, counts_BT = targets_ahead(
        batch.ids_BT, 1, documents_BT=batch.documents_BT, loss_mask_BT=batch.loss_mask_BT
    )
    logits_XW = model.logits(output.hidden_BTD[counts_BT])
    # Summed on the CPU: not every device has float64.
    nats_X = -token_logprobs(logits_XW, targets_BT[counts_BT]).cpu().double()
    is_beyond_X = (document_positions(batch.documents_BT)[counts_BT] >= border).cpu()
    beyond = float(nats_X[is_beyond_X].sum())
    count = int(is_beyond_X.sum())
    return {
        "nats within": float(nats_X.sum()) - beyond,
        "targets within": len(nats_X) - count,
        "nats beyond": beyond,
        "targets beyond": count,
    }


def _yarn(config: ModelConfig, original: int, factor: float) -> YarnScaling:
    """Use V3's constants; its temperature sits in the softmax scale, which grouped attention lacks.

    Without mscale the temperature sits in cos and sin, as the YaRN paper has it.
    """
    mscale = 1.0 if config.attention == "mla" else None
    if isinstance(config.rope_scaling, YarnScaling):
        return config.rope_scaling.model_copy(update={"factor": factor})
    return YarnScaling(
        factor=factor,
        original_max_position_embeddings=original,
        mscale=mscale,
        mscale_all_dim=mscale,
    )
