"""`engine/llm.py`: prompts of every form in, completions in their order out."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch

from ziphius.core.errors import ChatError, ConfigError
from ziphius.engine.config import EngineConfig
from ziphius.engine.generate import Request, generate
from ziphius.engine.llm import LLM
from ziphius.engine.load import load_preset
from ziphius.engine.processors.processor import ProcessorError
from ziphius.engine.requests import RequestMaker
from ziphius.engine.sampling_params import SamplingParams, StructuredOutputs
from ziphius.engine.speculation_config import SpeculationConfig
from ziphius.text.chat import Message


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    loaded = load_preset("v3-tiny", device=torch.device("cpu"))
    llm = LLM(loaded, EngineConfig(num_blocks=64, max_num_seqs=3))
    yield llm
    llm.close()


def test_completions_are_those_of_generate(llm):
    prompts = ["Call me Ishmael.", [5, 6, 7], [Message("user", "Hi")], "One"]
    params = SamplingParams(max_tokens=9, n=2, seed=4)
    outputs = llm.generate(prompts, params)
    assert [output.prompt_token_ids[:2] for output in outputs[1:2]] == [[5, 6]]
    for output in outputs:
        requests = [
            Request(output.prompt_token_ids, 9, n, params, llm.tokenizer.eos_ids) for n in (0, 1)
        ]
        limit = llm.tokenizer.vocab_size
        for found, wanted in zip(
            output.outputs, generate(llm.loaded.model, requests, vocab_limit=limit), strict=True
        ):
            assert tuple(found.token_ids) == wanted.token_ids
            assert found.logprobs == pytest.approx(wanted.logprobs, abs=1e-5)
            assert found.text == llm.tokenizer.decode(found.token_ids)
            assert found.finish_reason == wanted.finish_reason
    llm.engine.check()


def test_a_single_prompt_and_params_of_its_own(llm):
    [output] = llm.generate("Whale", SamplingParams(max_tokens=2))
    assert len(output.outputs[0].token_ids) == 2
    first, second = llm.generate(
        [[1], [2]], [SamplingParams(max_tokens=1), SamplingParams(max_tokens=3)]
    )
    assert len(first.outputs[0].token_ids) == 1
    assert len(second.outputs[0].token_ids) == 3


def test_equal_prompts_are_answered_apart_as_samples_of_one_are(llm):
    params = SamplingParams(max_tokens=6)
    answers = [o.outputs[0].token_ids for o in llm.generate(["Whale", "Seal", "Whale"], params)]
    [samples] = llm.generate("Whale", SamplingParams(max_tokens=6, n=2))
    assert [answers[0], answers[2]] == [one.token_ids for one in samples.outputs]
    assert answers[0] != answers[2]
    [alone] = llm.generate("Whale", params)
    assert alone.outputs[0].token_ids == answers[0]
    seeded = SamplingParams(max_tokens=6, seed=0)
    own = [one.outputs[0].token_ids for one in llm.generate(["Whale"] * 2, [params, seeded])]
    assert own == [answers[0]] * 2


def test_best_of_keeps_the_likeliest(llm):
    params = SamplingParams(max_tokens=5, n=2, best_of=6, seed=1)
    [kept] = llm.generate([[3, 4]], params)
    [every] = llm.generate([[3, 4]], SamplingParams(max_tokens=5, n=6, seed=1))
    means = [sum(one.logprobs) / len(one.logprobs) for one in every.outputs]
    best = sorted(range(6), key=lambda index: -means[index])[:2]
    assert [one.index for one in kept.outputs] == best


def test_a_stop_string_counts_after_min_tokens_alone(llm):
    [plain] = llm.generate([[7]], SamplingParams(max_tokens=30, seed=2))
    text = plain.outputs[0].text
    stop = text[2:4]
    [stopped] = llm.generate([[7]], SamplingParams(max_tokens=30, seed=2, stop=(stop,)))
    assert stopped.outputs[0].text == text[: text.index(stop)]
    assert stopped.outputs[0].finish_reason == "stop"
    params = SamplingParams(max_tokens=30, seed=2, stop=(stop,), min_tokens=20)
    [later] = llm.generate([[7]], params)
    assert len(later.outputs[0].token_ids) >= 20


def test_scores_are_the_logprobs_of_a_forward_pass_whatever_the_chunks(llm):
    ids = [5, 17, 3, 88, 41, 2, 9, 9, 9]
    model = llm.loaded.model
    with torch.no_grad():
        logprobs = model.logits(model(torch.tensor([ids])).hidden_BTD)[0].log_softmax(-1)
    expected = [float(logprobs[place, token]) for place, token in enumerate(ids[1:])]
    engines = [
        llm,
        LLM(llm.loaded, EngineConfig(num_blocks=64, max_num_seqs=3, max_prefill_chunk=2)),
    ]
    for one in engines:
        [scores, _] = one.score([ids, [1, 2]], logprobs=3)
        assert [score.logprob for score in scores] == pytest.approx(expected, abs=1e-4)
        for score, row in zip(scores, logprobs, strict=False):
            assert list(score.top.ids) == row.topk(3).indices.tolist()
        [output] = one.generate([ids], SamplingParams(max_tokens=2, prompt_logprobs=0))
        assert [s.logprob for s in output.prompt_scores] == [score.logprob for score in scores]
        assert output.prompt_scores[0].top.ids == ()


def test_no_prompts_have_no_answers(llm):
    assert llm.generate([]) == []
    assert llm.score([]) == []


def test_ids_may_come_from_arrays_and_tensors(llm):
    params = SamplingParams(max_tokens=3)
    expected = llm.generate([5, 6, 7], params)
    ids = [np.array([5, 6, 7]), torch.tensor([5, 6, 7]), [np.int32(5), np.int32(6), np.int32(7)]]
    for one in ids:
        assert llm.generate(one, params) == expected
        assert llm.generate([one], params) == expected
    for wrong in (np.array([5.0]), [torch.tensor(5)], iter([5]), {"role": "user"}, [None]):
        with pytest.raises(ConfigError, match=r"a prompt is a text|prompts are a sequence"):
            llm.generate(wrong, params)


def test_dicts_are_messages(llm):
    params = SamplingParams(max_tokens=3)
    said = {"role": "user", "content": "Hi"}
    expected = llm.generate([Message("user", "Hi")], params)
    assert llm.generate([said], params) == expected
    assert llm.generate([[said]], params) == expected
    with pytest.raises(ChatError, match=r"prompt 1: .*role"):
        llm.generate([[said], [{"content": "Hi"}]], params)


@pytest.mark.parametrize(
    "setting",
    [{"bad_words": ((5, 2**30),)}, {"stop_token_ids": (2**30,)}, {"logit_bias": {2**30: 1.0}}],
)
def test_settings_name_tokens_that_there_are(llm, setting):
    words = rf"prompt 0: {next(iter(setting))} names token 1073741824, but the ids are 0 to "
    with pytest.raises(ConfigError, match=words):
        llm.generate("a", SamplingParams(**setting))
    with pytest.raises(ConfigError, match=r"holds token -1, but the model knows 0 to \d+: give"):
        llm.generate([-1, 2])


def test_a_smaller_model_guesses(llm):
    config = EngineConfig(num_blocks=64, speculation=SpeculationConfig(method="model"))
    params = SamplingParams(max_tokens=8, temperature=0)
    with LLM(llm.loaded, config, draft_model="v3-tiny") as guessing:
        [found] = guessing.generate([[5, 6, 7]], params)
        assert guessing.engine.metrics()["spec_decode_num_accepted_tokens"] > 0
    [plain] = llm.generate([[5, 6, 7]], params)
    assert found.outputs[0].token_ids == plain.outputs[0].token_ids


def test_what_cannot_work_says_why(llm):
    cases = [
        (["a", "b"], [SamplingParams()], "2 prompts and 1 params"),
        ("a", SamplingParams(max_tokens=0, prompt_logprobs=0), "max_tokens is 0"),
        ("a", SamplingParams(thinking_token_budget=3), "thinking_token_budget has no effect"),
    ]
    for prompts, params, words in cases:
        with pytest.raises(ConfigError, match=words):
            llm.generate(prompts, params)
    with pytest.raises(ConfigError, match="loaded already"):
        LLM(llm.loaded, device="cpu")


@pytest.mark.parametrize("ask", [LLM.generate, LLM.score])
def test_a_prompt_that_cannot_work_is_named_before_anything_is_computed(llm, ask):
    steps = llm.engine.metrics()["num_steps"]
    with pytest.raises(ConfigError, match=r"prompt 7: .*context"):
        ask(llm, [[5, 6]] * 7 + [[5] * 100_000])
    assert llm.engine.metrics()["num_steps"] == steps
    llm.engine.check()


def test_prompts_are_scored_together(llm):
    prompts = [[place, 5, 6] for place in range(20, 23)]
    steps = llm.engine.metrics()["num_steps"]
    together = llm.score(prompts, logprobs=2)
    assert llm.engine.metrics()["num_steps"] == steps + 1
    for prompt, found in zip(prompts, together, strict=True):
        [alone] = llm.score([prompt], logprobs=2)
        assert [s.logprob for s in found] == pytest.approx([s.logprob for s in alone], abs=1e-5)


@pytest.mark.parametrize("logprobs", [-1, 21, 10**9])
def test_scores_have_a_number_of_alternatives(llm, logprobs):
    with pytest.raises(ConfigError, match=r"logprobs is -?[0-9]+; it must be from 0 to 20"):
        llm.score([[1, 2]], logprobs)


def test_the_likeliest_tokens_are_returned_beside_greedy_ones(llm):
    [output] = llm.generate([[3, 4, 5]], SamplingParams(max_tokens=4, temperature=0, logprobs=3))
    [completion] = output.outputs
    assert [len(top.ids) for top in completion.top_logprobs] == [3] * 4
    for token_id, logprob, top in zip(
        completion.token_ids, completion.logprobs, completion.top_logprobs, strict=True
    ):
        assert top.ids[0] == token_id
        assert top.logprobs[0] == logprob
    [plain] = llm.generate([[3, 4, 5]], SamplingParams(max_tokens=4))
    assert plain.outputs[0].top_logprobs == []


class GivesUp:
    """A processor that fails at the third token."""

    def __call__(self, logits_W, token_ids):
        if len(token_ids) == 2:
            raise ProcessorError("no token is left")

    def accept(self, token_id):
        return None

    def rollback(self, count):
        """Nothing is kept."""


def test_what_goes_wrong_with_one_completion_is_told_there_alone(llm, monkeypatch):
    prompts = [[5, 6], [7, 8], [9]]
    params = SamplingParams(max_tokens=5, seed=1)
    expected = llm.generate(prompts, params)
    chosen = iter([[], [GivesUp()], []])
    monkeypatch.setattr(
        RequestMaker, "_processors", lambda self, *given: partial(list, next(chosen))
    )
    first, wrong, last = (output.outputs[0] for output in llm.generate(prompts, params))
    assert wrong.finish_reason == "error"
    assert "no token is left" in wrong.error
    assert wrong.token_ids == expected[1].outputs[0].token_ids[:2]
    assert len(wrong.logprobs) == 2
    assert [first, last] == [expected[0].outputs[0], expected[2].outputs[0]]
    llm.engine.check()


def test_a_thinker_spends_its_budget_and_then_keeps_to_the_grammar(llm):
    pytest.importorskip("llguidance")
    params = SamplingParams(
        max_tokens=40,
        seed=3,
        thinking_token_budget=3,
        structured_outputs=StructuredOutputs(choice=("whale", "seal")),
    )
    [output] = llm.generate([[Message("user", "Which?")]], params)
    [completion] = output.outputs
    end = llm.tokenizer.token_id("</think>")
    assert completion.token_ids.index(end) == 3
    assert completion.text.split("</think>")[1] in ("whale", "seal")
    assert completion.finish_reason == "stop"
    assert "grammar" in completion.stop_reason


def test_a_grammar_that_is_none_is_refused_before_anything_runs(llm):
    pytest.importorskip("llguidance")
    params = SamplingParams(structured_outputs=StructuredOutputs(regex="("))
    with pytest.raises(ConfigError, match=r"regex|parse|grammar"):
        llm.generate("a", params)
    llm.engine.check()
