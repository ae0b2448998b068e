"""From the words of a command line to the frozen config of a command, through tyro.

The config is the only list of a command's options: names, types, defaults, ranges and help texts
all come from its fields. What a field cannot say for itself is said here, once for all commands.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro
from pydantic import ValidationError
from tyro.constructors import (
    MISSING_NONPROP,
    ConstructorRegistry,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from ziphius.cli.option_names import refuse_other_names
from ziphius.core.config import Config, explain
from ziphius.core.errors import ConfigError
from ziphius.core.files import user_path

AsJson = Annotated[bool, tyro.conf.arg(name="json")]
"""Type of the field `as_json`, which is the option --json (pydantic keeps the name json)."""

C = TypeVar("C", bound=Config)
REGISTRY = ConstructorRegistry()


def parse_options(
    config_class: type[C], args: Sequence[str], *, prog: str, description: str | None
) -> C:
    """Read `args` into a config; on --help or an error print it and raise SystemExit (0 or 2)."""
    refuse_other_names(config_class, args)
    return tyro.cli(
        config_class,
        prog=prog,
        description=inspect.cleandoc(description or ""),
        args=args,
        # One flag per switch: --json without --no-json.
        config=(tyro.conf.FlagCreatePairsOff,),
        registry=REGISTRY,
    )


@REGISTRY.struct_rule
def _config_rule(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Read configs as tyro does, but report what pydantic refuses in one line and not in five."""
    if not (isinstance(info.type, type) and issubclass(info.type, Config)):
        return None
    hints = get_type_hints(info.type, include_extras=True)

    def default(name: str) -> Any:
        if isinstance(info.default, Config):
            return getattr(info.default, name)
        field = info.type.model_fields[name]
        return (
            MISSING_NONPROP if field.is_required() else field.get_default(call_default_factory=True)
        )

    fields = tuple(
        StructFieldSpec(
            name=name,
            type=hints[name],
            default=default(name),
            helptext=_help(field.description, switches_off=default(name) is True),
        )
        for name, field in info.type.model_fields.items()
    )
    return StructConstructorSpec(instantiate=_in_plain_words(info.type), fields=fields)


def _help(text: str | None, *, switches_off: bool) -> str | None:
    """Join the lines of each paragraph: where they break is the terminal's business.

    What is on by default is the option --no-..., of which the text must speak.
    """
    if text is None:
        return None
    flowing = "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))
    return f"Switches off: {flowing[0].lower()}{flowing[1:]}" if switches_off else flowing


def _at_home(value: Any) -> Any:
    """Expand ~ in paths: shells leave it alone in --out=~/runs."""
    if isinstance(value, Path):
        return user_path(str(value))
    return tuple(map(_at_home, value)) if isinstance(value, tuple) else value


def _in_plain_words(config_class: type[Config]) -> Callable[..., Config]:
    @functools.wraps(config_class, updated=())
    def instantiate(**values: Any) -> Config:
        try:
            return config_class(**{name: _at_home(value) for name, value in values.items()})
        except ValidationError as error:
            # Not a plain ValueError: tyro catches that for the options of a command itself, but not
            # where it lies in a config inside.
            raise ConfigError(explain(error)) from error

    return instantiate
