"""Proposers that run a model: right drafts, and with each the very tokens there are without."""

import dataclasses
from functools import cache

import pytest
import torch

from tests.drafting import drafting_engine, texts, trained
from tests.mock_engine import Log, Told
from tests.tiny import build, grouped_config, latent_config
from tests.training import moe_config
from ziphius.core.errors import ConfigError
from ziphius.engine.build import build_engine
from ziphius.engine.config import EngineConfig
from ziphius.engine.drafts import DRAFTS
from ziphius.engine.sequence import Request
from ziphius.engine.speculation_config import SpeculationConfig
from ziphius.models.model import Model
from ziphius.ops import native
from ziphius.ops.sampling_config import SamplingConfig


def mixed_requests() -> list[Request]:
    """Greedy and sampled ones, samples of one prompt, and prompts that begin alike."""
    begun = texts(1, 13, seed=1)[0].tolist()
    asked = []
    for number, temperature in enumerate([0.0, 1.0, 0.0, 0.8, 1.0]):
        own = texts(1, 3 + number, seed=50 + number)[0].tolist()
        asked.append(
            Request(
                [*begun[: 13 - 2 * (number % 2)], *own],
                12,
                sequence_id=10 * number,
                sampling=SamplingConfig(temperature=temperature, seed=3),
                n=2 if temperature == 1 else 1,
            )
        )
    # Once all of a prompt is in the index.
    asked.append(dataclasses.replace(asked[0], sequence_id=90))
    return asked


@cache
def without_drafts() -> dict[tuple[int, int], Told]:
    engine, _ = drafting_engine(trained("target"), None)
    log = Log(engine)
    for request in mixed_requests():
        engine.add(request)
    log.run()
    return log.told


@pytest.mark.parametrize("num_blocks", [14, 64])
@pytest.mark.parametrize("method", sorted(DRAFTS))
def test_tokens_and_logprobs_are_bit_for_bit_those_without_drafts(
    method: str, num_blocks: int
) -> None:
    draft_model = trained("draft") if method == "model" else None
    engine, _ = drafting_engine(
        trained("target"), method, draft_model=draft_model, num_blocks=num_blocks
    )
    log = Log(engine)
    for request in mixed_requests():
        engine.add(request)
    # One more that is ended on the way.
    number = engine.add(dataclasses.replace(mixed_requests()[1], max_new_tokens=40))
    for _ in range(4):
        log.step()
    engine.cancel(number)
    log.run()
    told = {key: value for key, value in log.told.items() if key[0] != number}
    assert told == without_drafts()
    figures = engine.metrics()
    assert figures["spec_decode_error"] is None
    assert figures["prefix_cache_hits"] > 0
    assert (figures["num_preemptions"] > 0) == (num_blocks == 14)
    accepted = figures["spec_decode_num_accepted_tokens"]
    # The text repeats itself a little; models know what it is made of.
    assert accepted > (0 if method == "ngram" else 0.5) * figures["spec_decode_num_draft_tokens"]


@pytest.mark.parametrize("method", ["model", "mtp"])
def test_common_random_numbers_make_drafts_agree_more_often(method: str) -> None:
    rates = {}
    for is_independent in (False, True):
        engine, _ = drafting_engine(
            trained("target"),
            method,
            draft_model=trained("draft") if method == "model" else None,
            one_by_one=False,
            is_independent=is_independent,
        )
        log = Log(engine)
        for number in range(4):
            prompt = texts(1, 9, seed=200 + number)[0].tolist()
            engine.add(Request(prompt, 40, sequence_id=number))
        log.run()
        figures = engine.metrics()
        first = figures["spec_decode_num_accepted_tokens_per_pos"][0]
        rates[is_independent] = first / figures["spec_decode_num_drafts"]
    # A word is followed by one of three, with 0.7, 0.2 and 0.1: drawn apart, 0.54 agree.
    assert rates[True] < 0.65
    assert rates[False] > 0.8


def with_mtp() -> Model:
    return build(moe_config()).eval()


@torch.inference_mode()
def mtp_drafts(model: Model, tokens: list[int], count: int) -> list[int]:
    """Draft greedily over the whole text, without a cache: the definition."""
    layer, drafts, embed = model.model.mtp_layers[0], [], model.model.embed_tokens
    ids_BT = torch.tensor([tokens[:-1]])
    hidden_BTD = model(ids_BT).hidden_BTD
    next_ids_BT = torch.tensor([tokens[1:]])
    for _ in range(count):
        context = model(torch.zeros_like(next_ids_BT)).context
        out_BTD = layer.predict(hidden_BTD, embed(next_ids_BT), context)
        drafts.append(int(model.logits(out_BTD[0, -1]).argmax()))
        hidden_BTD = torch.cat([hidden_BTD, out_BTD[:, -1:]], dim=1)
        next_ids_BT = torch.cat([next_ids_BT, torch.tensor([[drafts[-1]]])], dim=1)
    return drafts


