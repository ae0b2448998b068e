"""Trained weights in a model of another config: a longer context, more rows of the embedding."""

import torch

from ziphius.core.errors import ConfigError
from ziphius.models.config import ModelConfig
from ziphius.models.int8 import has_int8
from ziphius.models.model import Model


def rebuilt(model: Model, config: ModelConfig) -> Model:
    """Put the tensors of a model into one of another config with the same shapes; none is copied.

    The model that is given must not be used any more.
    """
    with torch.device("meta"):
        other = Model(config)
    requires_grad = {name: p.requires_grad for name, p in model.named_parameters()}
    other.load_state_dict(model.state_dict(), assign=True)
    other.tie_weights()
    for name, parameter in other.named_parameters():
        parameter.requires_grad_(requires_grad[name])
    return other.train(model.training)


def refuse_missing_rows(config: ModelConfig, tokens: int) -> None:
    """Raise a ConfigError if a tokenizer has tokens that the model has no rows for.

    Args:
        config: of the model.
        tokens: that the tokenizer has.
    """
    if tokens > config.vocab_size:
        raise ConfigError(
            f"The tokenizer has {tokens} tokens, the model only {config.vocab_size} rows for "
            "them: tokens were added to it, and the model was never resized. Give it rows for them "
            "with resize_embeddings (--resize-embeddings), or take the tokenizer it was made with."
        )


def resize_embeddings(model: Model, rows: int) -> Model:
    """Give a model rows for the tokens that were added to its tokenizer.

    A new row of the embedding is the mean of all old ones, and so is one of a head of its own: the
    model takes a new token for an average one and, before it has learned better, writes none of
    them often. transformers (`resize_token_embeddings`) draws from a normal distribution around the
    same means, of a billionth of their covariance.

    Args:
        model: not quantized; it must not be used any more.
        rows: more than it has.

    Returns:
        The model with all rows; its config says so.

    Raises:
        ConfigError: there is nothing to add, or the model is quantized.
    """
    before = model.config.vocab_size
    if rows <= before:
        raise ConfigError(
            f"resize_embeddings has no effect: the tokenizer has {rows:,} tokens and the model "
            f"{before:,} rows for them."
        )
    if has_int8(model):
        raise ConfigError("resize_embeddings: the model is quantized to INT8; resize it before.")
    embedding, head = model.model.embed_tokens, model.head
    tensors = [embedding] if model.config.tie_word_embeddings else [embedding, head]
    for module in tensors:
        weight = module.weight
        assert isinstance(weight, torch.nn.Parameter)
        mean_D = weight.detach().float().mean(dim=0).to(weight.dtype)
        wider_WD = torch.cat((weight.detach(), mean_D.expand(rows - before, -1)))
        module.weight = torch.nn.Parameter(wider_WD, weight.requires_grad)
    model.tie_weights()
    config = ModelConfig.model_validate(model.config.model_dump() | {"vocab_size": rows})
    return rebuilt(model, config)
