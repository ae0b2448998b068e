"""Names that options had in earlier versions, or have in other trainers: errors that say ours."""

from collections.abc import Iterator, Mapping, Sequence

from ziphius.core.config import Config, RenamedConfig
from ziphius.core.errors import ConfigError

USUAL: Mapping[str, str] = {
    "lr": "learning-rate",
    "num-train-epochs": "epochs",
    "per-device-train-batch-size": "micro-batch-size",
    "max-length": "seq-len",
    "max-seq-length": "seq-len",
    "gradient-checkpointing": "activation-checkpointing",
    "max-grad-norm": "clip",
    "lora-r": "lora.rank",
    "lora.r": "lora.rank",
    "lora-rank": "lora.rank",
    "lora-alpha": "lora.alpha",
    "lora-target-modules": "lora.targets",
    "output-dir": "out",
}
"""Names in TRL, PEFT and Hugging Face's Trainer -> the end of ours; only what means the same."""


def refuse_other_names(config_class: type[Config], args: Sequence[str]) -> None:
    """Raise a ConfigError for an option that a command has by another name, which says that name.

    A prefix that is missing or another command's does not hide a name. What the command has no
    option for is left to the parser.
    """
    options, old = option_names(config_class), renamed_options(config_class)
    for word in args:
        option = word.partition("=")[0].replace("_", "-")
        if not option.startswith("--") or option in options:
            continue
        if found := [old[option]] if option in old else _with_end(old, _end(option)):
            raise ConfigError(f"{option} is now {' or '.join(found)}.")
        name = option.removeprefix("--")
        end = USUAL.get(name) or USUAL.get(_end(option))
        if end and (found := [name for name in options if _ends(name, end)]):
            raise ConfigError(f"{option} is {' or '.join(found)} here.")


def option_names(config_class: type[Config]) -> list[str]:
    """List the options of a command, in order, as its command line spells them."""
    return [_option(prefix, config, name) for config, prefix, name in _fields(config_class)]


def renamed_options(config_class: type[Config]) -> dict[str, str]:
    """List the options whose names have changed since earlier versions: old -> new."""
    found: dict[str, str] = {}
    for config, prefix, name in _fields(config_class):
        renamed = config.renamed if issubclass(config, RenamedConfig) else {}
        new = _option(prefix, config, name)
        for old in (old for old, its_new in renamed.items() if its_new == name):
            found[f"{new[: new.rfind('.') + 1] or '--'}{_spelled(old)}"] = new
    return found


def _fields(config: type[Config], prefix: str = "") -> Iterator[tuple[type[Config], str, str]]:
    """Name all settings, those of configs inside included: config, its prefix, field."""
    for name, field in config.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Config):
            yield from _fields(inner, f"{prefix}{name}.")
        else:
            yield config, prefix, name


def _option(prefix: str, config: type[Config], name: str) -> str:
    """Spell the option of a field, which may have another name than the field, or no prefix."""
    for metadata in config.model_fields[name].metadata:
        if getattr(metadata, "prefix_name", None) is False:
            prefix = ""
        name = getattr(metadata, "name", None) or name
    return f"--{_spelled(prefix + name)}"


def _spelled(name: str) -> str:
    return name.replace("_", "-")


def _end(option: str) -> str:
    return option.removeprefix("--").rpartition(".")[2]


def _ends(option: str, end: str) -> bool:
    return f".{option.removeprefix('--')}".endswith(f".{end}")


def _with_end(old: Mapping[str, str], end: str) -> list[str]:
    return [new for name, new in old.items() if _end(name) == end]
