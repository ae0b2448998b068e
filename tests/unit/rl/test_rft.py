"""`rl/rft.py`: rounds of sampling and fine-tuning, what they spend, and going on after a stop."""

import json
import os
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.unit.rl.toys import TOKENIZER, model_of
from tests.unit.rollout.tasks import Echo, add_echo
from ziphius.core.errors import ConfigError
from ziphius.data.batch import Batch
from ziphius.dist.world import World
from ziphius.models.weights import load
from ziphius.models.weights.saving import save
from ziphius.rl import rft
from ziphius.rl.rft import RftResult, Sampled, run_rft
from ziphius.rl.rft_config import RftSettings
from ziphius.rollout.config import RolloutConfig
from ziphius.rollout.sample import Rollout
from ziphius.tasks import Problem
from ziphius.train.finetuning import run_sft
from ziphius.train.records import read_metrics
from ziphius.train.result import TrainResult
from ziphius.train.run import Finished, RunContext
from ziphius.train.settings import SftSettings, SftTraining
from ziphius.train.stages.sft import Sft

QUIET = {"quiet": True, "tensorboard": False}
TRAIN = {
    "seq_len": 64,
    "global_batch_size": 4,
    "learning_rate": 5e-3,
    "dtype": "float32",
    "validate_every": 0,
}
BATCH = 4
"""Problems of a batch, here."""


def is_right(self: Echo, problem: Problem, answer: str | None) -> bool:
    """Take any word of a, b and c: a model need not learn much to have right and wrong ones."""
    return answer is not None and set(answer) <= set("abc")


@pytest.fixture(autouse=True)
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place for tokenized conversations that goes with the test."""
    monkeypatch.setattr("ziphius.data.cache.cache_folder", lambda: tmp_path / "cache")


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    patch_toys(monkeypatch)


def patch_toys(monkeypatch: pytest.MonkeyPatch) -> None:
    add_echo(monkeypatch)
    monkeypatch.setattr(Echo, "verify", is_right)
    monkeypatch.setattr(rft, "GROUPS_AT_ONCE", BATCH)


def settings(model: Path | None, **changes: Any) -> RftSettings:
    fields: dict[str, Any] = {
        "model": model,
        "tasks": [{"name": "echo"}],
        "pool": 40,
        "rounds": 2,
        "rollout": {"num_generations": 4, "max_new_tokens": 5, "thinking": False},
        "sampled_tokens": 160,
        "answers_kept": 2,
        "instruments": QUIET,
        "train": TRAIN | {"budget": "5-steps"},
    }
    return RftSettings.model_validate(fields | changes)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers in a letter or two, and often ends its answers."""
    folder = tmp_path_factory.mktemp("base")
    save(model_of("v3-tiny"), folder / "new")
    TOKENIZER.save(folder / "new")
    random = Random(0)
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"Say train{number}"},
                {"role": "assistant", "content": random.choice(["a", "ab", "b", "bb", "c", "x"])},
            ]
        }
        for number in range(100)
    ]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    teaching = SftSettings(
        model=folder / "new",
        data=(data,),
        epochs=0,
        thinking=False,
        hold_out=0.0,
        instruments=QUIET,
        train=SftTraining.model_validate(TRAIN | {"global_batch_size": 8, "budget": "20-steps"}),
    )
    return run_sft(teaching, folder / "run").result.checkpoint


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RftResult, Path]:
    """A run that nothing happened to, and its folder."""
    folder = tmp_path_factory.mktemp("rft")
    with pytest.MonkeyPatch.context() as patch:
        patch_toys(patch)
        return run_rft(settings(base), folder), folder


