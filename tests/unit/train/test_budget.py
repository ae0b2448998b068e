import pytest

from ziphius.core.errors import ConfigError
from ziphius.train.budget import Budget, parse_budget
from ziphius.train.config import TrainConfig


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("90s", Budget("seconds", 90.0)),
        ("10m", Budget("seconds", 600.0)),
        ("1.5h", Budget("seconds", 5_400.0)),
        ("2d", Budget("seconds", 172_800.0)),
        ("200M-tokens", Budget("tokens", 200e6)),
        ("1.5Btokens", Budget("tokens", 1.5e9)),
        ("14.8T-tokens", Budget("tokens", 14.8e12)),
        ("4096-tokens", Budget("tokens", 4_096.0)),
        ("500-steps", Budget("steps", 500.0)),
        (" 2K-steps ", Budget("steps", 2_000.0)),
    ],
)
def test_a_budget_is_a_number_with_a_unit(text: str, budget: Budget) -> None:
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["", "10", "m", "-5m", "10 minutes", "1M-steps-tokens", "10M"])
def test_what_has_no_unit_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ConfigError, match="is no budget: give a time"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["0m", "0-steps", "1.5-steps"])
def test_what_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="must be above 0, and steps a whole number"):
        parse_budget(text)


def test_configs_check_their_budgets() -> None:
    with pytest.raises(ValueError, match="'soon' is no budget"):
        TrainConfig(budget="soon")
    with pytest.raises(ValueError, match=r"give a time \(2m\) or a number of steps"):
        TrainConfig(save_every="10M-tokens")
