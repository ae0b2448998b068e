"""`rollout/sample.py`: groups are what single sequences would be, read and verified."""

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from pydantic import ValidationError

from tests.unit.rollout.tasks import add_echo, echo
from ziphius.core.errors import ConfigError
from ziphius.engine.answer import chat_prompt
from ziphius.engine.engine import Engine
from ziphius.engine.generate import Completion, Request, generate
from ziphius.engine.sequence import StepOutput
from ziphius.engine.step import Chunk, StepArrays
from ziphius.models.forward_batch import ForwardBatch
from ziphius.models.model import Model
from ziphius.models.presets import get_preset
from ziphius.ops.sampling_config import SamplingConfig
from ziphius.rollout.engine import RolloutEngine
from ziphius.rollout.sample import RolloutConfig, read_answer, sample_groups, spoken_format
from ziphius.text.chat import Message, get_chat_format
from ziphius.text.special import EOS
from ziphius.text.vocabulary import deepseek_tokenizer

TOKENIZER = deepseek_tokenizer(512)
PROBLEMS = [echo("a"), echo("words"), echo("c")]


@pytest.fixture(autouse=True)
def _tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    add_echo(monkeypatch)


@pytest.fixture(scope="module", params=["v3-tiny", "v2-tiny", "r1-distill-llama-tiny"])
def engine(request: pytest.FixtureRequest) -> RolloutEngine:
    model = Model(get_preset(request.param))
    model.initialize(seed=0)
    return RolloutEngine(model, TOKENIZER)


def config(**changes: object) -> RolloutConfig:
    return RolloutConfig(**({"num_generations": 3, "max_new_tokens": 6} | changes))


def test_a_group_is_what_its_sequences_are_alone(engine: RolloutEngine) -> None:
    groups = sample_groups(engine, PROBLEMS, config(), seed=5, first_sequence_id=100)
    assert [len(group) for group in groups] == [3, 3, 3]
    for place, group in enumerate(groups):
        for number, rollout in enumerate(group):
            request = Request(
                rollout.prompt_ids,
                6,
                100 + 3 * place + number,
                SamplingConfig(seed=5),
                (TOKENIZER.token_id(EOS),),
            )
            [alone] = generate(engine.model, [request], vocab_limit=TOKENIZER.vocab_size)
            assert rollout.token_ids == alone.token_ids
            assert rollout.logprobs == pytest.approx(alone.logprobs, abs=1e-5)
    assert len({rollout.token_ids for group in groups for rollout in group}) == 9


