import pytest
from pydantic import ValidationError

from ziphius.core.errors import ConfigError
from ziphius.data.corpora import CORPORA
from ziphius.data.mixes import MIXES, OWN, Mix, get_mix


def test_the_mixes_are_those_that_were_asked_for() -> None:
    v2, r1, coder = (get_mix(name).shares for name in ("v2", "r1", "coder"))
    assert v2["general"] + v2["chinese"] == pytest.approx(0.6)
    assert (v2["books"], v2["code"]) == pytest.approx((0.3, 0.1))
    assert r1 == pytest.approx({**{n: 0.7 * share for n, share in v2.items()}, "mathematics": 0.3})
    assert coder["code"] == pytest.approx(0.85)
    assert get_mix("coder").fim_rate == 0.5


@pytest.mark.parametrize("name", MIXES)
def test_every_domain_of_a_mix_has_a_corpus(name: str) -> None:
    assert sum(MIXES[name].shares.values()) == pytest.approx(1.0)
    assert set(MIXES[name].shares) <= {corpus.domain for corpus in CORPORA.values()}


def test_own_text_takes_its_share_and_leaves_the_ratios() -> None:
    mix = Mix(weights={"general": 3.0, "code": 1.0}).with_own(0.2)
    assert mix.shares == pytest.approx({OWN: 0.2, "general": 0.6, "code": 0.2})
    assert get_mix("v2").with_own(1.0).shares == {OWN: 1.0}


def test_an_unknown_mix_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no mix 'v9'\. Known: v2, r1, coder"):
        get_mix("v9")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "at least one domain"),
        ({"poems": 1.0}, "no domain 'poems'; there are general"),
        ({"code": 0.0}, "greater than 0"),
    ],
)
def test_a_mix_that_cannot_be(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Mix(weights=weights)
