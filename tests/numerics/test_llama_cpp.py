"""GGUF files that we write, run by llama.cpp: what follows each token is as likely as we say.

Needs xllamacpp (llama.cpp as a Python package), which is no dependency of ours: pip install
xllamacpp. Keys and values are kept in float32 there, so that what differs is rounding alone.
"""

import pytest
import torch

from tests.figures import seen
from tests.tiny import V2_EXPERTS, V3_EXPERTS, build, grouped_config, latent_config, random_ids
from ziphius.core.assets import fetch
from ziphius.engine.answer import chat_prompt
from ziphius.models.config import LinearScaling, Llama3Scaling, YarnScaling
from ziphius.models.sequences import Sequences
from ziphius.models.weights import load, save_gguf
from ziphius.text.chat import Message, get_chat_format
from ziphius.text.tokenizer import Tokenizer
from ziphius.text.vocabulary import deepseek_tokenizer

xllamacpp = pytest.importorskip("xllamacpp")

ROWS = 512
LETTER = 36  # a B
PLAIN_YARN = YarnScaling(factor=4.0, original_max_position_embeddings=32)
LLAMA_3 = Llama3Scaling(
    factor=8.0, original_max_position_embeddings=64, low_freq_factor=1.0, high_freq_factor=4.0
)
QWEN2 = {"model_type": "qwen2", "qkv_bias": True, "hidden_size": 48}
QWEN3 = {"model_type": "qwen3", "qk_norm": True}
V2 = {"model_type": "deepseek_v2"}
NEITHER = {"n_group": 1, "topk_group": 1, "scoring_func": "softmax", "norm_topk_prob": False}

MODELS = {
    "llama": grouped_config(vocab_size=ROWS),
    "llama tied, biases": grouped_config(
        vocab_size=ROWS, tie_word_embeddings=True, attention_bias=True
    ),
    "llama linear": grouped_config(vocab_size=ROWS, rope_scaling=LinearScaling(factor=4.0)),
    "llama 3.1": grouped_config(vocab_size=ROWS, rope_scaling=LLAMA_3, rope_theta=5e4),
    "llama yarn": grouped_config(vocab_size=ROWS, rope_scaling=PLAIN_YARN),
    "qwen2": grouped_config(vocab_size=ROWS, **QWEN2),
    "qwen3": grouped_config(vocab_size=ROWS, **QWEN3),
    "qwen3 yarn": grouped_config(
        vocab_size=ROWS, rope_scaling=PLAIN_YARN.model_copy(update={"attn_factor": 0.878}), **QWEN3
    ),
    "v3": latent_config(vocab_size=ROWS, **V3_EXPERTS),
    "v3 without groups": latent_config(vocab_size=ROWS, **V3_EXPERTS | {"topk_group": 4}),
    "v3 dense": latent_config(vocab_size=ROWS, rope_scaling=None),
    "v3 other mscale": latent_config(
        vocab_size=ROWS,
        rope_scaling=YarnScaling(
            factor=8.0, original_max_position_embeddings=32, mscale=0.707, mscale_all_dim=0.707
        ),
    ),
    "v2": latent_config(vocab_size=ROWS, **V2_EXPERTS | V2 | {"topk_group": 4}),
    "v2-lite": latent_config(
        vocab_size=ROWS,
        **V2_EXPERTS | V2 | NEITHER | {"topk_method": "greedy", "q_lora_rank": None},
    ),
    "v2-lite by its layers": latent_config(
        vocab_size=ROWS,
        **V2_EXPERTS
        | V2
        | NEITHER
        | {"topk_method": "greedy", "q_lora_rank": None, "num_hidden_layers": 27},
    ),
    "v2 normalised": latent_config(
        vocab_size=ROWS,
        **V2_EXPERTS
        | V2
        | NEITHER
        | {"topk_method": "greedy", "norm_topk_prob": True, "routed_scaling_factor": 1.0},
    ),
    "topk gate": latent_config(vocab_size=ROWS, **V3_EXPERTS | NEITHER | {"topk_method": "topk"}),
}


class LlamaCpp:
    """One model behind llama.cpp's server, which ends with the object."""

    def __init__(self, file):
        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 256, 1, False, -1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.server = xllamacpp.Server(params)

    def complete(self, prompt, **settings):
        """Return the server's one choice of a continuation."""
        request = {"prompt": prompt, "temperature": 0, "cache_prompt": False} | settings
        return self.server.handle_completions(request)["choices"][0]

    def next_logprobs(self, ids, rows):
        """Return how likely each token is after some, whatever is drawn.

        A letter is drawn, because the answer lists nothing beside an end or half a character.
        """
        drawn = {"n_predict": 1, "n_probs": rows, "logit_bias": [[LETTER, 1000.0]]}
        (answer,) = self.complete(ids, **drawn)["logprobs"]["content"]
        assert answer["id"] == LETTER
        found = {entry["id"]: entry["logprob"] for entry in answer["top_logprobs"]}
        return torch.tensor([found[i] for i in range(rows)])


