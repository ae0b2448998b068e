"""`rollout/engine.py`: one engine for a model that is trained between its answers."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.rollout.tasks import Echo, add_echo, echo
from ziphius.core.errors import CheckpointError, ConfigError
from ziphius.engine.engine import Engine
from ziphius.engine.generate import Completion, Request, generate
from ziphius.engine.native_runner import NativeRunner
from ziphius.models.model import Model
from ziphius.models.presets import get_preset
from ziphius.ops import native
from ziphius.ops.sampling_config import SamplingConfig
from ziphius.rollout import engine as module
from ziphius.rollout.engine import RolloutEngine
from ziphius.rollout.sample import RolloutConfig, sample_groups
from ziphius.rollout.weights import rounded_weights
from ziphius.text.vocabulary import deepseek_tokenizer

TOKENIZER = deepseek_tokenizer(512)
# Longer than a block, so that the prefix cache keeps something of them.
PROMPTS = [[7, *range(20, 38)], [7, *range(20, 37), 9], [5] * 35, [3]]
REQUESTS = [
    Request(prompt, 3 + 4 * row, 4 * row + n, SamplingConfig(seed=2))
    for row, prompt in enumerate(PROMPTS)
    for n in range(3)
]
here = pytest.mark.skipif(not native.serves(), reason=f"native kernels {native.status()}")


def model_of(preset: str = "v3-tiny") -> Model:
    model = Model(get_preset(preset))
    model.initialize(seed=0)
    return model


def answers(engine: RolloutEngine, max_num_seqs: int = 64) -> list[Completion]:
    found = engine.generate(REQUESTS, max_num_seqs=max_num_seqs)
    engine.check()
    return found


def said(completions: list[Completion]) -> list[tuple[Any, ...]]:
    """All but the version, to the bit."""
    return [(one.token_ids, one.logprobs, one.finish_reason) for one in completions]


def fresh(model: Model) -> list[tuple[Any, ...]]:
    """What an engine says that was made for this alone."""
    return said(generate(model, REQUESTS, vocab_limit=TOKENIZER.vocab_size))


@here
@pytest.mark.parametrize("preset", ["v3-tiny", "v2-tiny", "r1-distill-llama-tiny"])
def test_answers_are_those_of_an_engine_of_their_own_however_many_run(preset: str) -> None:
    model = model_of(preset)
    engine, expected = RolloutEngine(model, TOKENIZER), fresh(model)
    for max_num_seqs in (64, 3, 1, 64):
        assert said(answers(engine, max_num_seqs)) == expected
    assert engine.not_native is None


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[Any]:
    """Note what a function or class returns."""
    made, function = [], getattr(owner, name)

    def noted(*args: Any, **options: Any) -> Any:
        made.append(function(*args, **options))
        return made[-1]

    monkeypatch.setattr(owner, name, noted)
    return made


@here
def test_the_engine_is_kept_and_only_new_weights_are_packed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of()
    packed = counted(monkeypatch, module, "packed_program")
    made = counted(monkeypatch, module, "Engine")
    engine = RolloutEngine(model, TOKENIZER)
    assert engine.update_weights()
    assert not engine.update_weights()
    first = answers(engine)
    assert said(answers(engine)) == said(first)
    assert made[0].metrics()["prefix_cache_hits"] > 0
    assert len(packed) == 1
    with torch.no_grad():
        model.head.weight.mul_(1.5)
    assert engine.update_weights()
    assert not engine.update_weights()
    assert said(answers(engine)) == fresh(model) != said(first)
    assert [program.arena.data_ptr() for program, _ in packed] == [
        engine.program.arena.data_ptr()
    ] * 2
    assert len(made) == 1


def by_optimizer(model: Model) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.tensor([PROMPTS[0]])).hidden_BTD.square().sum().backward()
    optimizer.step()


def in_place(model: Model) -> None:
    """Without PyTorch's counters of versions."""
    weight = model.model.layers[0].self_attn.o_proj.weight
    version = weight._version
    weight.data.mul_(3.0)
    assert weight._version == version


def by_numpy(model: Model) -> None:
    model.model.layers[1].mlp.experts.down_proj.detach().numpy()[:] *= 3.0


def by_loading(model: Model) -> None:
    other = Model(model.config)
    other.initialize(seed=1)
    model.load_state_dict(other.state_dict())


