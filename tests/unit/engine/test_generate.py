"""`engine/generate.py`: a batch gives what each sequence gives alone, and ends where it must."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from ziphius.core.errors import CheckpointError, ConfigError
from ziphius.engine.build import build_engine, evaluation_mode
from ziphius.engine.config import EngineConfig
from ziphius.engine.generate import Completion, Generation, Request, generate
from ziphius.models.model import Model
from ziphius.models.presets import get_preset
from ziphius.ops.logprobs import token_logprobs
from ziphius.ops.sampling_config import SamplingConfig

PROMPTS = [[5, 17, 3, 88, 41, 2, 9], [7], [300, 1, 300], [12, 13, 14, 15]]


@pytest.fixture(scope="module", params=["v3-tiny", "coder-tiny"])
def model(request) -> Model:
    model = Model(get_preset(request.param))
    model.initialize(seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)  # sharper logits, so that greedy has no near-ties
    return model


def requests(sampling: SamplingConfig, max_new_tokens: int = 12) -> list[Request]:
    return [
        Request(prompt, max_new_tokens, sequence_id=row, sampling=sampling)
        for row, prompt in enumerate(PROMPTS)
    ]


GREEDY = SamplingConfig(temperature=0.0)
SAMPLED = SamplingConfig(temperature=1.3, top_p=0.95, seed=5)


@torch.no_grad()
def greedy_without_cache(model: Model, prompt: list[int], new_tokens: int) -> list[int]:
    ids = list(prompt)
    for _ in range(new_tokens):
        hidden_BTD = model(torch.tensor([ids])).hidden_BTD
        ids.append(int(model.logits(hidden_BTD[:, -1]).argmax()))
    return ids[len(prompt) :]


def test_greedy_equals_the_argmax_of_whole_forward_passes(model):
    completions = generate(model, requests(GREEDY))
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        assert list(completion.token_ids) == greedy_without_cache(model, prompt, 12)
        assert completion.finish_reason == "length"


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_a_batch_equals_one_by_one(model, sampling):
    batch = generate(model, requests(sampling))
    for request, together in zip(requests(sampling), batch, strict=True):
        [alone] = generate(model, [request])
        assert alone.token_ids == together.token_ids
        assert alone.logprobs == pytest.approx(together.logprobs, abs=1e-5)


def test_sequences_leaving_early_do_not_disturb_the_others(model):
    ragged = [
        dataclasses.replace(request, max_new_tokens=new_tokens)
        for request, new_tokens in zip(requests(SAMPLED), (3, 12, 1, 7), strict=True)
    ]
    whole = generate(model, requests(SAMPLED))
    for request, short, full in zip(ragged, generate(model, ragged), whole, strict=True):
        assert short.token_ids == full.token_ids[: request.max_new_tokens]


def test_logprobs_are_those_of_a_forward_pass_at_the_sampling_temperature(model):
    for request, completion in zip(
        requests(SAMPLED), generate(model, requests(SAMPLED)), strict=True
    ):
        ids = torch.tensor([[*request.prompt_ids, *completion.token_ids]])
        with torch.no_grad():
            logits = model.logits(model(ids).hidden_BTD[0, len(request.prompt_ids) - 1 : -1])
        expected = token_logprobs(logits, torch.tensor(completion.token_ids), temperature=1.3)
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-5, rtol=0)


def test_sequences_of_one_prompt_differ_by_their_id_alone(model):
    sampling = SamplingConfig(temperature=5.0, seed=1)
    first, second, again = generate(
        model, [Request([5, 6], 8, sequence_id=number, sampling=sampling) for number in (0, 1, 0)]
    )
    assert first == again
    assert first.token_ids != second.token_ids


def test_a_stop_id_ends_its_sequence_and_belongs_to_it(model):
    [full] = generate(model, [Request(PROMPTS[0], 12, sequence_id=0, sampling=SAMPLED)])
    stop_id = full.token_ids[4]
    first = full.token_ids.index(stop_id)
    stopping = Request(PROMPTS[0], 12, sequence_id=0, sampling=SAMPLED, stop_ids=(stop_id,))
    other = Request(PROMPTS[3], 12, sequence_id=3, sampling=SAMPLED)
    stopped, running = generate(model, [stopping, other])
    assert stopped.token_ids == full.token_ids[: first + 1]
    assert stopped.finish_reason == "stop"
    assert len(stopped.logprobs) == first + 1
    assert running == Completion(running.token_ids, running.logprobs, "length")
    assert len(running.token_ids) == 12


@contextmanager
def steps_of(model: Model, asked: list[Request], **settings) -> Iterator[Generation]:
    with evaluation_mode(model):
        engine = build_engine(model, EngineConfig(num_blocks=64, **settings))
        with Generation(engine, asked) as steps:
            yield steps
        engine.check()
        assert not engine.has_work


def test_each_step_gives_one_token_of_every_running_sequence(model):
    with steps_of(model, requests(SAMPLED)) as steps:
        first = next(steps)
        assert sorted(token.row for token in first) == [0, 1, 2, 3]
        steps.stop(1)
        second = next(steps)
        assert sorted(token.row for token in second) == [0, 2, 3]
        rest = list(steps)
    whole = generate(model, requests(SAMPLED))
    for row in (0, 2, 3):
        streamed = [
            token.token_id for step in (first, second, *rest) for token in step if token.row == row
        ]
        assert tuple(streamed) == whole[row].token_ids
    assert rest[-1][0].finish_reason == "length"


def test_stopping_the_last_sequence_ends_the_iteration(model):
    with steps_of(model, [Request([1], 5, sequence_id=0)]) as steps:
        next(steps)
        steps.stop(0)
        assert list(steps) == []


def test_more_requests_than_seats_follow_as_others_end(model):
    asked = [Request([row, 3], 2 + row % 3, row, SAMPLED) for row in range(9)]
    with steps_of(model, asked, max_num_seqs=2) as steps:
        found = [token for step in steps for token in step]
        assert max(map(len, [found])) == sum(request.max_new_tokens for request in asked)
    for row, completion in enumerate(generate(model, asked)):
        drawn = tuple(token.token_id for token in found if token.row == row)
        assert drawn == completion.token_ids


def test_leaving_early_ends_what_runs(model):
    asked = [Request([row, 3], 9, row, SAMPLED) for row in range(9)]
    with steps_of(model, asked, max_num_seqs=4) as steps:
        next(steps)


def test_vocab_limit_is_never_passed_and_leaves_logprobs_alone(model):
    free = [Request([row], 20, sequence_id=row) for row in range(8)]
    unlimited = generate(model, free)
    assert any(max(completion.token_ids) >= 40 for completion in unlimited)
    [limited, *_] = completions = generate(model, free, vocab_limit=40)
    assert all(max(completion.token_ids) < 40 for completion in completions)
    with torch.no_grad():
        logits = model.logits(model(torch.tensor([[0]])).hidden_BTD[0])
    expected = token_logprobs(logits, torch.tensor([limited.token_ids[0]]))
    assert limited.logprobs[0] == pytest.approx(expected.item(), abs=1e-5)


def test_the_model_can_train_as_before_after_generating(model):
    model.train()
    model.model.norm.eval()
    with steps_of(model, [Request([1, 2], 2, sequence_id=0)]) as steps:
        assert not any(module.training for module in model.modules())
        next(steps)
        assert not torch.is_inference_mode_enabled()
    assert [name for name, module in model.named_modules() if not module.training] == ["model.norm"]
    model.logits(model(torch.tensor([[1, 2, 3]])).hidden_BTD).sum().backward()
    assert model.model.embed_tokens.weight.grad is not None
    model.zero_grad()


def test_an_interruption_restores_the_mode_and_a_new_generation_is_unaffected(model, monkeypatch):
    expected = generate(model, requests(SAMPLED))
    model.train()
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return Model.forward(model, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            generate(model, requests(SAMPLED))
    assert all(module.training for module in model.modules())
    assert generate(model, requests(SAMPLED)) == expected


def test_evaluation_mode_restores_after_an_error(model):
    model.train()
    with pytest.raises(ZeroDivisionError), evaluation_mode(model):
        raise ZeroDivisionError
    assert model.training


def test_the_context_can_be_filled_to_its_last_token(model):
    room = model.config.max_position_embeddings
    short = Request([1] * (room - 2), 2, sequence_id=0)
    assert len(generate(model, [short])[0].token_ids) == 2


def test_requests_that_cannot_work_say_why(model):
    room = model.config.max_position_embeddings
    cases = [
        ([], ["list of requests is empty"]),
        ([Request([], 1, sequence_id=0)], ["the prompt is empty"]),
        ([Request([1], 1, sequence_id=0), Request([2], 0, sequence_id=1)], ["prompt 1", "is 0"]),
        ([Request([1, 512], 1, sequence_id=0)], ["token 512", "0 to 511", "tokenizer"]),
        ([Request([-1], 1, sequence_id=0)], ["token -1"]),
        (
            [Request([1, 2], room - 1, sequence_id=0)],
            ["the prompt has 2 tokens", f"is {room} tokens", f"at most {room - 2}"],
        ),
        ([Request([1] * room, 1, sequence_id=0)], ["shorten the prompt"]),
    ]
    for bad, words in cases:
        with pytest.raises(ConfigError) as error:
            generate(model, bad)
        assert all(word in str(error.value) for word in words)


def test_nan_logits_are_an_error_and_not_a_token(model):
    model = Model(model.config)
    model.initialize(seed=0)
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    for sampling in (GREEDY, SAMPLED):
        with pytest.raises(CheckpointError, match=r"prompt 0.*not finite.*position 2 of seq"):
            generate(model, [Request([1, 2], 3, sequence_id=0, sampling=sampling)])


def test_equal_prompts_are_prefilled_once_and_their_sequences_part(model, monkeypatch):
    shared = [Request(PROMPTS[row // 3], 6, row, SAMPLED) for row in range(5)]
    alone = [generate(model, [request])[0] for request in shared]
    fed = []

    def counted(batch):
        fed.append(batch.paged.cu_seqlens_Z1.diff().tolist())
        return Model.forward(model, batch)

    monkeypatch.setattr(model, "forward", counted)
    together = generate(model, shared)
    assert fed[:2] == [[7, 1], [1] * 5]
    for completion, expected in zip(together, alone, strict=True):
        assert completion.token_ids == expected.token_ids
        assert completion.logprobs == pytest.approx(expected.logprobs, abs=1e-5)


def test_a_sequence_that_is_stopped_before_the_first_step_is_not_drawn(model):
    shared = [Request(PROMPTS[0], 3, row, SAMPLED) for row in range(3)]
    whole = generate(model, shared)
    with steps_of(model, shared) as steps:
        steps.stop(0)
        drawn = list(steps)
    assert [token.row for token in drawn[0]] == [1, 2]
    assert [step[0].token_id for step in drawn] == list(whole[1].token_ids)


@torch.no_grad()
def test_recorded_routes_are_those_of_a_forward_pass(model):
    ragged = [
        dataclasses.replace(r, max_new_tokens=n)
        for r, n in zip(requests(SAMPLED), (3, 6, 1, 5), strict=True)
    ]
    for request, completion in zip(
        ragged, generate(model, ragged, record_routes=True), strict=True
    ):
        ids = [*request.prompt_ids, *completion.token_ids][:-1]
        routings = model(torch.tensor([ids])).routings
        if not routings:
            assert completion.routes is None
            continue
        assert completion.routes is not None
        for layer, experts_TK in completion.routes.items():
            expected_TK = routings[layer].experts_MK
            assert torch.equal(experts_TK.long().sort().values, expected_TK.sort().values)
    assert generate(model, ragged)[0].routes is None