@pytest.fixture(scope="module")
def fields():
    return deepseek_tokenizer(ROWS).gguf_fields(ROWS)


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_what_we_do(tmp_path, name, fields):
    model = build(MODELS[name])
    save_gguf(model, tmp_path / "model.gguf", fields, weight_format="float32")
    served = LlamaCpp(tmp_path / "model.gguf")
    for length in (1, 7, 40, 100):
        ids_BT = random_ids(1, length, ROWS, seed=length)
        with torch.inference_mode():
            ours_W = model.logits(model(ids_BT).hidden_BTD)[0, -1].log_softmax(-1)
        difference = (served.next_logprobs(ids_BT[0].tolist(), ROWS) - ours_W).abs().max()
        assert seen(f"log-probabilities in llama.cpp, {name}", difference, 1e-4)


TEXTS = (
    "The capital of France is",
    "It's 1234567 o'clock;  they've\n\n  x = [1,2]\t# done   ",
    "\u6211\u60f3\u57281314\u5de5\u4f5c \u3072\u3089 caf\u00e9 \U0001f680!? <think>",
)


@pytest.mark.parametrize("text", TEXTS)
def test_text_becomes_the_same_tokens(tmp_path, fields, text):
    model, tokenizer = build(MODELS["v3"]), deepseek_tokenizer(ROWS)
    save_gguf(model, tmp_path / "model.gguf", fields, weight_format="float32")
    served = LlamaCpp(tmp_path / "model.gguf")
    # llama.cpp makes a special token of the spelling of one, as `allow_special` does.
    ids = tokenizer.encode(text, allow_special=True)
    if tokenizer.add_bos:
        ids = [tokenizer.bos_id, *ids]
    assert torch.equal(served.next_logprobs(text, ROWS), served.next_logprobs(ids, ROWS))


@pytest.fixture(scope="module")
def smollm2():
    file = fetch("smollm2-135m-instruct")
    return load(file), Tokenizer.from_gguf(file)


@pytest.fixture
def exported(smollm2, tmp_path):
    """SmolLM2 as we write it: our model of what the file says, and llama.cpp's."""
    model, tokenizer = smollm2

    def written(weight_format):
        fields = tokenizer.gguf_fields(model.config.vocab_size)
        save_gguf(model, tmp_path / "m.gguf", fields, weight_format=weight_format)
        return load(tmp_path / "m.gguf"), LlamaCpp(tmp_path / "m.gguf")

    return written


def greedy(model, ids, count, margin=0.0):
    """Our own likeliest tokens, up to an end or one that leads the next by less than `margin`."""
    sequences = Sequences(model, 1, len(ids) + count)
    found, new_BT = [], torch.tensor([ids])
    with torch.inference_mode():
        while len(found) < count:
            logits_W = model.logits(model(sequences.rows(new_BT)).wanted_LD)[0]
            (first, second), (token, _) = logits_W.topk(2)
            if first - second < margin or token in model.config.eos_token_ids:
                break
            found.append(int(token))
            new_BT = token.view(1, 1)
    return found


# llama.cpp multiplies float16 weights by inputs that it rounds to float16: where our likeliest
# token leads by less than this (nats), it may take the next.
MARGINS = {"float32": 0.0, "float16": 0.02}


@pytest.mark.slow
@pytest.mark.net("smollm2-135m-instruct")
@pytest.mark.parametrize("weight_format", MARGINS)
def test_smollm2_goes_on_with_our_tokens(exported, smollm2, weight_format):
    model, served = exported(weight_format)
    tokenizer = smollm2[1]
    compared = 0
    for text in TEXTS:
        ids = tokenizer.encode(text, allow_special=True)
        ours = greedy(model, ids, 24, MARGINS[weight_format])
        if ours:
            answer = served.complete(text, n_predict=len(ours))
            assert answer["text"] == tokenizer.decode(ours)
        compared += len(ours)
    assert compared >= 12


@pytest.mark.slow
@pytest.mark.net("smollm2-135m-instruct")
def test_smollm2_is_asked_by_its_template_and_ends(exported, smollm2):
    model, served = exported("float32")
    tokenizer = smollm2[1]
    question = "What is 2 + 2? Answer in one word."
    messages = [{"role": "user", "content": question}]
    request = {"messages": messages, "temperature": 0, "max_tokens": 64}
    (choice,) = served.server.handle_chat_completions(request)["choices"]
    spoken = get_chat_format(tokenizer.chat_format)
    prompt = chat_prompt([Message("user", question)], tokenizer, spoken)
    ours = greedy(model, list(prompt.ids), 64)
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == tokenizer.decode(ours)


@pytest.mark.slow
@pytest.mark.net("smollm2-135m-instruct")
@pytest.mark.parametrize(
    ("weight_format", "bound"), [("bfloat16", 0.1), ("q8_0", 0.15), ("q4_0", 0.5)]
)
def test_smollm2_in_blocks_is_nearly_as_likely(exported, smollm2, weight_format, bound):
    """llama.cpp rounds what it multiplies by such weights: to bfloat16, or to eight bits."""
    model, served = exported(weight_format)
    ids = smollm2[1].encode(TEXTS[0])
    with torch.inference_mode():
        ours_W = model.logits(model(torch.tensor([ids])).hidden_BTD)[0, -1].log_softmax(-1)
    theirs_W = served.next_logprobs(ids, model.config.vocab_size)
    difference = ((ours_W - theirs_W).abs() * ours_W.exp()).sum()
    assert seen(f"log-probability of SmolLM2 in llama.cpp, {weight_format}", difference, bound)
