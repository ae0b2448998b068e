"""`ops/sampling.py`: filters against transformers, draws against their probabilities."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ziphius.core.errors import ConfigError
from ziphius.ops.sampling import (
    Sampler,
    inverse_cdf,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    sequence_keys,
    uniforms,
)
from ziphius.ops.sampling_config import SamplingConfig


def random_logits(rows: int, width: int, scale: float = 3.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * scale


def kept(logits: torch.Tensor) -> torch.Tensor:
    return logits > -torch.inf


@pytest.mark.parametrize("top_k", [1, 5, 40, 100_000])
def test_top_k_keeps_what_transformers_keeps(top_k):
    from transformers import TopKLogitsWarper

    logits = random_logits(16, 300)
    logits[0, :7] = 9.0  # ties with the k-th all stay
    expected = TopKLogitsWarper(top_k)(None, logits)
    assert torch.equal(keep_top_k(logits, torch.full((16,), top_k)), expected)


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("scale", [0.01, 3.0])
def test_top_p_keeps_what_transformers_keeps(top_p, scale):
    from transformers import TopPLogitsWarper

    # 3,000 wide and nearly flat: more than the quick path's 1,024 candidates are needed
    logits = random_logits(16, 3000, scale)
    expected = TopPLogitsWarper(top_p)(None, logits)
    actual = keep_top_p(logits, torch.full((16,), top_p, dtype=torch.float64))
    assert torch.equal(kept(actual), kept(expected))


@pytest.mark.parametrize("min_p", [0.001, 0.1, 1.0])
def test_min_p_keeps_what_transformers_keeps(min_p):
    from transformers import MinPLogitsWarper

    logits = random_logits(16, 300)
    expected = MinPLogitsWarper(min_p)(None, logits)
    assert torch.equal(keep_min_p(logits, torch.full((16,), min_p)), expected)


def test_all_filters_in_the_order_of_transformers():
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    logits = random_logits(64, 500)
    warpers = LogitsProcessorList(
        [
            TemperatureLogitsWarper(1.7),
            TopKLogitsWarper(60),
            TopPLogitsWarper(0.85),
            MinPLogitsWarper(0.05),
        ]
    )
    config = SamplingConfig(temperature=1.7, top_k=60, top_p=0.85, min_p=0.05)
    actual = Sampler([config] * 64, range(64)).filtered(logits)
    torch.testing.assert_close(actual, warpers(None, logits))


def test_each_row_has_its_own_filters():
    configs = [
        SamplingConfig(),
        SamplingConfig(top_k=3),
        SamplingConfig(top_p=0.5),
        SamplingConfig(min_p=0.2),
        SamplingConfig(temperature=0.5, top_k=10, top_p=0.9),
    ]
    logits = random_logits(5, 200)
    together = Sampler(configs, range(5)).filtered(logits)
    for row, config in enumerate(configs):
        alone = Sampler([config], [row]).filtered(logits[row : row + 1])
        assert torch.equal(together[row], alone[0])
    assert kept(together)[0].all()


def test_filters_never_drop_the_most_likely_token():
    config = SamplingConfig(top_k=1, top_p=1e-9, min_p=1.0)
    logits = random_logits(8, 50)
    assert torch.equal(Sampler([config] * 8, range(8))(logits, [0] * 8), logits.argmax(-1))


def test_frequencies_follow_the_filtered_probabilities():
    draws = 40_000
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -4.0])
    config = SamplingConfig(temperature=1.5, top_p=0.95, seed=7)
    sampler = Sampler([config] * draws, range(draws))
    ids = sampler(logits.expand(draws, -1), [3] * draws)
    expected = sampler.filtered(logits.expand(draws, -1))[0].softmax(-1).double() * draws
    counts = torch.bincount(ids, minlength=6).double()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert possible.sum() == 5
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert chi_square < 18.5  # 4 degrees of freedom: exceeded once in a thousand


def test_uniforms_are_uniform_over_ids_positions_and_seeds():
    ids, seeds = np.arange(20_000).tolist(), [5] * 20_000
    over_ids = uniforms(sequence_keys(seeds, ids), [0] * 20_000)
    over_positions = uniforms(sequence_keys(seeds, [1] * 20_000), ids)
    over_seeds = uniforms(sequence_keys(ids, [1] * 20_000), [0] * 20_000)
    for sample in (over_ids, over_positions, over_seeds):
        counts = np.histogram(sample, bins=100, range=(0, 1))[0]
        assert ((counts - 200) ** 2 / 200).sum() < 149  # 99 degrees of freedom, once in a thousand
        assert sample.min() > 0
        assert sample.max() < 1
    assert abs(np.corrcoef(over_ids[1:], over_ids[:-1])[0, 1]) < 0.03
    assert abs(np.corrcoef(over_ids, over_positions)[0, 1]) < 0.03


def test_penalties_are_not_passed_over():
    for config in (SamplingConfig(presence_penalty=1.0), SamplingConfig(logit_bias={3: 1.0})):
        with pytest.raises(ConfigError, match="penalties and logit_bias have no effect here"):
            Sampler([SamplingConfig(), config], range(2))


def test_the_generator_is_splitmix64():
    # First outputs of the published generator from state 1234567.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    keys = np.full(3, 1234567, dtype=np.uint64)
    expected = (np.array(published, dtype=np.uint64) >> np.uint64(12)) + 0.5
    assert np.array_equal(uniforms(keys, [0, 1, 2]), expected * 2.0**-52)


def test_a_draw_depends_on_its_own_seed_id_and_position_alone():
    logits = random_logits(6, 100, scale=0.1)
    config = SamplingConfig(seed=3)
    numbers = [30, 11, 12, 99, 14, 15]
    batch = Sampler([config] * 6, numbers)
    ids = batch(logits, [4, 9, 4, 1, 0, 2])
    for row, position in enumerate([4, 9, 4, 1, 0, 2]):
        assert Sampler([config], [numbers[row]])(logits[row : row + 1], [position]) == ids[row]
    some = batch.select([5, 1])
    assert torch.equal(some(logits[[5, 1]], [2, 9]), ids[[5, 1]])
    assert not torch.equal(batch(logits, [5] * 6), batch(logits, [6] * 6))
    other = Sampler([SamplingConfig(seed=4)] * 6, range(6))
    assert not torch.equal(batch(logits, [5] * 6), other(logits, [5] * 6))


def test_greedy_and_sampled_rows_share_a_batch():
    logits = random_logits(4, 100, scale=0.1)
    configs = [SamplingConfig(temperature=0.0), SamplingConfig()] * 2
    sampler = Sampler(configs, range(4))
    ids = sampler(logits, [0] * 4)
    assert torch.equal(ids[::2], logits[::2].argmax(-1))
    assert torch.equal(ids[1::2], Sampler(configs[1::2], [1, 3])(logits[1::2], [0, 0]))
    assert sampler.temperatures_B.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("draw", [2.0**-53, 0.5, (2**52 - 0.5) * 2.0**-52])
def test_no_draw_reaches_a_token_without_probability(draw, monkeypatch):
    draws = np.full(64, draw)
    monkeypatch.setattr("ziphius.ops.sampling.uniforms", lambda keys, positions: draws)
    logits = random_logits(64, 4096, scale=20.0)
    logits[:, :50] = logits[:, 4000:] = -torch.inf
    logits[0, 50:4000] = -torch.inf
    logits[0, [1000, 2000]] = 1.0
    ids = Sampler([SamplingConfig()] * 64, range(64))(logits, [0] * 64)
    assert (logits.gather(-1, ids[:, None]) > -torch.inf).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": -0.1}, ["temperature", "greater than or equal to 0"]),
        ({"temperature": 0.001}, ["temperature is 0.001", "0.01"]),
        ({"temperature": 0.0, "top_p": 0.9}, ["greedy", "top_p would have no effect"]),
        ({"temperature": 0.0, "top_k": 5, "min_p": 0.1}, ["top_k, min_p would have no effect"]),
        ({"top_p": 0.0}, ["top_p", "greater than 0"]),
        ({"top_p": 1.1}, ["top_p", "less than or equal to 1"]),
        ({"min_p": 1.5}, ["min_p"]),
        ({"top_k": -1}, ["top_k"]),
        ({"seed": -1}, ["seed"]),
        ({"temperature": float("nan")}, ["temperature"]),
    ],
)
def test_settings_out_of_range_or_without_effect_are_errors(settings, words):
    with pytest.raises(ValidationError) as error:
        SamplingConfig(**settings)
    assert all(word in str(error.value) for word in words)


def test_greedy_accepts_a_seed():
    assert SamplingConfig(temperature=0.0, seed=11).seed == 11


@pytest.mark.parametrize("width", [1, 63, 64, 65, 4_096])
def test_a_draw_by_blocks_is_that_of_a_running_sum(width):
    generator = torch.Generator().manual_seed(width)
    logits = 4 * torch.randn(500, width, generator=generator)
    probs_BW = logits.masked_fill(torch.rand(500, width, generator=generator) < 0.3, -100).softmax(
        -1
    )
    draws_B = torch.rand(500, generator=generator, dtype=torch.float64)
    reached_BW = probs_BW.cumsum(-1, dtype=torch.float64)
    targets_B1 = draws_B[:, None] * reached_BW[:, -1:]
    expected_B = torch.searchsorted(reached_BW, targets_B1).squeeze(-1)
    actual_B = inverse_cdf(probs_BW, draws_B)
    near_B = (reached_BW - targets_B1).abs().amin(-1) < 1e-6  # sums of blocks are fp32
    assert torch.equal(actual_B[~near_B], expected_B[~near_B])
    assert near_B.sum() <= 0.01 * 500 * max(1, width // 64)


def test_the_ends_of_blocks_hold_no_token_of_probability_0():
    probs_BW = torch.zeros(1, 256)
    probs_BW[0, [10, 70, 200]] = torch.tensor([0.1, 0.7, 0.2])
    draws_B = torch.cat(
        (torch.linspace(0, 1, 1_001, dtype=torch.float64), torch.tensor([0.1, 0.8]))
    )
    draws_B = draws_B.clamp(2.0**-53, 1 - 2.0**-53)
    drawn_B = inverse_cdf(probs_BW.expand(len(draws_B), -1), draws_B)
    assert set(drawn_B.tolist()) == {10, 70, 200}


def test_temperatures_of_1_need_no_division():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    plain = Sampler([SamplingConfig()] * 4, range(4))
    mixed = Sampler([*[SamplingConfig()] * 4, SamplingConfig(temperature=2.0)], range(5))
    assert plain.is_unscaled
    assert not mixed.is_unscaled
    assert torch.equal(plain.filtered(logits), mixed.filtered(torch.cat((logits, logits[:1])))[:4])


class WithoutFloat64(torch.Tensor):
    """A tensor on a device such as Apple's, which raises where float64 is asked for."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **(kwargs or {}))
            if function is torch.Tensor.cpu:
                return result.as_subclass(torch.Tensor)
            parts = result if isinstance(result, tuple) else [result]
            if any(
                isinstance(part, torch.Tensor) and part.dtype == torch.float64 for part in parts
            ):
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
            stays = [p.as_subclass(cls) if isinstance(p, torch.Tensor) else p for p in parts]
            return type(result)(stays) if isinstance(result, tuple) else stays[0]


