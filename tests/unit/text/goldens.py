"""Published strings, written in ASCII: `~` stands for U+FF5C and `^` for U+2581."""

from functools import cache
from typing import Any

from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ziphius.text.chat import Message, ToolCall


def golden(text: str) -> str:
    """Write a published string with its own letters."""
    return text.replace("~", "\uff5c").replace("^", "\u2581")


def run_template(template: str, turns: list[dict[str, Any]], **settings: Any) -> str:
    """Render a published chat template as transformers does."""
    bos = golden("<~begin^of^sentence~>")
    return _compiled(template).render(messages=turns, bos_token=bos, **settings)


@cache
def _compiled(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template)


def system(content: str) -> Message:
    return Message("system", content)


def user(content: str) -> Message:
    return Message("user", content)


def assistant(content: str = "", reasoning: str | None = None, *calls: ToolCall) -> Message:
    return Message("assistant", content, reasoning, calls)


def result(content: str) -> Message:
    return Message("tool", content)


def as_dicts(turns: list[Message]) -> list[dict[str, Any]]:
    """Write messages as the templates expect them."""
    dicts: list[dict[str, Any]] = []
    for turn in turns:
        entry: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.tool_calls:
            entry["content"] = turn.content or None
            entry["tool_calls"] = [
                {"type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for c in turn.tool_calls
            ]
        dicts.append(entry)
    return dicts