def traces(folder: Path, number: int) -> list[dict[str, Any]]:
    text = (folder / f"round-{number}" / "traces.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load(checkpoint, dtype=torch.float32).state_dict()


def test_every_round_samples_keeps_what_is_right_and_trains(
    base: Path, finished: tuple[RftResult, Path]
) -> None:
    result, folder = finished
    assert [path.name for path in sorted(folder.iterdir())] == ["round-1", "round-2"]
    for number, found in enumerate(result.rounds, 1):
        kept = traces(folder, number)
        assert found.kept == len(kept) > 0
        assert found.kept <= found.correct < found.completions
        answers = [line["messages"][1]["content"] for line in kept]
        assert all(set(answer) <= set("abc") for answer in answers)
        assert len({(line["key"], a) for line, a in zip(kept, answers, strict=True)}) == len(kept)
        assert max(Counter(line["key"] for line in kept).values()) <= 2
    first, second = result.rounds
    longest = BATCH * 4 * 5  # a batch of the longest answers
    assert 80 <= first.tokens < 80 + longest
    assert 160 <= first.tokens + second.tokens < 160 + longest
    assert first.completions == 4 * first.groups
    assert second.completions == 4 * (second.groups - first.groups)
    steps = [
        [line["step"] for line in read_metrics(folder / f"round-{n}" / "train") if "terms" in line]
        for n in (1, 2)
    ]
    assert steps == [[1, 2], [1, 2, 3]]
    assert result.last.result.checkpoint == folder / "round-2/train/checkpoints/step-3"
    learned = weights(result.last.result.checkpoint)
    assert any(not torch.equal(learned[name], old) for name, old in weights(base).items())


def test_a_second_start_finds_all_rounds_done(
    base: Path, finished: tuple[RftResult, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    result, folder = finished
    before = {
        path: path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.name in ("traces.jsonl", "sampled.json") or path.parent.name.startswith("step-")
    }
    assert len(before) > 10
    monkeypatch.setattr(rft, "sample_groups", None)
    monkeypatch.setattr(Sft, "batches", None)
    again = run_rft(settings(base), folder)
    assert again.rounds == result.rounds
    for name in ("checkpoint", "tokens", "seconds", "step", "total_steps"):
        assert getattr(again.last.result, name) == getattr(result.last.result, name)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_run_that_was_killed_and_stopped_ends_as_one_that_was_not(
    base: Path,
    finished: tuple[RftResult, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def is_full(path: Path, content: str) -> None:
        raise OSError(path.name)

    with monkeypatch.context() as patch:  # between the traces and the note that they are there
        patch.setattr(rft, "write_file", is_full)
        with pytest.raises(OSError, match=r"sampled\.json"):
            run_rft(settings(base), tmp_path)
    assert len(traces(tmp_path, 1)) > 0
    batches = Sft.batches

    def stops(self: Sft, step: int) -> list[Batch]:
        if step == 1 and (tmp_path / "round-2").exists():
            os.kill(os.getpid(), signal.SIGTERM)
        return batches(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Sft, "batches", stops)
        stopped = run_rft(settings(base), tmp_path)
    assert stopped.last.result.stopped_by == signal.SIGTERM
    assert stopped.last.result.step == 2
    ended = run_rft(settings(base), tmp_path)
    whole, folder = finished
    assert ended.rounds == whole.rounds
    assert ended.last.result.tokens == whole.last.result.tokens
    for number in (1, 2):
        assert traces(tmp_path, number) == traces(folder, number)
    expected = weights(whole.last.result.checkpoint)
    for name, tensor in weights(ended.last.result.checkpoint).items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rollout": {"num_generations": 8, "max_new_tokens": 5, "thinking": False}}, "rollout"),
        ({"sampled_tokens": 161}, "sampled_tokens"),
        ({"rounds": 3}, "rounds"),
        ({"answers_kept": 1}, "answers_kept"),
        ({"pool": 41}, "problems"),
        ({"train": TRAIN | {"budget": "5-steps", "seed": 7}}, "problems, seed"),
    ],
)
def test_rounds_of_other_settings_are_refused(
    base: Path, finished: tuple[RftResult, Path], changes: dict[str, Any], named: str
) -> None:
    _, folder = finished
    with pytest.raises(ConfigError, match=rf"round-1 holds .* \({named} differ\): choose another"):
        run_rft(settings(base, **changes), folder)


def test_rounds_of_another_model_are_refused(finished: tuple[RftResult, Path]) -> None:
    result, folder = finished
    with pytest.raises(ConfigError, match=r"\(model differ\)"):
        run_rft(settings(result.last.result.checkpoint), folder)


def test_what_has_no_effect_on_answers_may_change(
    base: Path, finished: tuple[RftResult, Path]
) -> None:
    result, folder = finished
    rollout = {"num_generations": 4, "max_new_tokens": 5, "thinking": False, "sequences_at_once": 8}
    assert run_rft(settings(base, rollout=rollout), folder).rounds == result.rounds


NOTE = '{"tokens": 1, "completions": 1, "correct": 1, "kept": 1, "groups": 1}'


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "{}", '{"identity": {}, "sampled": {}}'),
        f'{{"identity": 1, "sampled": {NOTE}}}',
    ],
)
def test_a_damaged_note_is_named(base: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "round-1").mkdir()
    (tmp_path / "round-1" / "sampled.json").write_text(text)
    with pytest.raises(ConfigError, match=r"round-1/sampled\.json cannot be read .* remove"):
        run_rft(settings(base), tmp_path)


