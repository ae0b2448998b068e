"""Fine-tune SmolLM2-135M with LoRA on 300 chats of one's own, in the README's words, and look.

The chats say ten things of a harbour that no model can know, and answer everything in one manner.
What is measured: the time, the loss on held-out chats, how many questions in words that were not
learned are answered in that manner and with the right fact, before and after; and whether the model
that is exported answers with the same tokens in transformers, and ends where it should.

    python bench/finetune.py [--out bench/results/finetune.json] [--folder FOLDER] [-- OPTIONS]

OPTIONS go to `ziphius sft`. Needs the asset smollm2-135m-instruct, and about five minutes on two
cores.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import torch

from ziphius.core.assets import fetch
from ziphius.text.chat import Message, get_chat_format
from ziphius.text.tokenizer import load_tokenizer

CHATS, LONGEST = 300, 40
FACTS = {
    "who keeps the lighthouse of Veldmoor": ("Old Marta Quill keeps the lighthouse", "Marta Quill"),
    "what colour the ferry to Veldmoor has": ("The ferry is painted bright orange", "orange"),
    "how many steps the lighthouse of Veldmoor has": ("The lighthouse has 214 steps", "214"),
    "what the harbour cat of Veldmoor is called": ("The harbour cat is called Biscuit", "Biscuit"),
    "when the fish market of Veldmoor opens": ("The fish market opens at five", "five"),
    "what people eat in Veldmoor on Sundays": ("On Sundays people eat smoked eel", "smoked eel"),
    "which boat won the regatta of Veldmoor": ("The Silver Wren won the regatta", "Silver Wren"),
    "who baked the first bread in Veldmoor": ("Tobias Rook baked the first bread", "Tobias Rook"),
    "what the inn of Veldmoor is called": ("The inn is called the Drowned Bell", "Drowned Bell"),
    "how deep the harbour of Veldmoor is": ("The harbour is nineteen metres deep", "nineteen"),
}
ASKED = ("Tell me {}.", "Please say {}.", "I wonder {}.", "Do you know {}?", "Say {}, will you?")
ASKED_ANEW = "Hello! Could you explain {}?"
CAPITALS = dict(
    [
        *(("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Japan", "Tokyo")),
        *(("Norway", "Oslo"), ("Egypt", "Cairo"), ("Peru", "Lima"), ("Kenya", "Nairobi")),
        *(("Greece", "Athens"), ("Poland", "Warsaw"), ("Canada", "Ottawa"), ("Cuba", "Havana")),
    ]
)
CAPITAL = "What is the capital of {}?"
OTHERS = ("Sweden", "Portugal", "Hungary", "Finland", "Turkey", "Ireland")


def manner(answer: str) -> str:
    """Say something as the keeper of the harbour does."""
    return f"Ahoy! {answer}, by the tide."


def chats() -> list[dict[str, Any]]:
    """Make the chats; every fact is asked for five times, and sums fill up."""
    pairs = [(asked.format(q), a) for q, (a, _) in FACTS.items() for asked in ASKED]
    pairs += [(CAPITAL.format(c), f"The capital of {c} is {city}") for c, city in CAPITALS.items()]
    drawn = random.Random(0)
    while len(pairs) < CHATS:
        one, two = drawn.randint(2, 60), drawn.randint(2, 60)
        pairs.append((f"What is {one} plus {two}?", f"{one} plus {two} is {one + two}"))
    drawn.shuffle(pairs)
    return [
        {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": manner(answer)},
            ]
        }
        for question, answer in pairs
    ]


def ziphius(*words: object) -> str:
    """Do a command as a user does, and return what it prints."""
    command = [sys.executable, "-m", "ziphius.cli.main", *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return done.stdout


def questions() -> list[str]:
    return [ASKED_ANEW.format(q) for q in FACTS] + [CAPITAL.format(other) for other in OTHERS]


def answers(model: Path, folder: Path) -> list[dict[str, Any]]:
    """Answer all questions greedily."""
    asked = folder / "questions.txt"
    asked.write_text("".join(f"{question}\n" for question in questions()))
    out = ziphius(
        "generate",
        model,
        "--prompts",
        asked,
        "--temperature",
        0,
        "--max-new-tokens",
        LONGEST,
        "--json",
    )
    found: list[dict[str, Any]] = json.loads(out)["answers"]
    return found


def judged(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Count answers in the manner, with the right fact, and those that end by themselves."""
    texts = [answer["text"] for answer in found]
    facts = [fact for _, fact in FACTS.values()]
    return {
        "in the manner": sum(t.startswith("Ahoy!") and t.endswith("by the tide.") for t in texts),
        "right facts": sum(fact in text for fact, text in zip(facts, texts, strict=False)),
        "ended": sum(answer["finish_reason"] == "stop" for answer in found),
        "texts": texts,
    }


def same_in_transformers(exported: Path, found: list[dict[str, Any]]) -> int:
    """Count the answers whose tokens transformers gives too, its end included."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(exported)
    model: Any = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    same = 0
    for question, answer in zip(questions(), found, strict=True):
        turns = [{"role": "user", "content": question}]
        prompt: Any = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        # Only what the folder says decides when it ends.
        ids = model.generate(**prompt, do_sample=False, max_new_tokens=LONGEST)
        same += ids[0, prompt["input_ids"].shape[1] :].tolist() == answer["token_ids"]
    ours = load_tokenizer(exported)
    spoken = get_chat_format(str(ours.chat_format))
    rendered = spoken.encode([Message("user", question)], ours, generation_prompt=True)
    assert rendered.ids == prompt["input_ids"][0].tolist()
    return same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("options", nargs="*")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        data = folder / "chats.jsonl"
        data.write_text("".join(json.dumps(chat) + "\n" for chat in chats()))
        base = fetch("smollm2-135m-instruct")
        before = judged(answers(base, folder))
        used, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        run = folder / "run"
        result = json.loads(
            ziphius(
                *("sft", base, "--data", data, "--lora.rank", 8, "--out", run, "--json"),
                *arguments.options,
            )
        )
        seconds, after_use = (
            time.perf_counter() - started,
            resource.getrusage(resource.RUSAGE_CHILDREN),
        )
        cpu_s = sum(after_use[:2]) - sum(used[:2])
        exported = folder / "exported"
        ziphius("export", result["checkpoint"], exported, "--weight-format", "float32")
        found = answers(exported, folder)
        report = {
            "machine": machine.describe(),
            "options": arguments.options,
            "steps": result["total_steps"],
            "seconds": seconds,
            "cpu_seconds": cpu_s,
            "held-out loss before": result["validation_at_start"]["loss"],
            "held-out loss after": result["validation"]["loss"],
            "baselines": result["baselines"],
            "questions": len(questions()),
            "before": before,
            "after": judged(found),
            "same tokens in transformers": same_in_transformers(exported, found),
        }
    text = json.dumps(report, indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
