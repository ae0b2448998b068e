import pytest

from ziphius.models.presets import get_preset
from ziphius.train import rates
from ziphius.train.rates import finetuning_share, peak_rate, size_rate


@pytest.mark.parametrize(
    ("preset", "low", "high"),
    [("v3-1m", 3e-3, 3e-3), ("v2-lite", 1.5e-4, 2.5e-4), ("v3", 5e-5, 8e-5)],
)
def test_larger_models_take_smaller_rates(preset: str, low: float, high: float) -> None:
    assert low <= size_rate(get_preset(preset)) <= high


@pytest.mark.parametrize(("active", "rate"), [(125e6, 6e-4), (760e6, 2.5e-4), (6.7e9, 1.2e-4)])
def test_the_foundof_gpt_3_are_met_within_a_fifth(active: float, rate: float) -> None:
    assert rates.HIGHEST * (active / rates.SMALLEST) ** rates.POWER == pytest.approx(rate, rel=0.2)


def test_a_rate_that_is_given_is_taken() -> None:
    config = get_preset("v3-tiny")
    assert peak_rate(5e-4, config, share=0.1) == 5e-4
    assert peak_rate(None, config, share=0.1) == pytest.approx(3e-4)


@pytest.mark.parametrize(
    ("preset", "whole", "adapters"), [("smollm2-135m", 5.8e-5, 5.8e-4), ("v3", 6e-6, 6e-5)]
)
def test_fine_tuning_takes_a_tenth_and_adapters_ten_times_that(
    preset: str, whole: float, adapters: float
) -> None:
    config = get_preset(preset)
    found = [
        peak_rate(None, config, finetuning_share(is_new=False, has_adapters=has))
        for has in (False, True)
    ]
    assert found == pytest.approx([whole, adapters], rel=0.05)
    assert finetuning_share(is_new=True, has_adapters=False) == 1.0
