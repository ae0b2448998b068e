"""Peak memory of using a large bfloat16 folder, beside what `ziphius inspect` says of it.

A model of Qwen2.5-1.5B's shape with random weights is written to a folder. Then three fresh
processes load it, let it answer, and train adapters on it, checkpoint included, in the numbers that
`auto` chooses. What counts is the largest resident memory less what the process held after its
imports; and no more of the model may be float32 than the adapters.

    python bench/large_folder.py [--small] [--out bench/results/large_folder.json]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal, get_args

import machine
import torch
from memory import resident_bytes

from ziphius.data.batch import Batch
from ziphius.engine.generate import Request, generate
from ziphius.engine.load import load_for_inference
from ziphius.models.adapter_cost import adapter_memory
from ziphius.models.config import ModelConfig
from ziphius.models.cost import Dtype, model_cost
from ziphius.models.lora_config import LoraConfig
from ziphius.models.model import Model
from ziphius.models.presets import derive, get_preset
from ziphius.models.weights import read_model_config, save
from ziphius.models.weights.names import model_tensors
from ziphius.ops import native
from ziphius.text.vocabulary import FULL_SIZE, deepseek_tokenizer
from ziphius.train.finetuning import run_sft
from ziphius.train.settings import SftSettings, SftTraining
from ziphius.train.stage import LossOutput
from ziphius.train.stages.sft import Sft

SEQ_LEN, PROMPT, ANSWER, RANK, STEPS = 512, 256, 16, 16, 2
LARGE = {"tie_word_embeddings": True}
"""Of R1's distilled Qwen of 1.5B, which has a head of its own."""
SMALL = LARGE | {
    "num_hidden_layers": 2,
    "vocab_size": 32_768,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
Asked = Literal["auto", "bfloat16"]
DTYPES: dict[torch.dtype, Dtype] = {torch.bfloat16: "bfloat16", torch.float32: "float32"}


def write_folder(folder: Path, config: ModelConfig) -> None:
    """Write random weights; not a number of them is float32 on the way."""
    with torch.device("meta"):
        model = Model(config)
    model.to(torch.bfloat16).to_empty(device="cpu").tie_weights()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, config.initializer_range, generator=generator)
            else:
                parameter.fill_(1.0)
    cut = deepseek_tokenizer(config.vocab_size if config.vocab_size < FULL_SIZE else None)
    save(model, folder, cut.with_chat_format("deepseek-r1"), max_shard_bytes=500_000_000)


def write_chats(path: Path) -> None:
    """Write conversations of about a row."""
    numbers = " ".join(map(str, range(240)))
    chat = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": numbers}]
    path.write_text(STEPS * (json.dumps({"messages": chat}) + "\n"))


def run_load(folder: Path, dtype: Asked) -> Model:
    """Load the model as `ziphius generate` does."""
    return load_for_inference(str(folder), dtype=dtype).model


def run_generate(folder: Path, dtype: Asked) -> Model:
    """Load it and let it write a few tokens."""
    model = run_load(folder, dtype)
    prompt = [index % 1_000 for index in range(PROMPT)]
    [completion] = generate(model, [Request(prompt, max_new_tokens=ANSWER, sequence_id=0)])
    assert completion.token_ids
    return model


def run_lora(folder: Path, dtype: Asked) -> Model:
    """Train adapters for a few steps as `ziphius sft` does."""
    trained: list[Model] = []

    class SeenSft(Sft):
        def loss(self, model: Model, batch: Batch, progress: float) -> LossOutput:
            trained[:] = [model]
            return super().loss(model, batch, progress)

    chats, out = folder.with_name("chats.jsonl"), folder.with_name("run")
    write_chats(chats)
    training = SftTraining(seq_len=SEQ_LEN, global_batch_size=1, validate_every=0, dtype=dtype)
    settings = SftSettings(
        model=folder,
        data=(chats,),
        epochs=1,
        hold_out=0,
        lora=LoraConfig(rank=RANK),
        train=training,
    )
    run_sft(settings, out, stage=SeenSft)
    return trained[0]


ARMS = {"load": run_load, "generate": run_generate, "lora": run_lora}


def measure(arm: str, folder: Path, dtype: Asked) -> dict[str, Any]:
    """Do one thing in this process and return what it took, in bytes."""
    native.status()  # compiles its kernels, once per machine
    before = resident_bytes("VmRSS")
    model = ARMS[arm](folder, dtype)
    peak = resident_bytes("VmHWM") - before
    word = DTYPES[model.model.embed_tokens.weight.dtype]
    config = read_model_config(folder)
    serving = model_cost(config, context=PROMPT + ANSWER, dtype=word).memory
    said = {
        "load": serving.weights,
        "generate": serving.serve + serving.packed,
        "lora": adapter_memory(config, tokens=SEQ_LEN, dtype=word, rank=RANK).train,
    }[arm]
    wide = [tensor for tensor in model_tensors(model).values() if tensor.dtype == torch.float32]
    result = {
        "dtype": word,
        "peak": peak,
        "inspect": said,
        "ratio": round(peak / said, 3),
        "float32_numbers": sum(tensor.numel() for tensor in wide),
        "numbers": sum(tensor.numel() for tensor in model_tensors(model).values()),
    }
    checkpoints = folder.with_name("run") / "checkpoints"
    if arm == "lora":
        sizes = [path.stat().st_size for path in checkpoints.rglob("*") if path.is_file()]
        result["checkpoints"] = sum(sizes)
    return result


def main() -> None:
    """Write the folder and measure every arm, or be one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arm", nargs=2, metavar=("ARM", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--small", action="store_true", help="two layers instead of 28")
    parser.add_argument("--dtype", choices=get_args(Asked), default="auto")
    parser.add_argument("--out", type=Path, default=Path("bench/results/large_folder.json"))
    options = parser.parse_args()
    config = derive(get_preset("r1-distill-qwen-1.5b"), **(SMALL if options.small else LARGE))
    if options.arm:
        arm, folder = options.arm
        print(json.dumps(measure(arm, Path(folder), options.dtype)))
        return
    if options.write:
        write_folder(options.write, config)
        return
    arms = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        _call("--write", str(folder), *["--small"] * options.small)
        for arm in ARMS:
            said = _call("--arm", arm, str(folder), "--dtype", options.dtype)
            row = arms[arm] = json.loads(said.splitlines()[-1])
            mebibytes = (f"{row[key] / 2**20:8,.0f} MiB" for key in ("peak", "inspect"))
            print(f"{arm:9} {' of '.join(mebibytes)}  {row['ratio']:.2f}", flush=True)
    document = {
        "machine": machine.describe(),
        "shape": {"prompt": PROMPT, "answer": ANSWER, "seq_len": SEQ_LEN, "rank": RANK},
        "model": config.model_dump(mode="json", exclude_defaults=True),
        "arms": arms,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1) + "\n")


def _call(*arguments: str) -> str:
    """Run this script in a fresh process; what it prints."""
    # One arena: with several, the C library keeps freed memory in each.
    command = [sys.executable, __file__, *arguments]
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment
    ).stdout


if __name__ == "__main__":
    main()
