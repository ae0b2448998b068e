"""The stages that make a student: traces of the teacher, three ways to learn, and INT8.

The students have one shape and one total of FLOPs, the teacher's part included: one learns the
teacher's verified answers, one the teacher's probabilities on them, and one, the control of
distillation, the demonstrator's answers to the same problems, without a teacher. So the student by
logits, whose every token costs a forward of the teacher, sees fewer tokens, and the one without a
teacher sees more.
"""

from pathlib import Path

from ziphius.distill.settings import DistillSettings
from ziphius.distill.student import dense_student
from ziphius.distill.training import run_distillation
from ziphius.models.cost import model_cost
from ziphius.models.weights import load, read_model_config, save
from ziphius.quant.int8 import quantize
from ziphius.recipes.job import SAVE_EVERY, Job, stage_of
from ziphius.recipes.stages import StageResult, peak_memory_bytes
from ziphius.rollout.engine import RolloutEngine
from ziphius.rollout.sample import sample_groups
from ziphius.rollout.traces import TraceConfig, select_traces, write_traces
from ziphius.tasks.demonstrations import write_demonstrations
from ziphius.text.tokenizer import load_tokenizer
from ziphius.train.settings import SftTraining

TRACES_FILE, ALONE_FILE = "traces.jsonl", "demonstrations.jsonl"


def sample_traces(job: Job, folder: Path) -> StageResult:
    """Let the teacher answer problems once each; keep what is verified, and who else solved it."""
    engine = RolloutEngine(load(job.teacher), load_tokenizer(job.teacher))
    problems = job.problems("train", job.settings.lengths.traced, with_harder=True)
    groups = sample_groups(engine, problems, job.rollout(1), seed=job.settings.seed)
    traces = select_traces(groups, TraceConfig(choice="random"), seed=job.settings.seed)
    if not traces.kept:
        note = "No student: the teacher answered nothing correctly that could be learned from."
        return StageResult("traces", folder, 0.0, note=note, is_usable=False)
    write_traces(folder / TRACES_FILE, traces)
    write_demonstrations(
        folder / ALONE_FILE,
        [rollout.problem for rollout in traces.kept],
        job.settings.demonstrations,
        job.settings.seed,
    )
    tokens = sum(len(rollout.token_ids) for group in groups for rollout in group)
    return StageResult(
        "traces",
        folder,
        0.0,
        tokens=tokens,
        flops=float(tokens * job.flops(job.teacher).decode),
        peak_memory_bytes=peak_memory_bytes(),
        note=f"{len(traces.kept):,} verified answers of {traces.solved:,} problems",
    )


def teach_by_traces(job: Job, folder: Path) -> StageResult:
    """Teach a dense student the teacher's verified answers."""
    return _taught(job, folder, "r1-lite", TRACES_FILE)


def teach_by_logits(job: Job, folder: Path) -> StageResult:
    """Teach the same student the teacher's probabilities on the same answers."""
    return _taught(job, folder, "r1-lite-logits", TRACES_FILE, by_logits=True)


def teach_alone(job: Job, folder: Path) -> StageResult:
    """Teach the same student the demonstrator's answers to the same problems, without a teacher."""
    return _taught(job, folder, "r1-lite-alone", ALONE_FILE)


def to_int8(job: Job, folder: Path) -> StageResult:
    """Quantize the student's weights and activations."""
    source = job.checkpoint("r1-lite")
    model = load(source)
    sizes = quantize(model)
    save(model, folder / "model", load_tokenizer(source), weight_format="bfloat16")
    return StageResult(
        "r1-lite-int8",
        folder,
        0.0,
        checkpoint=folder / "model",
        peak_memory_bytes=peak_memory_bytes(),
        note=f"{100 * sizes.share:.0f} % of the bytes",
    )


def _taught(
    job: Job, folder: Path, name: str, data: str, *, by_logits: bool = False
) -> StageResult:
    settings = job.settings
    student = dense_student(read_model_config(job.teacher))
    own = model_cost(student, context=settings.seq_len).flops.training
    per_token = own + (job.flops(job.teacher).prefill if by_logits else 0)
    sampled = job.stages["traces"].flops or 0.0
    # What the first student costs with its teacher's answers is what each of them may spend.
    rows_tokens = settings.lengths.student * settings.stages.global_batch_size * settings.seq_len
    total = rows_tokens * own + sampled
    tokens = (total - (0.0 if name == "r1-lite-alone" else sampled)) / per_token
    taught = DistillSettings(
        kind="logits" if by_logits else "traces",
        teacher=job.teacher,
        data=(job.stages["traces"].folder / data,),
        epochs=0,
        chat_format=settings.chat_format,
        thinking=False,
        train=SftTraining(
            budget=f"{tokens:.0f}-tokens",
            seed=settings.seed,
            seq_len=settings.seq_len,
            global_batch_size=settings.stages.global_batch_size,
            dtype=settings.stages.dtype,
            optimizer=settings.stages.optimizer,
            learning_rate=settings.stages.student_rate,
            validate_rows=32,
            save_every=SAVE_EVERY,
        ),
    )
    finished = run_distillation(taught, folder, job.context)
    flops = float(finished.result.tokens * per_token)
    return stage_of(name, finished.result, flops=flops, note=finished.text)