@pytest.mark.parametrize("width", [300, 5_000])
@pytest.mark.parametrize("scale", [0.01, 3.0])
def test_float64_is_never_asked_of_the_device(width, scale, monkeypatch):
    monkeypatch.setattr("ziphius.ops.sampling.with_float64", lambda tensor: tensor.cpu())
    logits_BW = random_logits(8, width, scale)
    draws_B = torch.linspace(0.01, 0.99, 8, dtype=torch.float64)
    top_p_B = torch.full((8,), 0.9, dtype=torch.float64)
    there_BW = logits_BW.as_subclass(WithoutFloat64)
    with pytest.raises(TypeError, match="float64"):
        there_BW.double()
    kept_BW = keep_top_p(there_BW, top_p_B)
    ids_B = inverse_cdf(there_BW.softmax(-1), draws_B)
    assert torch.equal(kept_BW, keep_top_p(logits_BW, top_p_B))
    assert ids_B.tolist() == inverse_cdf(logits_BW.softmax(-1), draws_B).tolist()


def test_a_sampler_keeps_no_float64_on_its_device():
    sampler = Sampler([SamplingConfig(top_p=0.9, min_p=0.1, temperature=0.7)], [0], device="meta")
    tensors = [value for value in vars(sampler).values() if isinstance(value, torch.Tensor)]
    assert {tensor.device.type for tensor in tensors} == {"meta", "cpu"}
    assert not any(t.is_meta and t.dtype == torch.float64 for t in tensors)