def test_a_round_without_a_right_answer_says_so(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Echo, "verify", lambda self, problem, answer: False)
    message = (
        rf"^Round 1: of \d+ answers of {base} to \d+ problems none is right, so there is nothing "
        r"to learn from\. Give easier tasks, more sampled_tokens, or a model that was fine-tuned"
    )
    with pytest.raises(ConfigError, match=message):
        run_rft(settings(base), tmp_path)
    assert list((tmp_path / "round-1").iterdir()) == []


class Recorded:
    """In the place of sampling and training: what was asked for, and answers of a fixed length."""

    def __init__(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.base = base
        self.asked: list[tuple[int, list[str]]] = []
        self.trained: list[SftSettings] = []
        self.sources: list[Path] = []
        self.stops_in: int | None = None
        self.wrong_in: int | None = None
        monkeypatch.setattr(rft, "sample_groups", self.sample)
        monkeypatch.setattr(rft, "run_sft", self.train)
        monkeypatch.setattr(rft, "load", self.load)
        monkeypatch.setattr(rft, "RolloutEngine", lambda model, tokenizer: None)

    def load(self, source: Path, dtype: torch.dtype) -> Any:
        self.sources.append(source)
        return SimpleNamespace(to=lambda device: None)

    def sample(
        self,
        engine: Any,
        problems: Sequence[Problem],
        config: RolloutConfig,
        *,
        seed: int,
        first_sequence_id: int,
    ) -> list[list[Rollout]]:
        """Answer with three tokens, one of each group rightly."""
        self.asked.append((first_sequence_id, [problem.question for problem in problems]))
        is_wrong = self.wrong_in == len(self.trained) + 1
        return [
            [
                Rollout(
                    problem, (1,), (1, 2, 3), (0.0,) * 3, "stop", None, "a", n == 0 and not is_wrong
                )
                for n in range(config.num_generations)
            ]
            for problem in problems
        ]

    def train(self, asked: SftSettings, folder: Path, context: RunContext) -> Finished:
        self.trained.append(asked)
        context.claim()
        number = len(self.trained)
        result = TrainResult(
            *("sft", folder, self.base), step=1, total_steps=1, tokens=100, seconds=2.0, loss=None
        )
        stopped = signal.SIGINT if number == self.stops_in else None
        return Finished(replace(result, stopped_by=stopped), None)


@pytest.fixture
def recorded(base: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    return Recorded(base, monkeypatch)


def test_sampled_tokens_are_shared_out_and_what_was_too_much_is_made_up_for(
    recorded: Recorded, tmp_path: Path
) -> None:
    """A batch has 4 x 4 x 3 = 48 tokens; 250 over three rounds are 83, 166 and 250."""
    result = run_rft(settings(recorded.base, rounds=3, sampled_tokens=250), tmp_path)
    assert [found.tokens for found in result.rounds] == [96, 96, 96]
    longer = run_rft(settings(recorded.base, rounds=3, sampled_tokens=330), tmp_path / "longer")
    assert [found.tokens for found in longer.rounds] == [144, 96, 96]  # 110, 220, 330
    few = run_rft(settings(recorded.base, rounds=3, sampled_tokens=1), tmp_path / "few")
    assert [found.tokens for found in few.rounds] == [48, 48, 48]


def test_no_draw_and_no_batch_comes_twice(recorded: Recorded, tmp_path: Path) -> None:
    asked = settings(recorded.base, rounds=3, sampled_tokens=250, pool=4_000)
    result = run_rft(asked, tmp_path)
    assert [first for first, _ in recorded.asked] == [0, 16, 32, 48, 64, 80]
    assert len({tuple(questions) for _, questions in recorded.asked}) == 6
    assert result.rounds == (
        Sampled(tokens=96, completions=32, correct=8, kept=8, groups=8),
        Sampled(tokens=96, completions=32, correct=8, kept=8, groups=16),
        Sampled(tokens=96, completions=32, correct=8, kept=8, groups=24),
    )


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ("5-steps", ["1-steps", "2-steps", "2-steps"]),
        ("9-steps", ["3-steps", "3-steps", "3-steps"]),
        ("2-steps", ["1-steps", "1-steps", "1-steps"]),
        ("1900-tokens", ["2-steps", "3-steps", "3-steps"]),  # of 4 x 64 tokens, at most 7.4
    ],
)
def test_the_budget_is_that_of_all_rounds(
    recorded: Recorded, tmp_path: Path, budget: str, steps: list[str]
) -> None:
    train = TRAIN | {"budget": budget, "seed": 3}
    result = run_rft(settings(recorded.base, rounds=3, train=train), tmp_path)
    assert [asked.train.budget for asked in recorded.trained] == steps
    assert [asked.train.seed for asked in recorded.trained] == [3, 4, 5]
    assert result.last.result.tokens == 300
    assert result.last.result.seconds == pytest.approx(
        6.0 + sum(one.seconds for one in result.rounds)
    )
    assert all(asked.epochs == 0 for asked in recorded.trained)


