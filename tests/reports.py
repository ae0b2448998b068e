"""A report full of made-up figures that look like those of a run, for tests and for the eye."""

import functools

import numpy as np

from ziphius.evals.intervals import Estimate
from ziphius.evals.measure import HARDER, IN_DISTRIBUTION, UNTRAINED, Answers, Measurement
from ziphius.evals.summary import (
    Figure,
    Summary,
    figure_over_seeds,
    paired_difference_over_seeds,
    share_over_seeds,
    summarize,
    summarize_slices,
)
from ziphius.recipes.report.sections import (
    BEST_WAY,
    Arm,
    ArmReplies,
    AskedRow,
    Baseline,
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
SLICES = {MIXED: TRAINED, IN_DISTRIBUTION: (IN_DISTRIBUTION,), HARDER: (HARDER,)}
WAYS: dict[str, tuple[str, Figure]] = {
    "as trained": ("sampled", "pass@1"),
    "think first": ("thinking", "pass@1"),
    "cooler": ("cool", "pass@1"),
    "greedy": ("greedy", "greedy"),
    "maj@8": ("thinking", "maj@8"),
    "pass@8": ("thinking", "pass@8"),
}
CONTROLS = ("SFT", "more SFT", "RFT")
BEST = dict.fromkeys((*CONTROLS, "GRPO"), "greedy") | {"SFT": "think first"}
"""Each arm's best way, as if development problems had chosen it."""
GAINS = {
    "SFT": 0.0,
    "more SFT": 0.02,
    "RFT": 0.14,
    "GRPO": 0.36,
    "R1-Lite": 0.16,
    "R1-Lite by logits": 0.15,
    "student alone": 0.07,
    "R1-Lite bf16": 0.16,
    "R1-Lite INT8": 0.155,
}
MODES = {"sampled": 0.0, "thinking": 0.12, "greedy": 0.12, "cool": 0.14}
"""How many of the wrong answers a mode mends."""
SHARPENED, RARE = "GRPO", 0.12
"""The arm that gains where it was right now and then, and loses what it solved more rarely."""
HARDNESS = {IN_DISTRIBUTION: (2.2, 1.9, 96), HARDER: (0.7, 1.5, 96), UNTRAINED: (0.25, 6.0, 64)}
PATHS = {
    "SFT": ("pretrain", "sft"),
    "more SFT": ("pretrain", "sft", "more-sft"),
    "RFT": ("pretrain", "sft", "rft"),
    "GRPO": ("pretrain", "sft", "grpo"),
    "R1-Lite": ("pretrain", "sft", "grpo", "traces", "r1-lite"),
    "R1-Lite by logits": ("pretrain", "sft", "grpo", "traces", "r1-lite-logits"),
    "student alone": ("r1-lite-alone",),
    "R1-Lite bf16": ("pretrain", "sft", "grpo", "traces", "r1-lite"),
    "R1-Lite INT8": ("pretrain", "sft", "grpo", "traces", "r1-lite", "r1-lite-int8"),
}
WORDS = {
    "SFT": "fine-tuned on the demonstrations",
    "more SFT": "fine-tuned on, for the FLOPs of GRPO",
    "RFT": "fine-tuned on its own right answers, for the FLOPs of GRPO",
    "GRPO": "trained with verified rewards",
    "R1-Lite": "dense student, taught verified answers of GRPO",
    "R1-Lite by logits": "the same student, taught the probabilities of GRPO",
    "student alone": "the same student, taught by the demonstrator",
    "R1-Lite bf16": "R1-Lite in bfloat16",
    "R1-Lite INT8": "R1-Lite with INT8 weights and activations",
}


def example_report(
    *,
    transcripts: tuple[Transcript, ...] | None = None,
    swapped: tuple[str, str] | None = None,
) -> Report:
    """Make a report with every section.

    Args:
        transcripts: instead of the example's.
        swapped: two arms, each of which is given what was measured of the other.
    """
    arms, asked, differences, taught = _compared(swapped)
    return Report(
        title="A reasoning model from real text in a quarter of an hour",
        purpose=(
            "A tokenizer, a mixture-of-experts model of 1.5M parameters, fine-tuning on "
            "chain-of-thought  answers, reinforcement learning with verified rewards, a dense "
            "student and its INT8 form, all made and measured by one command on two CPU cores."
        ),
        arms=arms,
        asked=asked,
        baselines=_baselines(),
        differences=differences,
        losses=_losses(),
        learning=_learning(),
        experts=_experts(),
        transcripts=_transcripts() if transcripts is None else transcripts,
        taught=taught,
        costs=_costs(),
        machine=_machine(),
        notes=(
            "Demonstrations are of the easier level alone. GRPO and RFT practise both levels with "
            "the same problems and the same verifier; rewards are correctness alone.",
        ),
        is_example=True,
    )


@functools.cache
def _compared(
    swapped: tuple[str, str] | None,
) -> tuple[tuple[Arm, ...], tuple[AskedRow, ...], tuple[Difference, ...], tuple[Taught, ...]]:
    """Measure all arms and compare them, which takes the bootstrap some seconds."""
    source = dict(zip(GAINS, GAINS, strict=True))
    if swapped is not None:
        one, other = swapped
        source |= {one: other, other: one}
    arms = tuple(_arm(name, _slices(source[name])) for name in GAINS)
    return arms, _asked(source), _differences(source), _taught(source)


@functools.cache
def _measurement(arm: str, mode: str) -> Measurement:
    """Draw answers to the same problems for every arm, some harder than others."""
    generator = np.random.default_rng(11)
    luck = np.random.default_rng([list(GAINS).index(arm), list(MODES).index(mode)])
    samples = 1 if mode == "greedy" else SAMPLES
    found = []
    for name, (right, wrong, count) in HARDNESS.items():
        chances = generator.beta(right, wrong, size=count)
        share = 0.0 if name == UNTRAINED else GAINS[arm] + MODES[mode]
        gained = chances + share * (1 - chances)
        if arm == SHARPENED:
            gained = np.where(chances < RARE, 0.6 * chances, gained)
        for place, chance in enumerate(gained):
            if mode == "greedy":  # the likeliest answer is right more often than a drawn one
                chance = chance**2 / (chance**2 + (1 - chance) ** 2)
            correct = int(luck.binomial(samples, chance))
            lengths = luck.normal(14 + 40 * share + 6 * (name == HARDER), 3, samples).round()
            found.append(
                Answers(
                    name,
                    "sums",
                    2 if name == HARDER else 1,
                    f"{name}-{place}",
                    answers=tuple(
                        "7" if sample < correct else f"{luck.integers(3)}"
                        for sample in range(samples)
                    ),
                    correct=tuple(sample < correct for sample in range(samples)),
                    tokens=tuple(int(length) for length in lengths.clip(4)),
                    corrections=(0,) * samples,
                    truncated=tuple((luck.random(samples) < 0.02).tolist()),
                )
            )
    return Measurement(tuple(found), seconds=9.0 - 20 * GAINS[arm] / 3, arm=arm, mode=mode)


@functools.cache
def _slices(arm: str) -> tuple[Summary, ...]:
    found = _measurement(arm, "thinking")
    mixed = summarize(found, k=SAMPLES, name=MIXED, slices=TRAINED)
    return (mixed, *summarize_slices(found, k=SAMPLES))


@functools.cache
def _share(arm: str, way: str, part: str) -> Estimate:
    mode, figure = WAYS[way]
    return figure_over_seeds([_measurement(arm, mode)], figure, slices=SLICES[part])


@functools.cache
def _gap(ours: tuple[str, str], theirs: tuple[str, str], figure: Figure, part: str) -> Estimate:
    left, right = _measurement(*ours), _measurement(*theirs)
    return paired_difference_over_seeds([left], [right], figure, slices=SLICES[part])


def _arm(name: str, slices: tuple[Summary, ...]) -> Arm:
    is_student = name.startswith("R1") or name == "student alone"
    is_int8, is_bf16 = name.endswith("INT8"), name.endswith("bf16")
    costs = {cost.stage: cost for cost in _costs()}
    return Arm(
        name,
        WORDS[name],
        slices,
        way="think first",
        parameters=472_000 if is_student else 1_512_000,
        active_parameters=472_000 if is_student else 790_000,
        flops_per_token=1_020_000.0 if is_student else 1_690_000.0,
        dtype="int8" if is_int8 else "bfloat16" if is_bf16 else "float32",
        tokens_per_s=4_310.0 if is_int8 else 3_920.0 if is_student else 1_180.0,
        cache_bytes_per_token=1_536 if is_student else 448,
        size_bytes=520_000 if is_int8 else 1_890_000 if is_student else 6_050_000,
        training_flops=sum(costs[stage].flops or 0.0 for stage in PATHS[name]),
        training_s=sum(costs[stage].seconds for stage in PATHS[name]),
        start="SFT" if name in ("more SFT", "RFT", "GRPO") else "",
        stages=PATHS[name],
    )


def _asked(source: dict[str, str]) -> tuple[AskedRow, ...]:
    return tuple(
        AskedRow(
            name,
            way,
            {part: _share(source[name], way, part) for part in SLICES},
            is_best=BEST.get(name) == way,
        )
        for name in GAINS
        for way in WAYS
    )


def _differences(source: dict[str, str]) -> tuple[Difference, ...]:
    pairs = [("GRPO", control) for control in CONTROLS]
    found = [
        _difference(source, ours, theirs, part, way)
        for ours, theirs in pairs
        for part in SLICES
        for way in (BEST_WAY, *WAYS)
    ]
    found += [
        _difference(source, "R1-Lite", theirs, part, way)
        for theirs in ("student alone", "R1-Lite by logits")
        for part in SLICES
        for way in WAYS
    ]
    return tuple(found)


def _difference(source: dict[str, str], ours: str, theirs: str, part: str, way: str) -> Difference:
    ways = (BEST[ours], BEST[theirs]) if way == BEST_WAY else (way, way)
    modes = [WAYS[one][0] for one in ways]
    figure: Figure = "pass@1" if way == BEST_WAY else WAYS[way][1]
    is_control = theirs == "RFT"
    is_student_goal = theirs == "student alone" and way == "think first"
    return Difference(
        part,
        ours,
        theirs,
        _gap((source[ours], modes[0]), (source[theirs], modes[1]), figure, part),
        way=way,
        ways=ways,
        is_goal=part == MIXED and ((is_control and way == BEST_WAY) or is_student_goal),
        is_best_control=is_control,
    )


def _taught(source: dict[str, str]) -> tuple[Taught, ...]:
    def measured(arm: str) -> list[Measurement]:
        return [_measurement(source[arm], "thinking")]

    where = {"slice": MIXED, "way": "think first"}
    coarse = (source["R1-Lite INT8"], "thinking")
    return (
        Taught(
            "R1-Lite",
            "GRPO",
            **where,
            kept=share_over_seeds(measured("R1-Lite"), measured("GRPO"), "pass@1", slices=TRAINED),
            least_kept=0.85,
            most_parameters=1 / 3,
            least_speed=3.0,
        ),
        *(
            Taught(
                "R1-Lite INT8",
                fine,
                **where,
                lost=_gap(coarse, (source[fine], "thinking"), "pass@1", MIXED),
                most_lost=0.02,
            )
            for fine in ("R1-Lite bf16", "R1-Lite")
        ),
    )


def _baselines() -> tuple[Baseline, ...]:
    return (
        Baseline("subset_sum", 1, "3 5", 0.021),
        Baseline("grid_path", 1, "down down right", 0.104),
        Baseline("subset_sum", 2, "2 4 9", 0.0),
        Baseline("grid_path", 2, "down right down right", 0.033),
    )


def _losses() -> tuple[LossCurve, ...]:
    generator = np.random.default_rng(3)
    curves = []
    for stage, count, first, last in (
        ("pretrain", 420, 6.9, 3.05),
        ("sft", 260, 2.6, 0.71),
        ("more-sft", 120, 0.70, 0.68),
        ("r1-lite", 240, 5.1, 0.52),
    ):
        steps = np.arange(1, count + 1)
        decay = np.exp(-5 * steps / count)
        losses = last + (first - last) * decay + generator.normal(0, 0.035 * last, count)
        held_out = steps[:: count // 6]
        validation = last * 1.03 + (first - last) * np.exp(-5 * held_out / count)
        baselines = {"uniform": 6.93, "unigram": 5.38, "bigram": 3.71}
        if stage != "pretrain":
            baselines = {"unigram": 1.93, "bigram": 1.02} if "sft" in stage else {}
        curves.append(
            LossCurve(
                stage,
                steps.tolist(),
                losses.tolist(),
                held_out.tolist(),
                validation.tolist(),
                baselines,
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
        frac_reward_zero_std=np.clip(
            0.22 + 0.2 * rise + generator.normal(0, 0.04, 90), 0, 1
        ).tolist(),
        kl=(0.021 * rise + generator.uniform(0, 0.003, 90)).tolist(),
        sampling_logp_difference=(10 ** generator.normal(-6.2, 0.15, 90)).tolist(),
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
            replies(4, worked, hasty, "more SFT"),
            replies(6, worked, slipped, "RFT"),
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
        StageCost("pretrain", 181.0, 3.1e13, 3_440_640, 1_200_000_000),
        StageCost("sft", 69.0, 3.0e13, 2_129_920, 1_250_000_000),
        StageCost("grpo", 141.0, 3.6e13, 1_105_920, 1_600_000_000, "of these 58 s of sampling"),
        StageCost("more-sft", 128.0, 3.78e13, 2_600_000, 1_250_000_000),
        StageCost("rft", 149.0, 3.69e13, 1_210_000, 1_300_000_000, "3 rounds"),
        StageCost("traces", 11.0, 0.2e13, 180_000, 1_300_000_000, "2,811 verified answers"),
        StageCost("r1-lite", 74.0, 1.2e13, 3_000_000, 900_000_000),
        StageCost("r1-lite-logits", 81.0, 1.2e13, 1_900_000, 1_100_000_000),
        StageCost("r1-lite-alone", 83.0, 1.4e13, 3_400_000, 900_000_000),
        StageCost("r1-lite-int8", 2.1),
        StageCost("measuring", 166.0, None, 811_000, 800_000_000),
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