def by_another_tensor(model: Model) -> None:
    weight = model.model.norm.weight
    weight.data = weight.data * 2.0


def of_the_embedding(model: Model) -> None:
    model.model.embed_tokens.weight.data[7] *= 2.0


def of_a_buffer(model: Model) -> None:
    bias: Tensor = model.model.layers[1].mlp.gate.e_score_correction_bias
    bias[0] += 5.0


def of_swapped_experts(model: Model) -> None:
    experts = model.model.layers[1].mlp.experts
    experts.gate_up_proj.data = experts.gate_up_proj.data.flip(0)


CHANGES = [
    by_optimizer,
    in_place,
    by_numpy,
    by_loading,
    by_another_tensor,
    of_the_embedding,
    of_a_buffer,
    of_swapped_experts,
]


@pytest.mark.parametrize("is_native", [pytest.param(True, marks=here), False])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_no_answer_comes_from_weights_that_were_changed(
    change: Callable[[Model], None], is_native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However they were changed, and whether anybody says so or not."""
    if not is_native:
        monkeypatch.setattr(native, "serves", lambda *tensors: False)
    model = model_of()
    engine = RolloutEngine(model, TOKENIZER)
    before = said(answers(engine))
    change(model)
    found = answers(engine)
    assert (engine.program is not None) == is_native
    assert said(found) == fresh(model) != before
    assert [one.weight_version for one in found] == [1] * len(REQUESTS)


def test_the_version_stands_on_tokens_completions_and_rollouts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add_echo(monkeypatch)
    outputs = []
    step = Engine.step
    monkeypatch.setattr(Engine, "step", lambda self: outputs.append(found := step(self)) or found)
    model = model_of()
    engine = RolloutEngine(model, TOKENIZER)
    assert {one.weight_version for one in answers(engine)} == {0}
    engine.update_weights(40)
    outputs.clear()
    config = RolloutConfig(num_generations=2, max_new_tokens=3)
    groups = sample_groups(engine, [echo("a"), echo("b")], config, seed=0)
    assert {rollout.policy_version for group in groups for rollout in group} == {40}
    assert {output.weight_version for found in outputs for output in found} == {40}
    in_place(model)
    assert {one.weight_version for one in answers(engine)} == {41}
    in_place(model)
    assert engine.update_weights(7)
    assert {one.weight_version for one in answers(engine)} == {7}


class Broken(Exception):
    """What a test breaks off by."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, Broken])
@pytest.mark.parametrize(
    ("owner", "name"),
    [(Engine, "_accept"), (Engine, "_draw"), (Engine, "add"), (NativeRunner, "__call__")],
    ids=lambda part: getattr(part, "__name__", part),
)
def test_a_call_that_is_broken_off_anywhere_leaves_the_engine_usable(
    owner: type, name: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of()
    engine = RolloutEngine(model, TOKENIZER)
    expected = said(answers(engine))
    packed = counted(monkeypatch, module, "packed_program")
    function, left = getattr(owner, name), [3]

    def failing(*args: Any, **options: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise error
        return function(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing)
        is_survived = (owner, error) == (NativeRunner, Broken)  # by computing sequences apart
        if is_survived or not native.serves():
            answers(engine)
        else:
            with pytest.raises(error):
                engine.generate(REQUESTS, max_num_seqs=4)
    assert said(answers(engine)) == expected
    assert packed == []


@here
def test_weights_that_were_taken_over_by_half_are_taken_over_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of()
    engine = RolloutEngine(model, TOKENIZER)
    answers(engine)
    in_place(model)
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "reset_prefix_cache", interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.update_weights()
    assert said(answers(engine)) == fresh(model)
    in_place(model)
    with monkeypatch.context() as patch:
        patch.setattr("ziphius.ops.native.program_builder.pack_weight", interrupt)
        with pytest.raises(KeyboardInterrupt):
            answers(engine)
    assert said(answers(engine)) == fresh(model)


def interrupt(*args: Any) -> None:
    raise KeyboardInterrupt


def test_a_verifier_that_raises_leaves_the_engine_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    add_echo(monkeypatch)
    engine = RolloutEngine(model_of(), TOKENIZER)
    asked = [echo("a"), echo("b")]
    config = RolloutConfig(num_generations=3, max_new_tokens=6)
    expected = sample_groups(engine, asked, config, seed=0)
    verdicts = iter([True, False])

    def broken(self: Echo, problem: Any, answer: str | None) -> bool:
        return next(verdicts)

    with monkeypatch.context() as patch:
        patch.setattr(Echo, "verify", broken)
        with pytest.raises(StopIteration):
            sample_groups(engine, asked, config, seed=0)
    engine.check()
    assert sample_groups(engine, asked, config, seed=0) == expected


def test_weights_that_are_not_finite_are_an_error_until_they_are() -> None:
    model = model_of()
    engine = RolloutEngine(model, TOKENIZER)
    expected = said(answers(engine))
    kept = copy.deepcopy(model.state_dict())
    model.head.weight.data[:] = torch.nan
    with pytest.raises(CheckpointError, match="not finite"):
        answers(engine)
    model.load_state_dict(kept)
    assert said(answers(engine)) == expected


def test_a_request_that_cannot_be_answered_is_refused_before_anything_runs() -> None:
    engine = RolloutEngine(model_of(), TOKENIZER)
    expected = said(answers(engine))
    with pytest.raises(ConfigError, match="prompt 1"):
        engine.generate([REQUESTS[0], Request([], 3)], max_num_seqs=4)
    engine.check()
    assert said(answers(engine)) == expected


def test_longer_requests_get_a_larger_cache_and_nothing_is_packed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of()
    engine = RolloutEngine(model, TOKENIZER)
    made = counted(monkeypatch, module, "Engine")
    packed = counted(monkeypatch, module, "packed_program")
    for length in (10, 90, 40, 90):
        asked = [Request([4] * length, 5, n) for n in range(6)]
        found = engine.generate(asked, max_num_seqs=4)
        assert said(found) == said(generate(model, asked, vocab_limit=TOKENIZER.vocab_size))
    assert len(made) == 2
    assert len(packed) == 1


def test_no_more_run_at_the_same_time_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    running = []
    step = Engine.step
    monkeypatch.setattr(
        Engine, "step", lambda self: (step(self), running.append(self.num_running))[0]
    )
    engine = RolloutEngine(model_of(), TOKENIZER)
    answers(engine, max_num_seqs=5)
    assert max(running) == 5
    # A sequence that ends makes room at once: pieces of five would take the longest of each.
    lengths = [request.max_new_tokens for request in REQUESTS]
    assert len(running) < sum(max(lengths[i : i + 5]) for i in range(0, len(lengths), 5))


@pytest.mark.parametrize("is_native", [pytest.param(True, marks=here), False])
def test_numbers_are_those_asked_for_whatever_is_around_a_call(
    is_native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_native:
        monkeypatch.setattr(native, "serves", lambda *tensors: False)
    model = model_of()
    for dtype in (torch.float32, torch.bfloat16):
        alone = said(answers(RolloutEngine(model, TOKENIZER, dtype=dtype)))
        with torch.autocast("cpu", torch.bfloat16):
            assert said(answers(RolloutEngine(model, TOKENIZER, dtype=dtype))) == alone
        assert (alone == fresh(model)) == (dtype == torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_where_modules_run_rounded_weights_are_those_of_autocast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "serves", lambda *tensors: False)
    model = model_of()
    engine = RolloutEngine(model, TOKENIZER, dtype=torch.bfloat16)
    found = said(answers(engine))
    assert "native kernels are" in str(engine.not_native)
    with rounded_weights(model, torch.bfloat16), torch.autocast("cpu", torch.bfloat16):
        assert fresh(model) == found


@here
def test_rounded_weights_run_natively_close_to_autocast() -> None:
    model = model_of()
    engine = RolloutEngine(model, TOKENIZER, dtype=torch.bfloat16)
    found = answers(engine)
    assert engine.not_native is None
    assert engine.program.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        expected = generate(model, REQUESTS, vocab_limit=TOKENIZER.vocab_size)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.logprobs[0] == pytest.approx(theirs.logprobs[0], abs=0.02)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_keeps_its_mode(training: bool) -> None:
    model = model_of().train(training)
    answers(RolloutEngine(model, TOKENIZER))
    assert {part.training for part in model.modules()} == {training}
