"""Measurements made by hand."""

from collections.abc import Mapping, Sequence

from ziphius.evals.measure import Answers, Measurement


def answers(slice_name: str, key: str, correct: int, samples: int, *, tokens: int = 10) -> Answers:
    """Make the answers to one problem, the first `correct` of them right."""
    return Answers(
        slice_name,
        "sums",
        key,
        correct=tuple(sample < correct for sample in range(samples)),
        tokens=tuple(tokens + sample for sample in range(samples)),
        corrections=(1,) * samples,
        truncated=tuple(sample == samples - 1 and correct < samples for sample in range(samples)),
    )


def measurement(
    correct: Mapping[str, Sequence[int]], samples: int, *, tokens: int = 10, seconds: float = 2.0
) -> Measurement:
    """Make a measurement from how many answers to each problem of each slice are right."""
    return Measurement(
        tuple(
            answers(name, f"{name}-{place}", count, samples, tokens=tokens)
            for name, counts in correct.items()
            for place, count in enumerate(counts)
        ),
        seconds,
    )
