import torch

from tests.tiny import build, latent_config
from ziphius.train.ema import Ema


@torch.no_grad()
def test_averages_follow_the_weights_slowly() -> None:
    model = build(latent_config())
    ema = Ema(model, decay=0.9)
    first = model.lm_head.weight.clone()
    model.lm_head.weight.add_(1.0)
    ema.update(model, step=1_000)
    torch.testing.assert_close(ema.tensors["lm_head.weight"], first + 0.1)
    ema.update(model, step=2)  # 3 / 12 is less than the decay
    torch.testing.assert_close(ema.tensors["lm_head.weight"], first + 0.1 + 0.75 * 0.9)


@torch.no_grad()
def test_averages_are_float32_beside_narrow_weights() -> None:
    model = build(latent_config()).to(torch.bfloat16)
    ema = Ema(model, decay=0.999)
    before = ema.tensors["lm_head.weight"].clone()
    model.lm_head.weight.mul_(1.01)
    ema.update(model, step=10_000)
    moved = (ema.tensors["lm_head.weight"] - before).abs()
    assert ema.tensors["lm_head.weight"].dtype == torch.float32
    assert 0.0 < moved.max() < 1e-3


@torch.no_grad()
def test_averages_stand_in_for_the_weights_only_for_a_while() -> None:
    model = build(latent_config(tie_word_embeddings=True))
    ema = Ema(model, decay=0.9)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.add_(1.0)
    changed = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with ema.applied(model):
        assert all(torch.equal(weights[name], t) for name, t in model.state_dict().items())
        assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all(torch.equal(changed[name], t) for name, t in model.state_dict().items())


@torch.no_grad()
def test_frozen_weights_have_no_average() -> None:
    model = build(latent_config())
    model.model.requires_grad_(False)
    ema = Ema(model, decay=0.9)
    assert ema.tensors.keys() == {"lm_head.weight"}
    before = model.model.embed_tokens.weight.clone()
    ema.update(model, step=1)
    with ema.applied(model):
        assert torch.equal(model.model.embed_tokens.weight, before)
