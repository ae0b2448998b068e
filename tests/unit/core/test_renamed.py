"""Old names of settings: refused everywhere, by an error that names the new one."""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Annotated, ClassVar

import pytest
import tyro
from pydantic import ValidationError

import ziphius
from ziphius.cli.main import COMMANDS, load_command, main
from ziphius.cli.option_names import USUAL, option_names, refuse_other_names, renamed_options
from ziphius.cli.options import parse_options
from ziphius.core.config import Config, RenamedConfig, explain
from ziphius.core.errors import ConfigError

_Bare = tyro.conf.arg(prefix_name=False)


class Inner(RenamedConfig):
    renamed: ClassVar[Mapping[str, str]] = {"old_rate": "rate", "long": "length"}
    rate: float = 1.0
    """How fast."""
    length: Annotated[int, _Bare] = 1
    """How long; without the prefix."""


class Outer(Config):
    inner: Inner = Inner()
    """Inside."""


def with_old_names() -> list[type[RenamedConfig]]:
    """All configs of the package that have renamed a field."""
    for module in pkgutil.walk_packages(ziphius.__path__, "ziphius."):
        importlib.import_module(module.name)
    found, waiting = set(), [RenamedConfig]
    while waiting:
        subclasses = waiting.pop().__subclasses__()
        waiting += subclasses
        found |= {c for c in subclasses if c.renamed and c.__module__.startswith("ziphius.")}
    return sorted(found, key=str)


def test_an_old_name_in_code_or_json_names_the_new_one() -> None:
    for values in ({"inner": {"old_rate": 2.0}}, {"inner": {"old_rate": 2.0, "rate": 3.0}}):
        with pytest.raises(ValidationError) as raised:
            Outer.model_validate(values)
        assert explain(raised.value) == "old_rate is now rate."
    with pytest.raises(ValidationError) as raised:
        Inner.model_validate({"old_rate": 2.0, "long": 3})
    assert explain(raised.value) == "old_rate is now rate, long is now length."


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--inner.old-rate", "2"), "--inner.old-rate is now --inner.rate."),
        (("--inner.old_rate=2",), "--inner.old-rate is now --inner.rate."),
        (("--long", "2"), "--long is now --length."),
    ],
)
def test_an_old_option_names_the_new_one(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_options(Outer, words, prog="x", description=None)
    assert str(raised.value) == message


def test_new_names_are_fields_and_old_ones_are_not() -> None:
    assert len(with_old_names()) > 3
    for config in with_old_names():
        assert config.renamed.keys().isdisjoint(config.model_fields), config
        assert set(config.renamed.values()) <= config.model_fields.keys(), config


def test_no_old_option_is_the_option_of_a_command() -> None:
    renamed = 0
    for name in COMMANDS:
        config_class, _ = load_command(name)
        options = option_names(config_class)
        for old, new in renamed_options(config_class).items():
            renamed += 1
            assert old not in options
            assert new in options
    assert renamed > 10


@pytest.mark.parametrize(
    ("command", "new"),
    [
        ("pretrain --train.context 64 --out x", "--train.seq-len"),
        ("pretrain --train.batch-rows 4 --out x", "--train.global-batch-size"),
        ("pretrain --train.recompute --out x", "--train.activation-checkpointing"),
        ("pretrain --context 64 --out x", "--train.seq-len"),
        ("pretrain --batch-rows 64 --out x", "--train.global-batch-size"),
        ("sft m --context 64 --data d --out x", "--seq-len"),
        ("sft m --train.context 64 --data d --out x", "--seq-len"),
        ("sft m --batch_rows=4 --data d --out x", "--train.global-batch-size"),
        ("sft m --train.micro_rows=1 --data d --out x", "--train.micro-batch-size"),
    ],
)
def test_commands_name_the_new_option(
    command: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.split()) == 2
    assert capsys.readouterr().err.endswith(f" is now {new}.\n")


@pytest.mark.parametrize(
    ("command", "option", "here"),
    [
        ("pretrain", "--lr", "--train.learning-rate"),
        ("pretrain", "--train.lr", "--train.learning-rate"),
        ("pretrain", "--per_device_train_batch_size", "--train.micro-batch-size"),
        ("pretrain", "--max-seq-length", "--train.seq-len"),
        ("pretrain", "--lora-rank", "--lora.rank"),
        ("sft m", "--lr", "--learning-rate"),
        ("sft m", "--train.lr", "--learning-rate"),
        ("sft m", "--num-train-epochs", "--epochs"),
        ("sft m", "--per-device-train-batch-size", "--train.micro-batch-size"),
        ("sft m", "--max-length", "--seq-len"),
        ("sft m", "--gradient-checkpointing", "--train.activation-checkpointing"),
        ("sft m", "--lora_r", "--lora.rank"),
        ("sft m", "--lora.r", "--lora.rank"),
        ("sft m", "--output-dir", "--out"),
    ],
)
@pytest.mark.parametrize("value", [" 3", "=3"])
def test_the_names_of_other_trainers_are_known(
    command: str, option: str, here: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(f"{command} {option}{value}".split()) == 2
    message = f"ziphius: error: {option.replace('_', '-')} is {here} here.\n"
    assert capsys.readouterr().err == message


def test_names_of_other_trainers_lead_somewhere() -> None:
    options = [name for command in COMMANDS for name in option_names(load_command(command)[0])]
    for here in USUAL.values():
        assert any(name.endswith(here) for name in options), here


class Both(Config):
    lr: float = 1.0
    """Another trainer's name, and an option here."""
    learning_rate: float = 1.0
    """What that name means elsewhere."""


def test_a_name_that_is_an_option_here_is_one() -> None:
    refuse_other_names(Both, ["--lr", "3"])


def test_a_command_without_such_an_option_leaves_the_name_to_the_parser(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--lr", "3"])
    assert "Unrecognized options: --lr" in capsys.readouterr().err
