"""Grammars for answers: JSON schema, regular expression, choice and EBNF, through llguidance.

A grammar is a program that a stranger wrote. It is looked over here, compiled once beside this
process with limits of time and memory, and only then in it, where llguidance has limits of its own
for every step. What breaks one of them ends the request that brought it, and no other.

Shapes: W vocabulary.
"""

import enum
import json
import math
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ziphius.core.closing import Closing
from ziphius.core.errors import ConfigError, MissingExtraError, TokenizerError
from ziphius.engine.processors.processor import ProcessorError
from ziphius.engine.processors.thinking import ThinkBlock, Thinking
from ziphius.engine.sampling_params import StructuredOutputs
from ziphius.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

COMPLETE = "grammar"
"""Reason to end a sequence: its grammar has no continuation."""
MAX_DEPTH = 64
"""Brackets inside brackets in a schema."""
MAX_ENUM, MAX_ALTERNATIVES = 10_000, 500
"""Entries of one `enum`; of one `anyOf`, `oneOf` or `allOf`."""
_SCRIPT = Path(__file__).with_name("grammar_worker.py")
_FUEL = 200_000
"""Of llguidance for the first step of a lexer, a fifth of its own limit: about 0.1 s, and enough
for an enum of `MAX_ENUM`."""
_ALLOWED = b"\xc8"
"""In a mask of llguidance."""
_KEPT = 64
_SHOWN = 300


class Limits(NamedTuple):
    """What compiling one grammar may take."""

    cpu_s: int = 5
    wall_s: float = 30.0
    """More than the CPU time: a machine may be busy with other things."""
    memory: int = 2 * 1024**3
    """Of addresses; llguidance reserves far more than it fills."""


