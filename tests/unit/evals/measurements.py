"""Measurements made by hand."""

from collections.abc import Mapping, Sequence

from ziphius.evals.measure import Answers, Measurement


def answers(slice_name: str, key: str, correct: int, samples: int, *, tokens: int = 10) -> Answers:
    """Make the answers to one problem, the first `correct` of them right; the last wrong is cut."""
    is_correct = tuple(sample < correct for sample in range(samples))
    is_cut = tuple(sample == samples - 1 and correct < samples for sample in range(samples))
    return Answers(
        slice_name,
        "sums",
        1,
        key,
        answers=tuple(
            None if cut else "7" if right else f"not 7 but {sample}"
            for sample, (right, cut) in enumerate(zip(is_correct, is_cut, strict=True))
        ),
        correct=is_correct,
        tokens=tuple(tokens + sample for sample in range(samples)),
        corrections=(1,) * samples,
        truncated=is_cut,
    )


def measurement(
    correct: Mapping[str, Sequence[int]],
    samples: int,
    *,
    tokens: int = 10,
    seconds: float = 2.0,
    arm: str = "GRPO",
    mode: str = "sampled",
    prefix: str = "",
) -> Measurement:
    """Make a measurement from how many answers to each problem of each slice are right.

    Problems with another prefix are other problems, such as those of another seed.
    """
    return Measurement(
        tuple(
            answers(name, f"{prefix}{name}-{place}", count, samples, tokens=tokens)
            for name, counts in correct.items()
            for place, count in enumerate(counts)
        ),
        seconds,
        arm,
        mode,
    )
