"""What `generate` and `chat` share: their options, and how an answer is shown as it comes."""

import re
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from pydantic import Field
from rich.console import Console
from rich.text import Text

from ziphius.core.sizes import size_in_bytes
from ziphius.ops.sampling_config import SamplingConfig

if TYPE_CHECKING:
    from ziphius.engine.answer import Prompt
    from ziphius.engine.load import Loaded
    from ziphius.text.chat import Event

# Everything but tab and line feed: a model must not move the cursor or recolour the terminal.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_CACHED = 64 * 2**20
"""Bytes that a CPU's last cache may hold."""


class AnswerOptions(SamplingConfig):
    """Options of every command that lets a model write: how it draws, and what is around it."""

    temperature: Annotated[float, Field(ge=0, le=100)] = 0.6
    """Divides the logits; 0 always takes the most likely token."""
    max_new_tokens: Annotated[Annotated[int, Field(ge=1)] | None, tyro.conf.arg(metavar="INT")] = (
        None
    )
    """Maximum number of tokens to generate; by default 1,024 (chat: 4,096), or fewer if no more
    fit."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """End before this text; may be given several times."""
    ignore_eos: bool = False
    """Go on after the model's own ends, up to --max-new-tokens."""
    chat_format: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Write the conversation in this format instead of the model's own."""
    thinking: bool = False
    """Let the model reason first, where it does so only on request (V3.1, V3.2)."""
    device: str = "auto"
    """auto (an accelerator if there is one), cpu, cuda, cuda:1, ..."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type to compute in; auto is bfloat16, but on a CPU float32 unless the weights are stored
    in bfloat16 and the CPU has units for it."""
    drop_mtp: bool = False
    """Load a checkpoint whose config and weights disagree on MTP layers, without them."""
    expert_cache: Annotated[str | None, tyro.conf.arg(metavar="SIZE")] = None
    """Memory for routed experts, such as 8GiB: those in use are kept there, the others are read
    from the model folder when they are needed; by default all are in memory."""

    @property
    def sampling(self) -> SamplingConfig:
        """Take out how tokens are drawn."""
        return SamplingConfig(**self.model_dump(include=set(SamplingConfig.model_fields)))


class AnswerPrinter:
    """Show the events of one answer: reasoning dim under a heading, calls dim, the answer plain."""

    def __init__(self, answer: Console, aside: Console) -> None:
        """Print the answer itself to one console, and what is no part of it to another."""
        self._answer = answer
        self._aside = aside
        self._part: Literal["thinking", "calls", "answer", None] = None

    def show(self, events: "Sequence[Event]") -> None:
        """Print what is new."""
        from ziphius.text.chat import ContentText, ReasoningText, ToolCallArguments, ToolCallStart

        for event in events:
            match event:
                case ReasoningText(text):
                    self._begin("thinking")
                    print_text(self._aside, text, "dim")
                case ContentText(text):
                    self._begin("answer")
                    print_text(self._answer, text)
                case ToolCallStart(_, name):
                    self._begin("calls", anew=True)
                    print_text(self._aside, f"{name} ", "dim")
                case ToolCallArguments(_, text):
                    print_text(self._aside, text, "dim")

    def end(self) -> None:
        """Finish the last line, if there is one."""
        if self._part is not None:
            (self._answer if self._part == "answer" else self._aside).print()

    def _begin(self, part: Literal["thinking", "calls", "answer"], *, anew: bool = False) -> None:
        """Go over to another part, or to a new one of the same kind."""
        if part == self._part and not anew:
            return
        self.end()
        if part != "answer":
            self._aside.print(part, style="dim italic")
        elif self._part is not None:
            self._aside.print()
        self._part = part


class Speed:
    """Measure one batch of answers: the prompt until the first token, then tokens per second."""

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.new_tokens = 0
        self.prompt_s = 0.0
        self.decode_s = 0.0
        self._first_step_tokens = 0
        self._start = time.perf_counter()

    def step(self, tokens: int) -> None:
        """Count the tokens of one step."""
        elapsed = time.perf_counter() - self._start
        if self.new_tokens == 0:
            self._first_step_tokens, self.prompt_s = tokens, elapsed
        self.new_tokens += tokens
        self.decode_s = elapsed - self.prompt_s

    @property
    def tokens_per_s(self) -> float | None:
        """Return the rate after the first step, None before a second one."""
        decoded = self.new_tokens - self._first_step_tokens
        return decoded / self.decode_s if decoded else None

    def line(self) -> str:
        """Sum up in one line."""
        rate = "" if self.tokens_per_s is None else f", {self.tokens_per_s:,.1f} tokens/s"
        return (
            f"prompt {self.prompt_tokens:,} tokens, {self.prompt_s:.2f} s to the first token; "
            f"{self.new_tokens:,} tokens in {self.prompt_s + self.decode_s:.2f} s{rate}"
        )


def print_text(console: Console, text: str, style: str = "") -> None:
    """Print a piece of a model's text as it is, but to a terminal without control codes."""
    if console.is_terminal:
        text = _CONTROL.sub("\ufffd", text)
    if console.is_terminal and style:
        console.print(Text(text, style=style), end="", soft_wrap=True)
    else:
        console.file.write(text)  # not through rich, which turns tabs into spaces
    console.file.flush()


def load_model(name: str, options: AnswerOptions) -> "Loaded":
    """Load what the user names; say on stderr if its weights are random."""
    from ziphius.engine.load import load_for_inference

    size = options.expert_cache
    loaded = load_for_inference(
        name,
        device=options.device,
        dtype=options.dtype,
        drop_mtp=options.drop_mtp,
        expert_cache=None if size is None else size_in_bytes(size, "expert_cache"),
    )
    if loaded.is_random:
        print(f"{name}: random weights: a preset, not a trained model", file=sys.stderr)
    elif options.dtype == "auto" and _would_be_faster_in_bfloat16(loaded):
        print(
            "computing in float32, as the weights are stored; --dtype bfloat16 takes half the "
            "memory and is faster on this CPU",
            file=sys.stderr,
        )
    return loaded


def _would_be_faster_in_bfloat16(loaded: "Loaded") -> bool:
    """Tell whether float32 weights leave a CPU's units for bfloat16 idle, and are read for long.

    A token passes all weights: what a CPU's caches hold is read as fast in float32.
    """
    import torch

    from ziphius.core.device import multiplies_bfloat16

    parameters = list(loaded.model.parameters())
    is_wide = parameters[0].device.type == "cpu" and parameters[0].dtype == torch.float32
    return is_wide and 4 * sum(p.numel() for p in parameters) > _CACHED and multiplies_bfloat16()


def token_limit(options: AnswerOptions, default: int, loaded: "Loaded", prompt: "Prompt") -> int:
    """Return how many tokens an answer may have: as asked, or `default` but no more than fit."""
    from ziphius.engine.answer import room_left

    return options.max_new_tokens or min(default, room_left(loaded, prompt))
