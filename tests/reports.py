"""A report full of made-up figures that look like those of a run, for tests and for the eye."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from ziphius.evals.measure import HARDER, IN_DISTRIBUTION, UNTRAINED, Answers, Measurement
from ziphius.evals.summary import (
    Summary,
    paired_difference,
    paired_share,
    summarize,
    summarize_slices,
)
from ziphius.recipes.report.sections import (
    Arm,
    ArmReplies,
    Difference,
    ExpertLoad,
    Learning,
    LossCurve,
    Reply,
    Report,
    StageCost,
    Taught,
    Transcript,
)

SAMPLES = 8
MIXED = "mixed held-out set"
TRAINED = (IN_DISTRIBUTION, HARDER)
GAINS = {"SFT": 0.0, "control": 0.03, "GRPO": 0.15, "R1-Lite": 0.10, "R1-Lite INT8": 0.095}
HARDNESS = {IN_DISTRIBUTION: (3.0, 1.9, 96), HARDER: (1.6, 2.0, 96), UNTRAINED: (0.25, 6.0, 64)}


def example_report(*, transcripts: tuple[Transcript, ...] | None = None) -> Report:
    """Make a report with every section."""
    arms, differences, taught = _compared()
    return Report(
        title="A reasoning model from real text in a quarter of an hour",
        purpose=(
            "A tokenizer, a mixture-of-experts model of 1.5M parameters, fine-tuning on worked "
            "answers, reinforcement learning with verified rewards, a dense student and its INT8 "
            "form, all made and measured by one command on two CPU cores."
        ),
        arms=arms,
        differences=differences,
        losses=_losses(),
        learning=_learning(),
        experts=_experts(),
        transcripts=_transcripts() if transcripts is None else transcripts,
        taught=taught,
        costs=_costs(),
        machine=_machine(),
        notes=(
            "The demonstrations are of mixed quality on purpose, as real data are: 30 % worked "
            "step by step and right, 70 % answered at once, a third of those wrong.",
        ),
        is_example=True,
    )


@functools.cache
def _compared() -> tuple[tuple[Arm, ...], tuple[Difference, ...], tuple[Taught, ...]]:
    """Measure all arms and compare them, which takes the bootstrap a second."""
    measured = {name: _measurement(gain) for name, gain in GAINS.items()}
    arms = tuple(_arm(name, found) for name, found in measured.items())
    return arms, _differences(measured), _taught(measured)


def _measurement(gain: float) -> Measurement:
    """Draw answers to the same problems for every arm, some harder than others."""
    generator = np.random.default_rng(11)
    luck = np.random.default_rng(int(1000 * gain))
    found = []
    for name, (right, wrong, count) in HARDNESS.items():
        chances = generator.beta(right, wrong, size=count)
        share = 0.0 if name == UNTRAINED else gain
        for place, chance in enumerate(chances + share * (1 - chances)):
            correct = int(luck.binomial(SAMPLES, chance))
            lengths = luck.normal(14 + 40 * share + 6 * (name == HARDER), 3, SAMPLES).round()
            found.append(
                Answers(
                    name,
                    "sums",
                    f"{name}-{place}",
                    correct=tuple(sample < correct for sample in range(SAMPLES)),
                    tokens=tuple(int(length) for length in lengths.clip(4)),
                    corrections=tuple(luck.poisson(0.1 + share, SAMPLES).tolist()),
                    truncated=tuple((luck.random(SAMPLES) < 0.02).tolist()),
                )
            )
    return Measurement(tuple(found), seconds=9.0 - 20 * gain)


def _slices(found: Measurement) -> tuple[Summary, ...]:
    mixed = summarize(found, k=SAMPLES, name=MIXED, slices=TRAINED)
    return (mixed, *summarize_slices(found, k=SAMPLES))


def _arm(name: str, found: Measurement) -> Arm:
    is_student = name.startswith("R1")
    is_int8 = name.endswith("INT8")
    words = {
        "SFT": "fine-tuned on demonstrations",
        "control": "SFT given GRPO's compute as well",
        "GRPO": "SFT, then verified rewards",
        "R1-Lite": "dense student of GRPO's right traces",
        "R1-Lite INT8": "8-bit weights and activations",
    }
    return Arm(
        name,
        words[name],
        _slices(found),
        parameters=472_000 if is_student else 1_512_000,
        active_parameters=472_000 if is_student else 790_000,
        tokens_per_s=4_310.0 if is_int8 else 3_920.0 if is_student else 1_180.0,
        cache_bytes_per_token=1_536 if is_student else 448,
        size_bytes=520_000 if is_int8 else 1_890_000 if is_student else 6_050_000,
        training_flops=None if is_int8 else 6.1e13 if name == "SFT" else 9.7e13,
        training_s=None if is_int8 else 250.0 if name == "SFT" else 391.0,
    )


def _differences(measured: Mapping[str, Measurement]) -> tuple[Difference, ...]:
    found = []
    for ours, theirs in (("GRPO", "control"), ("control", "SFT")):
        slices: dict[str, Sequence[str]] = {MIXED: TRAINED}
        slices |= {name: (name,) for name in HARDNESS}
        for name, chosen in slices.items():
            estimate = paired_difference(measured[ours], measured[theirs], slices=chosen)
            is_goal = ours == "GRPO" and name == MIXED
            found.append(Difference(name, ours, theirs, estimate, is_goal))
    return tuple(found)


def _taught(measured: Mapping[str, Measurement]) -> tuple[Taught, ...]:
    student, teacher, small = (measured[name] for name in ("R1-Lite", "GRPO", "R1-Lite INT8"))
    return (
        Taught(
            "R1-Lite",
            "GRPO",
            kept=paired_share(student, teacher, slices=TRAINED),
            least_kept=0.85,
            most_parameters=1 / 3,
            least_speed=3.0,
        ),
        Taught(
            "R1-Lite INT8",
            "R1-Lite",
            lost=paired_difference(small, student, slices=TRAINED),
            most_lost=0.02,
        ),
    )


def _losses() -> tuple[LossCurve, ...]:
    generator = np.random.default_rng(3)
    curves = []
    for stage, count, first, last in (
        ("pretrain", 420, 6.9, 3.05),
        ("SFT", 260, 2.6, 0.71),
        ("control", 120, 0.70, 0.68),
        ("R1-Lite", 240, 5.1, 0.52),
    ):
        steps = np.arange(1, count + 1)
        decay = np.exp(-5 * steps / count)
        losses = last + (first - last) * decay + generator.normal(0, 0.035 * last, count)
        held_out = steps[:: count // 6]
        validation = last * 1.03 + (first - last) * np.exp(-5 * held_out / count)
        floors = {"uniform": 6.93, "unigram": 5.38, "bigram": 3.71} if stage == "pretrain" else {}
        if stage in ("SFT", "control"):
            floors = {"unigram": 1.93, "bigram": 1.02}
        curves.append(
            LossCurve(
                stage,
                steps.tolist(),
                losses.tolist(),
                held_out.tolist(),
                validation.tolist(),
                floors,
            )
        )
    return tuple(curves)


def _learning() -> Learning:
    generator = np.random.default_rng(4)
    steps = np.arange(1, 91)
    rise = 1 - np.exp(-steps / 35)
    return Learning(
        steps.tolist(),
        reward=(0.58 + 0.22 * rise + generator.normal(0, 0.03, 90)).tolist(),
        tokens=(9.1 + 5.2 * rise + generator.normal(0, 0.4, 90)).tolist(),
        dead_groups=np.clip(0.22 + 0.2 * rise + generator.normal(0, 0.04, 90), 0, 1).tolist(),
        kl=(0.021 * rise + generator.uniform(0, 0.003, 90)).tolist(),
        logprob_difference=(10 ** generator.normal(-6.2, 0.15, 90)).tolist(),
    )


def _experts() -> ExpertLoad:
    generator = np.random.default_rng(5)
    counts = {}
    for layer in (1, 2, 3):
        taste = generator.normal(0, 0.8, 8)
        shares = np.exp(taste * np.exp(-np.arange(200) / 40)[:, None])
        shares *= np.exp(generator.normal(0, 0.08, (200, 8)))
        shares /= shares.sum(axis=1, keepdims=True)
        counts[layer] = np.round(4096 * shares).astype(int).tolist()
    return ExpertLoad("pretrain", list(range(1, 201)), counts)


def _transcripts() -> tuple[Transcript, ...]:
    def replies(right: int, good: Reply | None, bad: Reply | None, arm: str) -> ArmReplies:
        return ArmReplies(arm, right, SAMPLES, good, bad)

    worked = Reply("4-1=3\n+7=10\n-5=5\n+8=13", "13", 24)
    slipped = Reply("4-1=3\n+7=10\n-5=6\n+8=14", "14", 24)
    hasty = Reply(None, "12", 4)
    lost = Reply("4-1=3\n+7=10\nwait, 4-1=3\n+7=10\nwait, 4-1=3\n+7=10\nwait, 4-1", None, 64)
    first = Transcript(
        HARDER,
        "4-1+7-5+8=?",
        "13",
        (
            replies(3, worked, hasty, "SFT"),
            replies(4, worked, hasty, "control"),
            replies(7, worked, slipped, "GRPO"),
            replies(8, worked, None, "R1-Lite"),
            replies(6, worked, slipped, "R1-Lite INT8"),
        ),
    )
    second = Transcript(
        UNTRAINED,
        "How many times does the letter e appear in: reference?",
        "4",
        tuple(replies(0, None, lost, arm) for arm in GAINS),
    )
    return first, second


def _costs() -> tuple[StageCost, ...]:
    return (
        StageCost("tokenizer", 1.4, note="1,024 tokens, a prefix of DeepSeek's"),
        StageCost("pretrain", 181.0, 3.1e13, 3_440_640, 1_200_000_000),
        StageCost("SFT", 69.0, 3.0e13, 2_129_920, 1_250_000_000),
        StageCost("control", 141.0, 3.6e13, 2_600_000, 1_250_000_000),
        StageCost("GRPO", 141.0, 3.6e13, 1_105_920, 1_600_000_000, "of these 58 s of sampling"),
        StageCost("R1-Lite", 74.0, 1.2e13, 3_000_000, 900_000_000),
        StageCost("INT8", 2.1),
        StageCost("measuring", 66.0, None, 311_000, 800_000_000),
    )


def _machine() -> tuple[tuple[str, str], ...]:
    return (
        ("command", "ziphius run --budget 15m --seed 0"),
        ("processor", "Fixture CPU, 2 cores"),
        ("memory", "8 GiB"),
        ("system", "Linux 6.1"),
        ("python", "3.11.2"),
        ("torch", "2.13.0"),
        ("ziphius", "0.1.0"),
        ("seed", "0"),
        ("finished", "2026-11-22 12:00 UTC"),
    )


HOSTILE = (
    "</pre><script>document.title = 'taken over'; fetch('https://example.org')</script>",
    "<img src=https://example.org/x.png onerror=\"document.title='taken over'\">",
    "]]> --> </style></title></textarea> &lt;b&gt; &#0; {{ 7 * 7 }} {% raw %}",
    "half a pair \ud83d and the other \udc33, nul \0 bell \a escape \x1b[31m \x9f",
    "right to left \u202e4321\u202c, zero\u200bwidth, bad \ufffe\uffff",
    "word" * 262_144,
)
"""Texts that a model could write, and a page must survive."""


def hostile_transcripts() -> tuple[Transcript, ...]:
    """Put every hostile text into every place that shows a model's words."""
    return tuple(
        Transcript(
            text,
            text,
            text,
            (ArmReplies(text, 1, 2, Reply(text, text, 1), Reply(text, None, 1)),),
        )
        for text in HOSTILE
    )