@pytest.mark.parametrize("keeps_rounds", [True, False])
def test_a_round_goes_on_from_the_one_before_and_learns_what_it_is_told(
    recorded: Recorded, tmp_path: Path, keeps_rounds: bool
) -> None:
    start = tmp_path / "start"
    save(model_of("v3-tiny"), start)
    TOKENIZER.save(start)
    shown = Path("demonstrations.jsonl")
    asked = settings(start, keeps_rounds=keeps_rounds, demonstrations=[shown])
    run_rft(asked, tmp_path)
    first, second = (tmp_path / f"round-{n}" / "traces.jsonl" for n in (1, 2))
    assert recorded.sources == [start, recorded.base]
    assert [each.model for each in recorded.trained] == recorded.sources
    assert recorded.trained[0].data == (first, shown)
    assert recorded.trained[1].data == ((first, second, shown) if keeps_rounds else (second, shown))
    assert [each.thinking for each in recorded.trained] == [False, False]


def test_a_signal_ends_the_run_after_its_round(recorded: Recorded, tmp_path: Path) -> None:
    recorded.stops_in = 2
    result = run_rft(settings(recorded.base, rounds=3), tmp_path)
    assert result.last.result.stopped_by == signal.SIGINT
    assert len(result.rounds) == len(recorded.trained) == 2


def test_a_later_round_without_a_right_answer_is_named(recorded: Recorded, tmp_path: Path) -> None:
    recorded.wrong_in = 2
    with pytest.raises(ConfigError, match=r"^Round 2: of 16 answers .* 4 problems none is right"):
        run_rft(settings(recorded.base, rounds=3), tmp_path)


def test_the_folder_is_claimed_once_and_before_anything_is_written(
    recorded: Recorded, tmp_path: Path
) -> None:
    found: list[list[Path]] = []
    folder = tmp_path / "run"
    run_rft(
        settings(recorded.base),
        folder,
        RunContext(claim=lambda: found.append(list(tmp_path.iterdir()))),
    )
    assert found == [[]]


def test_what_a_run_needs_is_asked_for(recorded: Recorded, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"MODEL, the folder .* and --tasks, at least one"):
        run_rft(settings(None, tasks=[]), tmp_path)
    with pytest.raises(ConfigError, match=r"2 processes: .* without torchrun"):
        run_rft(settings(recorded.base), tmp_path, RunContext(world=World(0, 2)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": TRAIN | {"budget": "10m"}}, "give tokens or steps"),
        (
            {"train": TRAIN | {"budget": "9-steps", "rampup_batch_size": 2, "rampup_steps": 2}},
            "anew",
        ),
        ({"lora": {"rank": 4}}, "adapters are not trained"),
        ({"rounds": 0}, "rounds"),
        ({"answers_kept": 0}, "answers_kept"),
        ({"sampled_tokens": 0}, "sampled_tokens"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        settings(Path("model"), **changes)
