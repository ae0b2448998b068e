"""What a user fine-tunes and exports answers in transformers as it does here, and ends.

A tiny dense model stands for a real one; `bench/finetune.py` does the same with SmolLM2-135M.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ziphius.cli.main import main
from ziphius.models.model import Model
from ziphius.models.presets import derive, get_preset
from ziphius.models.weights import save
from ziphius.text.vocabulary import deepseek_tokenizer

ANSWERS = {"Who dives?": "Whales do.", "What for?": "For squid.", "And then?": "They rest."}
LONGEST = 24


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny Llama, and no place but this for what is kept of the data."""
    monkeypatch.setattr("ziphius.data.cache.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr("ziphius.train.instruments.matrix_peak", lambda device, dtype: 1e12)
    tokenizer = deepseek_tokenizer(512)
    model = Model(derive(get_preset("dense-1m"), vocab_size=512))
    model.initialize(0)
    save(model, tmp_path / "base", tokenizer, weight_format="float32")
    return tmp_path / "base"


def greedy(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    words = ["generate", str(folder), *ANSWERS, "--temperature", "0", "--json"]
    assert main([*words, "--max-new-tokens", str(LONGEST)]) == 0
    answers: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["answers"]
    return answers


def in_transformers(folder: Path, question: str) -> list[int]:
    """Answer as a user of transformers does; only what the folder says decides when it ends."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    ids = model.generate(**prompt, do_sample=False, max_new_tokens=LONGEST)
    return ids[0, prompt["input_ids"].shape[1] :].tolist()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("options", [(), ("--lora.rank", "8")])
def test_what_was_fine_tuned_answers_alike_in_transformers_and_ends(
    base: Path, tmp_path: Path, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "chats.jsonl"
    turns = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in ANSWERS.items()
    ]
    data.write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))
    # New weights know nothing, so they need more and larger steps than a trained model.
    more = "--seq-len 96 --hold-out 0 --epochs 80 --learning-rate 0.01 --quiet --no-tensorboard"
    line = ["sft", str(base), "--data", str(data), "--out", str(tmp_path / "run"), "--json"]
    assert main([*line, *more.split(), *options]) == 0
    checkpoint = json.loads(capsys.readouterr().out)["checkpoint"]
    exported = tmp_path / "exported"
    assert main(["export", checkpoint, str(exported), "--weight-format", "float32"]) == 0
    capsys.readouterr()
    answers = greedy(exported, capsys)
    assert [answer["text"] for answer in answers] == list(ANSWERS.values())
    assert {answer["finish_reason"] for answer in answers} == {"stop"}
    for question, answer in zip(ANSWERS, answers, strict=True):
        assert in_transformers(exported, question) == answer["token_ids"]
