"""`ziphius pretrain`: a language model from text, or a trained one for more of it."""

from pathlib import Path
from typing import Annotated

import tyro

from ziphius.cli.training import RunOptions, TrainOptions, run_training
from ziphius.data.config import DataConfig
from ziphius.train.settings import PretrainSettings

_Bare = tyro.conf.arg(prefix_name=False)


class DataOptions(DataConfig):
    """The text, with the options of every day by their bare names."""

    mix: Annotated[str, _Bare] = "v2"
    """Mix of the embedded corpora: v2, r1 or coder."""
    own: Annotated[tuple[str, ...], tyro.conf.arg(name="data", prefix_name=False)] = ()
    """Own text: files of text, code, JSON Lines, JSON, CSV, parquet or Arrow, also compressed,
    folders of them, or hf:NAME for a data set of the hub, which is streamed."""


class PretrainConfig(PretrainSettings, RunOptions):
    """What `ziphius pretrain` needs to know."""

    from_model: Annotated[Path | None, tyro.conf.arg(name="from", metavar="MODEL")] = None
    """Model folder to continue from, with its tokenizer, instead of new weights."""
    data: DataOptions = DataOptions()
    """The text."""
    train: TrainOptions = TrainOptions()
    """How to train."""


def pretrain(config: PretrainConfig) -> None:
    """Train a language model on text: the embedded corpora in a mix, or text of your own.

    Several processes share the work when torchrun starts them. Ctrl-C ends the run after its step
    and saves; the same command, or --resume, continues it.

    Example:
        ziphius pretrain --preset v3-1m --mix v2 --budget 10m --out runs/first
        ziphius pretrain --data notes/ --budget 200M-tokens --out runs/notes
        ziphius pretrain --resume runs/first
        ziphius pretrain --from MODEL --extend-context 1024 --out runs/long
    """
    from ziphius.train.pretraining import run_pretraining

    run_training(config, run_pretraining, name="pretrain")