class GrammarCompiler(Closing):
    """Compile grammars for one vocabulary; close it in the end, since a process waits beside it.

    Args:
        tokenizer: whose tokens the grammars let through.
        stop_ids: tokens that may come where a grammar may end.
        limits: of one compilation.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop_ids: Sequence[int], limits: Limits | None = None
    ) -> None:
        self._packages = _llguidance_folder()
        self._limits = limits or Limits()
        from llguidance import LLTokenizer, TokenizerWrapper

        self._turn = Lock()
        self._waiting = self._started()
        wrapper = TokenizerWrapper(_Vocabulary(tokenizer, stop_ids))
        self._tokenizer = LLTokenizer(wrapper, eos_token=list(stop_ids))
        self.compile = lru_cache(maxsize=_KEPT)(self._compile)
        """Compile what a request asks for; equal ones once.

        Call it where waiting is allowed, not in the loop that decodes.

        Raises:
            ConfigError: the grammar is none, is too large, or took more than it may.
        """

    def _compile(self, wanted: StructuredOutputs) -> "Grammar":
        from llguidance import LLMatcher, LLParserLimits

        text = _grammar_text(wanted)
        error = self._error_beside(text)
        if error is None:
            # verbose_errors would put the tokens of an answer into messages.
            limits = LLParserLimits(verbose_errors=False, initial_lexer_fuel=_FUEL)
            matcher = LLMatcher(self._tokenizer, text, log_level=0, limits=limits)
            error = matcher.get_error() or _error_of_first_step(matcher.deep_copy())
        if error is not None:
            raise ConfigError(
                f"the {wanted.kinds[0]} of structured_outputs cannot be used: {_in_one_line(error)}"
            )
        return Grammar(matcher)

    def _error_beside(self, text: str) -> str | None:
        """Compile in another process; return what it complains of."""
        limits = self._limits
        job = {"grammar": text, "cpu_s": limits.cpu_s, "memory": limits.memory}
        with self._turn:
            process, self._waiting = self._waiting, self._started()
            if process.poll() is not None:  # it was ended while it waited
                with process:
                    process = self._started()
        with process:
            try:
                answer, complaint = process.communicate(
                    json.dumps(job).encode() + b"\n", limits.wall_s
                )
            except subprocess.TimeoutExpired:
                process.kill()
                return f"compiling it took longer than {limits.wall_s:.0f} s"
        if process.returncode:
            return self._why_it_ended(process.returncode, complaint)
        error: str | None = json.loads(answer)["error"]
        return error

    def _why_it_ended(self, status: int, complaint: bytes) -> str:
        limits = self._limits
        if status == -signal.SIGXCPU:
            return f"compiling it took more than {limits.cpu_s} s of CPU time"
        if b"memory" in complaint.lower():  # of Python, of Rust, of the system
            return f"compiling it took more than {limits.memory // 2**20:,} MiB of memory"
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        return f"the process that compiled it ended early, {how}"

    def _started(self) -> "subprocess.Popen[bytes]":
        """Start a process for the next grammar: importing takes longer than most grammars do."""
        # -I -S: nothing of the environment, the working folder or the site is imported.
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(_SCRIPT), str(self._packages)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"LC_ALL": "C.UTF-8"},
            cwd="/",
            start_new_session=True,  # Ctrl-C at the terminal is for this process
        )

    def close(self) -> None:
        """End the process that waits."""
        with self._turn, self._waiting as process:
            process.kill()


class Grammar:
    """A compiled grammar, at its beginning."""

    def __init__(self, matcher: "LLMatcher") -> None:
        self._matcher = matcher

    def processor(self, thinking: Thinking | None = None) -> "GrammarProcessor":
        """Return a processor for one sequence, of which the grammar begins behind its thinking."""
        return GrammarProcessor(self._matcher.deep_copy(), thinking)


class _Heard(enum.Enum):
    """What a token was to a grammar."""

    FREE = enum.auto()
    """Before it begins, in the think block."""
    CONSUMED = enum.auto()
    IGNORED = enum.auto()
    """Behind its end, where only drafts can be."""


class GrammarProcessor:
    """Let only tokens through that the grammar can go on with.

    Args:
        matcher: this sequence's alone.
        thinking: a model that thinks is free until its block is closed.
    """

    def __init__(self, matcher: "LLMatcher", thinking: Thinking | None = None) -> None:
        self._matcher = matcher
        self._block = ThinkBlock(thinking) if thinking is not None else None
        self._heard: list[_Heard] = []

    def _is_free(self) -> bool:
        begun = bool(self._heard) and self._heard[-1] is not _Heard.FREE
        return not begun and self._block is not None and self._block.state.inside

    def __call__(self, logits_W: Tensor, token_ids: Sequence[int]) -> None:
        """Mask what the grammar does not take; a `ProcessorError` where it takes nothing."""
        if self._is_free():
            return
        allowed = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)
        if self._matcher.is_error():
            error = _in_one_line(self._matcher.get_error())
            raise ProcessorError(f"the grammar of this request cannot go on: {error}")
        width = min(len(allowed), len(logits_W))
        logits_W[:width].masked_fill_((allowed[:width] == 0).to(logits_W.device), -torch.inf)
        logits_W[width:] = -torch.inf

    def accept(self, token_id: int) -> str | None:
        """Go on by one token; say when nothing can follow."""
        if self._is_free():
            assert self._block is not None
            self._heard.append(_Heard.FREE)
            self._block.accept(token_id)
            return None
        if self._matcher.is_stopped():
            # llguidance would take an end here, but not take it back.
            self._heard.append(_Heard.IGNORED)
        else:
            # One that it does not take leaves it in an error, which the next call raises.
            self._heard.append(_Heard.CONSUMED)
            self._matcher.consume_token(token_id)
        return COMPLETE if self._matcher.is_stopped() and not self._matcher.is_error() else None

    def rollback(self, count: int) -> None:
        """Go back."""
        if not count:
            return
        gone = self._heard[-count:]
        del self._heard[-count:]
        if self._block is not None:
            self._block.rollback(gone.count(_Heard.FREE))
        if consumed := gone.count(_Heard.CONSUMED):
            self._matcher.rollback(consumed)


def _error_of_first_step(matcher: "LLMatcher") -> str | None:
    """Take any token: llguidance builds most of a lexer only then, and others would wait for it."""
    token_id = matcher.compute_logit_bias().find(_ALLOWED)
    if token_id >= 0 and not matcher.is_error():
        matcher.consume_token(token_id)
    return matcher.get_error() or None


class _Vocabulary:
    """A tokenizer as llguidance wants to see it."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self.tokens = [_bytes_of(tokenizer, i) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted(tokenizer.special_ids)
        self.eos_token_id = stop_ids[0]
        self.bos_token_id = tokenizer.bos_id

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", errors="replace"))


