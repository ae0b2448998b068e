"""What a report can say, as plain values; a recipe fills in what it has.

Every section but the title is optional: what is missing is left out of the page, with a note. All
shares are between 0 and 1, times in seconds, sizes in bytes, speeds in tokens per second.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ziphius.evals.intervals import Estimate
from ziphius.evals.summary import Summary

Series = Sequence[float]
"""One value a step."""
BEST_WAY = "best mode"
"""The way of a difference whose arms are each asked in their own best way."""


@dataclass(frozen=True)
class Arm:
    """One model of the comparison, in the order of the report's tables and colours."""

    name: str
    description: str
    """What was done to get it, in a few words."""
    slices: tuple[Summary, ...]
    """The same slices, in the same order, for every arm."""
    way: str = ""
    """How it was asked for these; a name as in `AskedRow.way`."""
    parameters: int | None = None
    active_parameters: int | None = None
    """Of these, what one token uses."""
    flops_per_token: float | None = None
    """Of decoding."""
    dtype: str = ""
    """Numbers that it answers in."""
    tokens_per_s: float | None = None
    cache_bytes_per_token: int | None = None
    size_bytes: int | None = None
    """Of the weights on disk."""
    training_flops: float | None = None
    """Of all stages that led to it."""
    training_s: float | None = None
    """Of the same stages."""
    start: str = ""
    """Name of the arm whose weights it began with, if that is one."""
    stages: tuple[str, ...] = ()
    """Names of the stages that led to it, as in `StageCost.stage`."""


@dataclass(frozen=True)
class LossCurve:
    """The loss of one stage, in nats a token, beside what it has to beat."""

    stage: str
    steps: Series
    losses: Series
    validation_steps: Series = ()
    validation_losses: Series = ()
    """On held-out text."""
    baselines: Mapping[str, float] = field(default_factory=dict)
    """Losses of guessing by counts, by name: uniform, unigram, bigram."""


@dataclass(frozen=True)
class Learning:
    """What happened in the steps of reinforcement learning; a series may be empty."""

    steps: Series
    reward: Series
    """Mean of a step's completions."""
    tokens: Series = ()
    """Mean length of a completion."""
    frac_reward_zero_std: Series = ()
    """Share of groups whose rewards were all equal, which teach nothing."""
    kl: Series = ()
    """To the reference model, k3, in nats a token."""
    sampling_logp_difference: Series = ()
    """Largest difference of a log-probability between rollout and trainer."""
    logprob_bound: float = 1e-5


@dataclass(frozen=True)
class ExpertLoad:
    """How a stage's tokens went to the experts."""

    stage: str
    steps: Series
    counts_by_layer: Mapping[int, Sequence[Sequence[int]]]
    """Tokens of each expert, [steps, E]."""


@dataclass(frozen=True)
class AskedRow:
    """One arm asked in one way."""

    arm: str
    way: str
    """Such as `as trained`, `think first`, `greedy`, `maj@8`, `pass@8`."""
    figures: Mapping[str, Estimate]
    """Share of correct answers by slice."""
    is_best: bool = False
    """Whether it is the arm's best way of one answer, chosen on development problems."""


@dataclass(frozen=True)
class Baseline:
    """The most frequent answer of a task's training problems, given to everything."""

    task: str
    level: int
    answer: str
    accuracy: float
    """On the measured problems."""


@dataclass(frozen=True)
class Difference:
    """A figure of one arm less that of another, over the same problems."""

    slice: str
    ours: str
    theirs: str
    estimate: Estimate
    way: str = BEST_WAY
    """How both were asked; `BEST_WAY`: each in its own."""
    ways: tuple[str, str] = ("", "")
    """How each was asked; empty where it is not known."""
    by_seed: tuple[float, ...] = ()
    """The difference of every seed, where there are several."""
    is_goal: bool = False
    """Whether the run was made to show that this is above 0."""
    is_best_control: bool = False
    """Whether theirs is the best of the controls, chosen on development problems."""


@dataclass(frozen=True)
class Reply:
    """One completion, as it was written."""

    reasoning: str | None
    answer: str | None
    """None where it was cut off before an answer."""
    tokens: int


@dataclass(frozen=True)
class ArmReplies:
    """What one arm said to one problem."""

    arm: str
    right: int
    """How many of its answers were."""
    samples: int
    good: Reply | None
    """One that was right, if any was."""
    bad: Reply | None


@dataclass(frozen=True)
class Transcript:
    """One problem, and what every arm said to it."""

    slice: str
    question: str
    answer: str
    replies: tuple[ArmReplies, ...]


@dataclass(frozen=True)
class Taught:
    """A smaller or coarser model beside the one that it was made from."""

    student: str
    """Name of an arm."""
    teacher: str
    """Name of the arm that it was made from."""
    slice: str = ""
    """Where both were asked."""
    way: str = ""
    """How both were asked; a name as in `AskedRow.way`."""
    kept: Estimate | None = None
    """pass@1 as a share of the teacher's."""
    lost: Estimate | None = None
    """pass@1 of the student less the teacher's."""
    least_kept: float | None = None
    """The share that it was meant to keep."""
    most_lost: float | None = None
    """What it was allowed to lose, above 0."""
    most_parameters: float | None = None
    """The share of the teacher's parameters that it was allowed."""
    least_speed: float | None = None
    """How many times as fast it was meant to be."""


@dataclass(frozen=True)
class StageCost:
    """What one stage of the run took."""

    stage: str
    seconds: float
    flops: float | None = None
    tokens: int | None = None
    peak_memory_bytes: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Report:
    """All that the page shows."""

    title: str
    purpose: str
    """What was run, on what, in a sentence or two; findings are added from the figures."""
    arms: tuple[Arm, ...] = ()
    asked: tuple[AskedRow, ...] = ()
    baselines: tuple[Baseline, ...] = ()
    differences: tuple[Difference, ...] = ()
    losses: tuple[LossCurve, ...] = ()
    learning: Learning | None = None
    experts: ExpertLoad | None = None
    transcripts: tuple[Transcript, ...] = ()
    taught: tuple[Taught, ...] = ()
    costs: tuple[StageCost, ...] = ()
    machine: tuple[tuple[str, str], ...] = ()
    """What is known of the machine, the software and the command, by name."""
    notes: tuple[str, ...] = ()
    """What a reader must know to judge the figures, such as how the demonstrations were made."""
    failures: tuple[str, ...] = ()
    """What did not work and does not show in the figures here."""
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why a section is missing, by the section's name (`page.SECTIONS`)."""
    is_example: bool = False
    """Marks every screen of the page: its figures are made up."""
