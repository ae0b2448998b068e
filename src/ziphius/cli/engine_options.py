"""Options of the engine that answers; the model and the engine that they make."""

import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import tyro
from pydantic import Field, model_validator

from ziphius.cli.process import interrupts_wait
from ziphius.core.config import Config
from ziphius.core.errors import ConfigError
from ziphius.core.files import existing_path, user_path
from ziphius.core.sizes import size_in_bytes
from ziphius.engine.config import EngineConfig
from ziphius.engine.speculation_config import SpeculationConfig

if TYPE_CHECKING:
    from ziphius.engine.adapters import AdapterStore
    from ziphius.engine.answering import AnswerPiece, Question
    from ziphius.engine.engine import Engine
    from ziphius.engine.load import Loaded
    from ziphius.engine.requests import RequestMaker

    CacheDtype = str
else:
    CacheDtype = EngineConfig.model_fields["cache_dtype"].annotation

_CACHED = 64 * 2**20
"""Bytes that a CPU's last cache may hold."""
OWN_ADAPTER = "adapter"
"""Name of the adapter that a command was given without one."""


class EngineOptions(Config):
    """Options of every command that runs an engine."""

    adapter: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="[NAME=]FOLDER")
    ] = ()
    """Answer with these adapters of the model; given with a name, it is for the prompts of a file
    that name it."""
    speculative: Literal["off", "ngram", "model", "mtp"] = "off"
    """Guess tokens ahead, which changes how fast they come and never which: ngram from the text
    itself, model by a smaller one (--draft-model), mtp by the model's own layer for it."""
    draft_model: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None
    """Smaller model with the same vocabulary, that guesses."""
    num_speculative_tokens: Annotated[
        Annotated[int, Field(ge=1, le=16)] | None, tyro.conf.arg(metavar="INT")
    ] = None
    """Most tokens guessed at once, by default 4; fewer where more do not pay."""
    cache_dtype: CacheDtype = "auto"
    """Numbers that the cache keeps; auto are those of the weights. Fewer bits take less memory, and
    round what is remembered of a text."""
    disk_cache: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Keep there what was computed of prompts, for later ones that begin alike, also after a
    restart. Whoever can read the folder can read prompts out of it."""
    disk_cache_size: Annotated[str | None, tyro.conf.arg(metavar="SIZE")] = None
    """Size of that folder at most, such as 5GB; by default 10GiB."""
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
    verbose: bool = False
    """Say on standard error how the model is run, and what caches and guesses were good for."""

    @model_validator(mode="after")
    def _options_go_together(self) -> Self:
        if (self.draft_model is not None) != (self.speculative == "model"):
            raise ConfigError("--draft-model and --speculative model need each other")
        if self.num_speculative_tokens is not None and self.speculative == "off":
            raise ConfigError("--num-speculative-tokens would have no effect without --speculative")
        if self.adapter and self.speculative != "off":
            raise ConfigError("drafts know no adapters: leave out --speculative or --adapter")
        if self.disk_cache_size is not None and self.disk_cache is None:
            raise ConfigError("--disk-cache-size would have no effect without --disk-cache")
        self.engine_config(1)
        names = list(self.adapters)
        if len(names) != len(self.adapter):
            raise ConfigError("--adapter: each needs a name of its own, and one may have none")
        return self

    @property
    def adapters(self) -> dict[str, Path]:
        """Return the folders of adapters by name."""
        return dict(_named(text) for text in self.adapter)

    @property
    def default_adapter(self) -> str:
        """Return the adapter of prompts that name none."""
        return OWN_ADAPTER if OWN_ADAPTER in self.adapters else ""

    def engine_config(self, max_num_seqs: int) -> EngineConfig:
        """Return the limits of an engine."""
        given: dict[str, Any] = {"max_num_seqs": max_num_seqs, "cache_dtype": self.cache_dtype}
        if self.disk_cache is not None:
            given["disk_cache"] = self.disk_cache
        if self.disk_cache_size is not None:
            given["disk_cache_bytes"] = size_in_bytes(self.disk_cache_size, "disk_cache_size")
        if self.speculative != "off":
            most = self.num_speculative_tokens
            given["speculation"] = SpeculationConfig(
                method=self.speculative,
                **({} if most is None else {"num_speculative_tokens": most}),
            )
        return EngineConfig(**given)


def _named(text: str) -> tuple[str, Path]:
    """Take NAME=FOLDER apart; a folder whose own name holds = comes first."""
    name, equals, folder = text.partition("=")
    if not equals or existing_path(text) is not None:
        return OWN_ADAPTER, user_path(text)
    if not name or not folder:
        raise ConfigError(f"--adapter {text}: give a folder, or NAME=FOLDER")
    return name, user_path(folder)


class Session:
    """A model with its engine, as `open_session` makes it."""

    def __init__(self, loaded: "Loaded", engine: "Engine", maker: "RequestMaker") -> None:
        self.loaded, self.engine, self.maker = loaded, engine, maker

    def cached_tokens(self) -> int:
        """Count the tokens of prompts so far that were found in the cache."""
        count: int = self.engine.metrics()["prefix_cache_hits"]
        return count

    def answers(
        self, questions: "Iterable[Question | ConfigError]", *, keep_errors: bool = False
    ) -> "Generator[list[AnswerPiece], None, None]":
        """Answer questions; see `stream_answers`. Ctrl-C comes between steps."""
        from ziphius.engine.answering import stream_answers

        stream = stream_answers(
            self.engine, self.loaded.tokenizer, self.maker, questions, keep_errors=keep_errors
        )
        with closing(stream):
            while True:
                with interrupts_wait():
                    step = next(stream, None)
                if step is None:
                    return
                yield step


def load_model(name: str, options: EngineOptions) -> "Loaded":
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


@contextmanager
def open_session(loaded: "Loaded", options: EngineOptions, max_num_seqs: int) -> Iterator[Session]:
    """Give a model the engine that the options ask for, and close it however the block ends.

    Args:
        loaded: the model.
        options: of its engine.
        max_num_seqs: answers at the same time.
    """
    from ziphius.engine.build import build_engine
    from ziphius.engine.load import load_for_inference
    from ziphius.engine.requests import RequestMaker

    draft = None
    if options.draft_model is not None:
        name = options.draft_model
        draft = load_for_inference(name, device=options.device, dtype=options.dtype).model
    engine = build_engine(
        loaded.model,
        options.engine_config(max_num_seqs),
        vocab_limit=loaded.tokenizer.vocab_size,
        adapters=_adapters(loaded, options),
        draft_model=draft,
    )
    with ExitStack() as stack:
        if options.verbose:
            _say(f"runner: {runner_line(engine)}")
            # Behind the end of the engine, which writes to the disk cache most of all.
            stack.callback(lambda: _say(*_figures(engine.metrics())))
        stack.callback(engine.close)
        yield Session(loaded, engine, stack.enter_context(RequestMaker(loaded.tokenizer)))


def _adapters(loaded: "Loaded", options: EngineOptions) -> "AdapterStore | None":
    from ziphius.engine.adapters import AdapterStore

    if not options.adapter:
        return None
    store = AdapterStore(loaded.model, EngineConfig().max_adapter_bytes)
    for name, folder in options.adapters.items():
        store.add(name, folder)
    return store


def runner_line(engine: "Engine") -> str:
    """Say what runs the model of an engine, and with which units of the CPU."""
    from ziphius.ops.native.units import compiled_units

    if engine.not_native is None:
        return f"native program ({', '.join(compiled_units())})"
    return f"modules of PyTorch, as {engine.not_native}"


def _figures(metrics: dict[str, Any]) -> Iterator[str]:
    """Say what caches and guesses were good for."""
    queries, hits = metrics["prefix_cache_queries"], metrics["prefix_cache_hits"]
    yield f"prompts: {queries:,} tokens, {hits:,} of them found in the cache"
    if "disk_cache_loaded_blocks" in metrics:
        yield (
            f"disk cache: {metrics['disk_cache_loaded_blocks']:,} blocks read, "
            f"{metrics['disk_cache_stored_blocks']:,} written, "
            f"{metrics['disk_cache_dropped_blocks']:,} given up as the disk was behind, "
            f"{metrics['disk_cache_failures']:,} failures of the disk"
        )
    if "expert_cache_queries" in metrics:
        queries, hits = metrics["expert_cache_queries"], metrics["expert_cache_hits"]
        share = f", {hits / queries:.0%}" if queries else ""
        yield (
            f"expert cache: {queries:,} experts asked for, "
            f"{hits:,} of them found in memory{share}; "
            f"{metrics['expert_cache_bytes']:,} of {metrics['expert_cache_limit_bytes']:,} bytes "
            f"used, {metrics['expert_cache_read_bytes']:,} read, "
            f"{metrics['expert_cache_wait_ms']:,} ms waited for them"
        )
    if "spec_decode_num_draft_tokens" in metrics:
        guessed = metrics["spec_decode_num_draft_tokens"]
        kept = metrics["spec_decode_num_accepted_tokens"]
        share = f", {kept / guessed:.0%}" if guessed else ""
        yield f"guesses: {guessed:,} tokens, {kept:,} of them right{share}"
        if metrics["spec_decode_error"]:
            yield f"guessing was given up: {metrics['spec_decode_error']}"


def _say(*lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr)