def _bytes_of(tokenizer: Tokenizer, token_id: int) -> bytes:
    try:
        return tokenizer.id_to_bytes(token_id)
    except TokenizerError:
        return b""  # an id that the vocabulary leaves out: no grammar lets it through


def _grammar_text(wanted: StructuredOutputs) -> str:
    """Write what is wanted as a grammar of llguidance."""
    from llguidance import LLMatcher, grammar_from

    if wanted.choice:
        return grammar_from("choice", json.dumps(wanted.choice))
    if wanted.regex is not None:
        return LLMatcher.grammar_from_regex(wanted.regex)
    if wanted.grammar is not None:
        return LLMatcher.grammar_from_lark(wanted.grammar)
    if wanted.json_object:
        return LLMatcher.grammar_from_json_schema('{"type": "object"}')
    assert wanted.json_schema is not None
    return LLMatcher.grammar_from_json_schema(json.dumps(_checked_schema(wanted.json_schema)))


def _checked_schema(text: str) -> Any:
    """Read a schema that is not too deep or too wide."""
    if (depth := _depth(text)) > MAX_DEPTH:
        raise ConfigError(f"json_schema is nested {depth:,} deep; at most {MAX_DEPTH} are allowed")
    try:
        schema = json.loads(text, parse_float=_finite, parse_constant=_no_constant)
    except ValueError as error:
        raise ConfigError(f"json_schema is not JSON: {error}") from error
    for key, entries in _lists(schema):
        most = {"enum": MAX_ENUM, "anyOf": MAX_ALTERNATIVES, "oneOf": MAX_ALTERNATIVES}
        most["allOf"] = MAX_ALTERNATIVES
        if entries > most.get(key, entries):
            raise ConfigError(
                f"{key} of json_schema has {entries:,} entries; at most {most[key]:,} are allowed"
            )
    return schema


def _finite(text: str) -> float:
    """Read a number; Python reads 1e309 as infinity, which JSON cannot write."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:_SHOWN]} is too large a number")
    return number


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _depth(text: str) -> int:
    """Count brackets inside brackets outside of strings, without recursion."""
    depth = deepest = 0
    inside = escaped = False
    for character in text:
        if inside:
            inside = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            inside = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _lists(value: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Name every list in a schema with its length."""
    if isinstance(value, list):
        yield key, len(value)
        for entry in value:
            yield from _lists(entry)
    elif isinstance(value, dict):
        for name, entry in value.items():
            yield from _lists(entry, name)


def _in_one_line(error: str) -> str:
    if "too many expressions" in error or "too big" in error:
        return "it is too large: ask for fewer repetitions or alternatives"
    if "NoExtensionBias" in error:  # so llguidance calls it
        return (
            "no text fits it (it contradicts itself, or a rule or $ref of it leads only to itself)"
        )
    return " ".join(error.replace("<non-verbose/>", "").split())[:_SHOWN]


def _llguidance_folder() -> Path:
    found = find_spec("llguidance")
    if found is None or found.origin is None:
        raise MissingExtraError(
            "Grammars need llguidance. It comes with: pip install 'ziphius[serve]'."
        )
    return Path(found.origin).parents[1]