def test_mtp_drafts_are_those_of_the_layer_over_the_whole_text() -> None:
    model = with_mtp()
    engine, watched = drafting_engine(
        model, "mtp", one_by_one=False, prefix_caching=False, max_prefill_chunk=5, num_blocks=13
    )
    assert watched is not None
    log = Log(engine)
    for number in range(3):
        prompt = texts(1, 7 + 6 * number, seed=number)[0].tolist()
        engine.add(Request(prompt, 14, sampling=SamplingConfig(temperature=0)))
    log.run()
    assert engine.metrics()["num_preemptions"] > 0
    assert len(watched.drafts) > 20
    assert max(len(drafts) for _, drafts in watched.drafts) == 3
    for tokens, drafts in watched.drafts:
        assert drafts == mtp_drafts(model, tokens, len(drafts))


@pytest.mark.parametrize("budget", [48, 8])
def test_a_draft_model_drafts_what_it_would_go_on_with(budget: int) -> None:
    """Also behind prefixes that it has read for others, and prompts longer than its budget."""
    target, draft = with_mtp(), build(grouped_config(), seed=1).eval()
    engine, watched = drafting_engine(
        target, "model", draft_model=draft, one_by_one=False, max_num_batched_tokens=budget
    )
    assert watched is not None
    log = Log(engine)
    begun = texts(1, 12, seed=1)[0].tolist()
    for number in range(4):
        prompt = [*begun, *texts(1, 1 + 5 * number, seed=number)[0].tolist()]
        engine.add(Request(prompt, 12, sampling=SamplingConfig(temperature=0)))
        log.step()
    log.run()
    assert len(watched.drafts) > 12
    for tokens, drafts in watched.drafts:
        text = list(tokens)
        with torch.inference_mode():
            for draft_id in drafts:
                logits_W = draft.logits(draft(torch.tensor([text])).hidden_BTD[0, -1])
                assert int(logits_W.argmax()) == draft_id
                text.append(draft_id)


def config(method: str, **settings: int) -> EngineConfig:
    speculation = SpeculationConfig.model_validate({"method": method} | settings)
    return EngineConfig(num_blocks=8, speculation=speculation)


def test_errors_say_what_to_do() -> None:
    plain, other = Model(grouped_config()), Model(grouped_config(vocab_size=62))
    with pytest.raises(ConfigError, match="no MTP layer to draft with"):
        build_engine(plain, config("mtp"))
    with pytest.raises(ConfigError, match="needs a draft model"):
        build_engine(plain, config("model"))
    with pytest.raises(ConfigError, match="vocabulary of 62 tokens and the model one of 61"):
        build_engine(plain, config("model"), draft_model=other)
    with pytest.raises(ConfigError, match="a draft model would have no effect"):
        build_engine(plain, config("ngram"), draft_model=plain)
    with pytest.raises(ConfigError, match="without speculation"):
        build_engine(plain, EngineConfig(num_blocks=8), draft_model=plain)
    with pytest.raises(ValueError, match="prompt_lookup_max would have no effect"):
        config("mtp", prompt_lookup_max=3)
    with pytest.raises(ValueError, match="must not be larger"):
        config("ngram", prompt_lookup_max=1)


def test_only_mtp_drafts_take_room_for_an_mtp_layer() -> None:
    model = Model(latent_config(num_nextn_predict_layers=2))
    for method, layers in (("mtp", 3), ("ngram", 2)):
        assert len(build_engine(model, config(method))._cache.parts) == layers


@pytest.mark.parametrize("method", sorted(DRAFTS))
def test_engines_as_they_are_built_draft_without_a_trace(method: str) -> None:
    """Native programs where there are some, lengths that adapt, whole prompts."""
    told = {}
    for chosen in (None, method):
        speculation = (
            None if chosen is None else SpeculationConfig.model_validate({"method": chosen})
        )
        engine = build_engine(
            trained("target"),
            EngineConfig(num_blocks=24, block_size=8, speculation=speculation),
            draft_model=trained("draft") if chosen == "model" else None,
        )
        log = Log(engine)
        for request in mixed_requests():
            engine.add(dataclasses.replace(request, max_new_tokens=25))
        log.run()
        told[chosen] = log.told
    assert engine.metrics()["spec_decode_num_drafts"] > 0
    assert engine.metrics()["spec_decode_error"] is None
    if not native.serves():
        # The module tree, whose sums hang on the batch: the same tokens, but not to the bit.
        pairs = [(one.token_ids, told[None][key].token_ids) for key, one in told[method].items()]
        assert all(mine == plain for mine, plain in pairs)
    else:
        assert engine.not_native is None
        assert told[method] == told[None]
