"""The records of a native program, as `program.h` declares them: same names, same order.

A record is a row of `WORDS` words of eight bytes, its kind first. What each operation computes is
said there.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import IntEnum

import torch
from torch import Tensor

WORDS = 32
UNIT = 32
"""Columns of a panel of packed weights; widths are padded to multiples of it."""
NONE = -1
"""Where there is no weight."""


def padded(width: int) -> int:
    """Round a width up to whole panels."""
    return -(-width // UNIT) * UNIT


class Into(IntEnum):
    """Where a projection's result goes."""

    STORE = 0
    ADD = 1
    LOGITS = 2


class Scoring(IntEnum):
    """How a gate's logits become the scores that experts are chosen by."""

    BY_LOGIT = 0
    BY_SOFTMAX = 1
    BY_SIGMOID = 2


@dataclass(frozen=True)
class Place:
    """A column of a buffer, where rows of some width begin."""

    buffer: int
    column: int = 0


NOWHERE = Place(NONE)


@dataclass(frozen=True)
class Norm:
    """An RMS norm on the way into a product."""

    weight: int = NONE
    eps: float = 0.0


@dataclass(frozen=True)
class Embed:
    """Embedding of the tokens, and the angles of their positions."""

    width: int
    to: Place
    frequencies: int
    pairs: int
    factor: float
    angles: Place
    is_float: int


@dataclass(frozen=True)
class Project:
    """A projection."""

    norm: Norm
    from_: Place
    inputs: int
    weight: int
    bias: int
    outputs: int
    is_float: int
    to: Place
    into: int


@dataclass(frozen=True)
class Gated:
    """The first half of a gated feed-forward layer."""

    norm: Norm
    from_: Place
    inputs: int
    weight: int
    width: int
    to: Place
    updates: Place


@dataclass(frozen=True)
class LatentHeads:
    """Queries and cached rows of latent attention."""

    layer: int
    queries: Place
    row: Place
    norm: Norm
    angles: Place
    heads: int
    nope: int
    rope: int
    latent: int
    key_weight: int
    to: Place


@dataclass(frozen=True)
class GroupedHeads:
    """Queries and cached rows of grouped attention."""

    layer: int
    queries: Place
    keys: Place
    values: Place
    query_norm: Norm
    key_norm: Norm
    angles: Place
    heads: int
    key_heads: int
    width: int
    to: Place


@dataclass(frozen=True)
class Attend:
    """Softmax attention over the pages of the cache."""

    layer: int
    queries: Place
    heads: int
    key_heads: int
    key_width: int
    value_width: int
    scale: float
    window: int
    sinks: int
    value_weight: int
    out_width: int
    to: Place
    latents: Place


@dataclass(frozen=True)
class Choose:
    """A gate's choice of experts, and their weights."""

    logits: Place
    experts: int
    groups: int
    best_groups: int
    judges: int
    top: int
    scoring: int
    bias: int
    normalise: int
    over_chosen: int
    scaling: float
    route: int
    chosen: Place
    weights: Place


@dataclass(frozen=True)
class Experts:
    """The routed experts of a layer, and those that all tokens share."""

    norm: Norm
    stream: Place
    hidden: int
    chosen: Place
    weights: Place
    experts: int
    top: int
    width: int
    first: int
    second: int
    shared_width: int
    shared_first: int
    shared_second: int
    inner: Place
    shared_inner: Place
    out: Place
    shared_out: Place
    updates: Place


@dataclass(frozen=True)
class Keep:
    """Rows of the stream that a caller may ask for."""

    norm: Norm
    from_: Place
    width: int
    layer: int


@dataclass(frozen=True)
class LowRank:
    """What adapters add to a projection, or to a head's part of it."""

    norm: Norm
    from_: Place
    inputs: int
    from_step: int
    outputs: int
    to: Place
    to_step: int
    heads: int
    down_each: int
    up_each: int
    slot: int
    into: int


@dataclass(frozen=True)
class Receive:
    """Rows that the caller brings."""

    width: int
    to: Place


Operation = (
    Embed
    | Project
    | Gated
    | LatentHeads
    | GroupedHeads
    | Attend
    | Choose
    | Experts
    | Keep
    | LowRank
    | Receive
)
KINDS: tuple[type[Operation], ...] = (
    Embed,
    Project,
    Gated,
    LatentHeads,
    GroupedHeads,
    Attend,
    Choose,
    Experts,
    Keep,
    LowRank,
    Receive,
)
"""By number."""


def as_table(operations: list[Operation]) -> Tensor:
    """Write the records of a list of operations, int64 [operations, WORDS]."""
    table = torch.zeros(len(operations), WORDS, dtype=torch.int64)
    for row, operation in zip(table, operations, strict=True):
        words = [KINDS.index(type(operation)), *_words(operation)]
        row[: len(words)] = torch.tensor(words)
    return table


def _words(part: object) -> Iterator[int]:
    """Flatten a record; a float becomes the integer of the same bits."""
    if isinstance(part, float):
        yield struct.unpack("<q", struct.pack("<d", part))[0]
    elif isinstance(part, int):
        yield int(part)
    else:
        for field in fields(part):  # type: ignore[arg-type]
            yield from _words(getattr(part, field.name))