def test_how_many_are_decoded_together_changes_no_draw(
    engine: RolloutEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    running: list[int] = []
    step = Engine.step

    def noted(self: Engine) -> list[StepOutput]:
        found = step(self)
        running.append(self.num_running)
        return found

    monkeypatch.setattr(Engine, "step", noted)
    whole = sample_groups(engine, PROBLEMS, config(), seed=1)
    for limit in (1, 6):
        running.clear()
        parts = sample_groups(engine, PROBLEMS, config(sequences_at_once=limit), seed=1)
        assert max(running) == limit
        assert [[each.token_ids for each in group] for group in parts] == [
            [each.token_ids for each in group] for group in whole
        ]


def test_a_shared_prompt_is_prefilled_once(
    engine: RolloutEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = []
    lay_out = StepArrays.batch

    def counted(self: StepArrays, chunks: Sequence[Chunk]) -> ForwardBatch:
        batch = lay_out(self, chunks)
        assert batch.paged is not None
        fed.append(batch.paged.cu_seqlens_Z1.diff().tolist())
        return batch

    monkeypatch.setattr(StepArrays, "batch", counted)
    engine = RolloutEngine(engine.model, TOKENIZER)  # that has seen no prompt yet
    [first, *_], *_ = sample_groups(engine, [echo("a"), echo("b")], config(), seed=1)
    assert fed[0] == [len(first.prompt_ids)] * 2
    assert fed[1] == [1] * 6


def test_numbered_problems_are_answered_as_part_of_the_whole_list(engine: RolloutEngine) -> None:
    whole = sample_groups(engine, PROBLEMS, config(), seed=4)
    part = sample_groups(engine, PROBLEMS[::2], config(), seed=4, numbers=[0, 2])
    assert [[each.token_ids for each in group] for group in part] == [
        [each.token_ids for each in group] for group in whole[::2]
    ]


@torch.no_grad()
def test_recorded_routes_are_those_of_a_whole_forward_pass(engine: RolloutEngine) -> None:
    model = engine.model
    recording = RolloutEngine(model, TOKENIZER, record_routes=True)
    groups = sample_groups(recording, PROBLEMS, config(), seed=2)
    layers = [idx for idx in range(3) if model.config.is_expert_layer(idx)]
    for rollout in (rollout for group in groups for rollout in group):
        if not layers:
            assert rollout.routes is None
            continue
        seen = [*rollout.prompt_ids, *rollout.token_ids][:-1]
        routings = model(torch.tensor([seen])).routings
        assert rollout.routes is not None
        assert list(rollout.routes) == layers == sorted(routings)
        for layer, experts_TK in rollout.routes.items():
            torch.testing.assert_close(
                experts_TK.long().sort().values, routings[layer].experts_MK.sort().values
            )


def test_routes_are_none_unless_asked_for(engine: RolloutEngine) -> None:
    [[rollout]] = sample_groups(
        engine, PROBLEMS[:1], config(num_generations=1, max_new_tokens=2), seed=0
    )
    assert rollout.routes is None


def written(reasoning: str, answer: str, *, is_cut: bool = False) -> Completion:
    """What a model that speaks R1's format would have written."""
    ids = TOKENIZER.encode(f"{reasoning}\n</think>\n\n{answer}", allow_special=True)
    end = [] if is_cut else [TOKENIZER.token_id(EOS)]
    ids += end
    return Completion(tuple(ids), (0.0,) * len(ids), "length" if is_cut else "stop")


def test_reasoning_and_answer_are_read_by_the_chat_format() -> None:
    prompt = chat_prompt([Message("user", "x")], TOKENIZER, get_chat_format("deepseek-r1"))
    assert read_answer(prompt, written("1+1", " 2 "), TOKENIZER) == ("1+1", "2")
    assert read_answer(prompt, written("1+1", "", is_cut=False), TOKENIZER) == ("1+1", None)
    cut = written("1+1", "2", is_cut=True)
    assert read_answer(prompt, cut, TOKENIZER) == ("1+1", None)
    endless = dataclasses.replace(cut, token_ids=tuple(TOKENIZER.encode("1+1=")))
    assert read_answer(prompt, endless, TOKENIZER) == ("1+1=", None)


def test_the_task_decides_what_is_correct(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["a", "b", "a"])
    engine = RolloutEngine(Model(get_preset("v3-tiny")), TOKENIZER)
    monkeypatch.setattr(
        engine,
        "generate",
        lambda requests, **options: [written("r", next(answers)) for _ in requests],
    )
    [group] = sample_groups(engine, [echo("a")], config(), seed=0)
    assert [rollout.is_correct for rollout in group] == [True, False, True]
    assert [rollout.answer for rollout in group] == ["a", "b", "a"]
    assert all(rollout.follows_format for rollout in group)
    silent = dataclasses.replace(group[0], reasoning=" ")
    cut = dataclasses.replace(group[0], answer=None)
    assert not silent.follows_format
    assert not cut.follows_format


def test_settings_without_effect_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"sampling\.seed has no effect"):
        config(sampling=SamplingConfig(seed=1))
    with pytest.raises(ValidationError, match="greedy"):
        config(sampling=SamplingConfig(temperature=0.0))
    with pytest.raises(ConfigError, match="no chat format"):
        spoken_format(TOKENIZER.with_chat_format(None))
