"""`ziphius sft`: teach a model conversations."""

from pathlib import Path
from typing import Annotated

import tyro
from pydantic import Field

from ziphius.cli.training import RunOptions, run_training
from ziphius.train.budget import BudgetText
from ziphius.train.config import Dtype
from ziphius.train.settings import DEFAULT_BUDGET, SftSettings, SftTraining

_Bare = tyro.conf.arg(prefix_name=False)


class SftOptions(SftTraining):
    """How to train, with the options of every day by their bare names."""

    budget: Annotated[BudgetText, _Bare] = DEFAULT_BUDGET
    """How long, with --epochs 0: a time (90s, 10m), tokens or steps."""
    learning_rate: Annotated[Annotated[float, Field(gt=0)] | None, _Bare] = None
    """Peak learning rate; by default a tenth of what a new model of the size bears (5.8e-5 at 135M,
    6e-6 at 37B), and ten times that for adapters."""
    seq_len: Annotated[int, Field(ge=2), _Bare] = 512
    """Sequence length: tokens of a row, which holds several conversations."""
    seed: Annotated[int, Field(ge=0, lt=2**63), _Bare] = 0
    """Decides the order of the conversations and the first adapters."""
    device: Annotated[str, _Bare] = "auto"
    """auto (an accelerator if there is one), cpu, cuda, cuda:1, ..."""
    dtype: Annotated[Dtype, _Bare] = "auto"
    """Data type of matrix products; bfloat16 is autocast over float32 weights. auto takes it on
    accelerators, and on a CPU with units for it where the model is stored in it."""


class SftConfig(SftSettings, RunOptions):
    """What `ziphius sft` needs to know."""

    model: tyro.conf.Positional[Annotated[Path | None, tyro.conf.arg(metavar="MODEL")]] = None
    """Model folder or .gguf file to teach, with its tokenizer."""
    train: SftOptions = SftOptions()
    """How to train."""


def sft(config: SftConfig) -> None:
    """Teach a model to answer: the loss counts what assistants wrote, and nothing else.

    Rows hold several conversations that never see each other. Several processes share the work when
    torchrun starts them. Ctrl-C ends the run after its step and saves; the same command, or
    --resume, continues it.

    Example:
        ziphius sft runs/first/checkpoints/step-1000 --data chats.jsonl --out runs/chat --epochs 3
        ziphius sft MODEL --data chats.jsonl --out runs/lora --lora.rank 8 --lora.alpha 16
        ziphius sft --resume runs/chat
    """
    from ziphius.train.finetuning import run_sft

    run_training(config, run_sft, name="sft")
