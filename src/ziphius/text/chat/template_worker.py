"""Run one chat template in a process of its own: a script, started by `TemplateRunner` alone.

It imports nothing of this package, so that it starts fast and holds nothing worth taking. Jinja's
immutable sandbox keeps a template from changing or reaching what it is not given, but bounds no
loop: the kernel bounds CPU time, memory and files, this script the length of what comes out, and
the parent the time on the clock. The environment is the one of transformers' `apply_chat_template`.

A line of JSON comes in, one goes out: first {"source", "cpu_s", "memory", "output"}, then any
number of {"variables", "hide", "track"}; answers are {"text"} or {"error"}.
"""

import json
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])  # it starts without site packages

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

# What a string is asked for; the arguments are compared with it and never shown.
LOOKS = frozenset({
    "split", "rsplit", "startswith", "endswith", "strip", "lstrip", "rstrip", "find", "rfind",
    "index", "rindex", "count", "partition", "rpartition", "removeprefix", "removesuffix",
})  # fmt: skip


def limit(kind: int, value: int) -> None:
    """Lower a limit of this process, never above what it was given."""
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, hard))


def limit_next_run(cpu_s: int) -> None:
    """Give the next run so many seconds; the kernel ends this process behind them."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + cpu_s)


class Generation(Extension):
    """`{% generation %}` around what an assistant writes."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        """Wrap the body of a block into a call."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("marked"), [], [], body).set_lineno(line)

    def marked(self, caller: Callable[[], str]) -> str:
        """Write the body between what the next run wants around it."""
        begin, end = getattr(self.environment, "generation_marks", ("", ""))
        return f"{begin}{caller()}{end}"


class PlainNamespace(Namespace):
    """Without names that begin with an underscore, which reach into Python."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _refuse_underscore(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


class PlainDict:
    """`dict(...)` without a way to the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """Make a dictionary."""
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """Make a dictionary of keys."""
        return dict.fromkeys(*args)


def _refuse_underscore(name: Any) -> None:
    if str(name).startswith("_"):
        raise SecurityError("no names that begin with an underscore")


def raise_exception(message: str) -> None:
    """Let a template refuse a conversation."""
    raise TemplateError(message)


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as it is; Jinja's own filter would escape it for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def strftime_now(form: str) -> str:
    """Write the time."""
    return datetime.now().strftime(form)


def environment() -> ImmutableSandboxedEnvironment:
    """Build what transformers gives to templates: filters, functions, blocks."""
    found = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    found.filters["tojson"] = tojson
    found.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": strftime_now,
        "dict": PlainDict(),
        "namespace": PlainNamespace,
    }
    return found


def hidden(tree: nodes.Template, letters: Mapping[str, str]) -> nodes.Template:
    """Spell the texts that a template compares with others as the hidden texts are spelled.

    What it writes itself keeps its letters. So a template sees the same equalities, and in what
    comes out its own letters are told from those of a conversation.
    """
    table = str.maketrans(dict(letters))
    for node in compared(tree):
        for constant in (node, *node.find_all(nodes.Const)):
            if isinstance(constant, nodes.Const) and isinstance(constant.value, str):
                constant.value = constant.value.translate(table)
    return tree


def compared(tree: nodes.Template) -> Iterator[nodes.Expr]:
    """Yield the operands of comparisons, and what strings are searched for."""
    for node in tree.find_all((nodes.Compare, nodes.Call, nodes.Filter, nodes.Test)):
        if isinstance(node, nodes.Compare):
            yield node.expr
            yield from (operand.expr for operand in node.ops)
        elif isinstance(node, nodes.Test):
            yield from node.args or []
        elif isinstance(node, nodes.Filter):
            yield from (node.args or [])[:1] if node.name == "replace" else []
        elif isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
            name, arguments = node.node.attr, node.args or []
            yield from arguments if name in LOOKS else arguments[: name == "replace"]


def run(template: Any, variables: dict[str, Any], longest: int) -> str:
    """Write the text, and stop as soon as it is too long."""
    parts, length = [], 0
    for part in template.generate(variables):
        parts.append(part)
        length += len(part)
        if length > longest:
            raise ValueError(f"it writes more than {longest:,} characters")
    return "".join(parts)


def answer(
    job: dict[str, Any], jinja: ImmutableSandboxedEnvironment, source: str, cache: dict[str, Any]
) -> str:
    """Compile what is asked for, once, and run it."""
    letters, marks = job["hide"], job["track"]
    key = json.dumps(letters)
    if key not in cache:
        cache[key] = jinja.from_string(hidden(jinja.parse(source), letters))
    jinja.generation_marks = marks  # type: ignore[attr-defined]
    return run(cache[key], job["variables"], job["output"])


def main() -> None:
    """Answer until the parent closes its end."""
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    first = json.loads(sys.stdin.readline())
    jinja = environment()
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_FSIZE, 0)
    if sys.platform == "linux":
        limit(resource.RLIMIT_AS, first["memory"])
    cache: dict[str, Any] = {}
    for line in sys.stdin:
        limit_next_run(first["cpu_s"])
        job = {**json.loads(line), "output": first["output"]}
        try:
            reply = {"text": answer(job, jinja, first["source"], cache)}
        except MemoryError:
            reply = {"error": "it needs too much memory"}
        except RecursionError:
            reply = {"error": "it calls itself without end"}
        except Exception as problem:  # whatever a template raises is its own fault
            reply = {"error": f"{type(problem).__name__}: {problem}"[:500]}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
