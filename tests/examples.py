"""How random examples are drawn, so that every run tests the same ones."""

from hypothesis import HealthCheck, Phase, settings


def examples(count: int) -> settings:
    """Settings for `count` examples: the same in every run, a failing one reported as drawn.

    Shrinking is left out: where an example builds models it would run hundreds.
    """
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
