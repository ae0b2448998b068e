import os
from typing import Any

import pytest
from pydantic import ValidationError

from ziphius.core.errors import ConfigError
from ziphius.data.config import DataConfig
from ziphius.data.mixes import OWN


def test_own_text_replaces_the_mix_unless_it_shares() -> None:
    assert DataConfig(own=("a",)).resolved_mix.shares == {OWN: 1.0}
    assert DataConfig(own=("a",), own_share=0.5).resolved_mix.shares["general"] == 0.2
    assert OWN not in DataConfig().resolved_mix.shares


def test_the_fim_rate_is_the_mix_s_unless_given() -> None:
    assert DataConfig(mix="coder").resolved_fim_rate == 0.5
    assert DataConfig(mix="coder", fim_rate=0.0).resolved_fim_rate == 0.0


def test_processes_follow_the_machine() -> None:
    assert DataConfig().resolved_processes == os.cpu_count()
    assert DataConfig(processes=0).resolved_processes == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"own_share": 0.5}, "own_share: there is no own text"),
        ({"column": "body"}, "column: there is no own text"),
        ({"fim_rate": 0.0, "fim_spm_share": 0.5}, "fim_spm_share: nothing is filled"),
        ({"mathematics_without": ("equation",)}, "mathematics_without: the mix has no mathematics"),
        ({"mix": "r1", "mathematics_without": ("gcd",)}, "no exercise gcd. Known: addition, "),
        ({"domain_megabytes": 0.0}, "greater than 0"),
        ({"own_megabytes": 1.0}, "own_megabytes: there is no own text"),
        ({"own": ("hf:b",)}, "own_megabytes: a data set of the hub may be larger than any disk"),
        ({"own": ("a",), "own_seed": 1}, "own_seed: all own text is taken"),
        ({"own": ("a",), "domain_megabytes": 1.0}, "nothing comes from the mix"),
        ({"own": ("a", "hf:b"), "own_megabytes": 1.0}, "from files and from a data set of the hub"),
    ],
)
def test_settings_without_effect_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig(**settings)


def test_an_unknown_mix_is_named() -> None:
    with pytest.raises((ConfigError, ValidationError), match="no mix 'v9'"):
        DataConfig(mix="v9")
