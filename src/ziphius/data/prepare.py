"""Text becomes shards, once (`data/cache.py`): what the ids of a domain depend on, and the work.

A second run with the same text, tokenizer and settings maps what is there and starts at once.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ziphius.core.assets import fetch
from ziphius.data.cache import digest, file_stats, made_once, tokenizer_digest
from ziphius.data.config import HUB, DataConfig
from ziphius.data.corpora import CORPORA, Corpus, documents
from ziphius.data.document import Document
from ziphius.data.encode import EncodingPool, id_type
from ziphius.data.errors import DataError
from ziphius.data.fim import Fim
from ziphius.data.mathematics import mathematics
from ziphius.data.mixes import OWN
from ziphius.data.readers import READING, OwnText, described, own_files
from ziphius.data.selection import choose, draw_sample, with_tails
from ziphius.data.shards import DomainShards, describe, open_shards
from ziphius.data.writing import MEGABYTE, write_shards
from ziphius.text.tokenizer import Tokenizer

FORMAT = 1
"""Raised when the same text would become other shards; old ones are then not used."""


@dataclass(frozen=True)
class Source:
    """Where documents come from, and what they depend on."""

    version: str
    read: Callable[[Counter[str]], Iterator[Document]]
    assets: tuple[str, ...] = ()
    """Fetched before anything is read."""
    is_endless: bool = False
    own: OwnText | None = None
    """The user's text that it is, if it is one."""


@dataclass(frozen=True)
class Plan:
    """All that the shards of a domain depend on."""

    name: str
    sources: Mapping[str, Source]
    limit_bytes: int | None
    fim: Fim
    tokenizer: str
    """Hash of its files."""
    dtype: type[np.unsignedinteger[Any]]
    sampled: int | None = None
    """Seed of the sample that keeps the limit; without one, the first documents do."""

    @property
    def made_of(self) -> dict[str, Any]:
        """Write it for the name of the folder and the description inside."""
        sample = {} if self.sampled is None else {"sampled": self.sampled}
        return {
            "format": FORMAT,
            **sample,
            "domain": self.name,
            "sources": {key: source.version for key, source in self.sources.items()},
            "limit_bytes": self.limit_bytes,
            "fim": asdict(self.fim),
            "tokenizer": self.tokenizer,
        }


@dataclass(frozen=True)
class PreparedData:
    """The tokenized domains of a mix."""

    domains: dict[str, DomainShards]
    shares: dict[str, float]
    """Share of the training tokens of each domain; their sum is 1."""
    token_bytes: NDArray[np.int64]
    """UTF-8 bytes of the text of each id; 0 for special tokens."""

    @property
    def vocab_size(self) -> int:
        """Count the ids that can occur."""
        return len(self.token_bytes)

    @property
    def fingerprint(self) -> str:
        """Name everything that the batches depend on, the seed and the shape of a batch aside."""
        names = {name: (d.fingerprint, self.shares[name]) for name, d in self.domains.items()}
        return digest(names)

    def predicted_bytes(self, ids_BT: NDArray[np.int64], documents_BT: NDArray[np.int64]) -> int:
        """Count the bytes of all tokens that have a predecessor in their document and row."""
        follows = (documents_BT[:, 1:] == documents_BT[:, :-1]) & (documents_BT[:, 1:] >= 0)
        return int(self.token_bytes[ids_BT[:, 1:]][follows].sum())


def prepare(config: DataConfig, tokenizer: Tokenizer) -> PreparedData:
    """Tokenize what the mix needs, or find it done; says on stderr what it does."""
    shares = config.resolved_mix.shares
    sources = {name: _sources(name, config) for name in shares}
    tokenizer_name = tokenizer_digest(tokenizer)
    domains: dict[str, DomainShards] = {}
    with EncodingPool(tokenizer, config.resolved_processes) as pool:
        # What is made as it is read comes last: the others say how much of it the mix needs.
        for name in sorted(shares, key=lambda name: _is_endless(sources[name])):
            limit = config.own_megabytes if name == OWN else config.domain_megabytes
            if limit is not None and _is_endless(sources[name]) and domains:
                limit = min(limit, _needed(shares, domains, name) / MEGABYTE)
            plan = Plan(
                name=name,
                sources=sources[name],
                limit_bytes=None if limit is None else int(limit * MEGABYTE),
                fim=_fim(name, config),
                tokenizer=tokenizer_name,
                dtype=id_type(tokenizer.vocab_size),
                sampled=_sample_seed(config) if name == OWN else None,
            )
            domains[name] = _domain(plan, pool)
    return PreparedData(domains, shares, token_bytes(tokenizer))


def token_bytes(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """List the bytes of text that each id stands for; special tokens stand for none."""
    return np.array(
        [
            0 if token_id in tokenizer.special_ids else _size(tokenizer, token_id)
            for token_id in range(tokenizer.vocab_size)
        ],
        dtype=np.int64,
    )


def _size(tokenizer: Tokenizer, token_id: int) -> int:
    try:
        return len(tokenizer.id_to_bytes(token_id))
    except ValueError:  # a vocabulary may leave ids out, which then never occur
        return 0


def _sources(domain: str, config: DataConfig) -> dict[str, Source]:
    if domain != OWN:
        return {
            name: _source(corpus, config.left_out(domain))
            for name, corpus in CORPORA.items()
            if corpus.domain == domain
        }
    return {name: _own_source(name, config) for name in config.own}


def _own_source(name: str, config: DataConfig) -> Source:
    """Read own text; of the hub, where not all is wanted, shuffled."""
    limited = config.own_megabytes is not None
    own = OwnText(name, config.column, shuffled=config.own_seed if limited else None)
    version = _own_version(own)
    if own.is_of_the_hub and limited:
        version += f" shuffled {config.own_seed}"
    return Source(version, own.read, own=own)


def _sample_seed(config: DataConfig) -> int | None:
    """Return the seed of a sample of files; the hub's text is shuffled instead."""
    is_sampled = config.own_megabytes is not None and not config.own[0].startswith(HUB)
    return config.own_seed if is_sampled else None


def _source(corpus: Corpus, left_out: tuple[str, ...]) -> Source:
    if not left_out:
        return Source(corpus.version, partial(documents, corpus), corpus.assets, corpus.endless)
    version = f"{corpus.version} without {' '.join(left_out)}"
    return Source(version, lambda skipped: mathematics(without=left_out), is_endless=True)


def _own_version(own: OwnText) -> str:
    """Name what own text depends on: its files' sizes and times; of the hub, the name alone."""
    if own.is_of_the_hub:
        return f"{own.name} {own.column}"
    return digest([READING, own.column, file_stats(own_files(own.name))])


def _is_endless(sources: Mapping[str, Source]) -> bool:
    return all(source.is_endless for source in sources.values())


def _needed(shares: Mapping[str, float], domains: Mapping[str, DomainShards], name: str) -> float:
    """Say how many bytes have the ratio of the shares to what the other domains hold."""
    others = sum(split.counts.bytes for d in domains.values() for split in (d.train, d.validation))
    wanted = others * shares[name] / sum(shares[other] for other in domains)
    return -(-wanted // MEGABYTE) * MEGABYTE


def _fim(domain: str, config: DataConfig) -> Fim:
    """Fill in the middle only where code can be, so that other shards do not depend on it."""
    if domain not in ("code", OWN):
        return Fim()
    return Fim(config.resolved_fim_rate, config.fim_spm_share)


def _domain(plan: Plan, pool: EncodingPool) -> DomainShards:
    """Find the shards of a domain, or make them."""

    def make(unfinished: Path) -> None:
        for source in plan.sources.values():
            for asset in source.assets:
                fetch(asset)
        _say_what_files_are(plan)
        skipped: Counter[str] = Counter()
        chosen = with_tails(_chosen(plan, skipped))
        counts = write_shards(unfinished, plan.name, pool.encode(chosen, plan.fim))
        if not any(split.documents for split in counts.values()):
            reasons = ", ".join(f"{count:,} {why}" for why, count in skipped.items())
            raise DataError(
                f"There is no text in {', '.join(plan.sources)}. Left out: {reasons or 'nothing'}."
            )
        describe(unfinished, counts, plan.dtype, skipped, plan.made_of)

    return open_shards(made_once(plan.name, plan.made_of, make), plan.name)


def _chosen(plan: Plan, skipped: Counter[str]) -> Iterator[Document]:
    """Yield the documents of a domain within its limit."""

    def read(skipped: Counter[str], limit: float) -> Iterator[Document]:
        streams = {key: source.read(skipped) for key, source in plan.sources.items()}
        return choose(streams, limit, skipped)

    if plan.limit_bytes is None or plan.sampled is None:
        return read(skipped, math.inf if plan.limit_bytes is None else plan.limit_bytes)
    sample = draw_sample(read(Counter(), math.inf), plan.limit_bytes, plan.sampled)
    _say(
        f"Of {sample.total_bytes / MEGABYTE:,.1f} MB of text in {sample.total:,} documents "
        f"{sample.taken_bytes / MEGABYTE:,.1f} MB in {sample.taken:,} are taken: a random sample "
        f"of all of it (seed {sample.seed})."
    )
    return sample.of(read(skipped, math.inf), skipped)


def _say_what_files_are(plan: Plan) -> None:
    """Say what each file of the user's was taken for."""
    for source in plan.sources.values():
        if source.own is not None and not source.own.is_of_the_hub:
            for line in described(source.own.files):
                _say(line)


def _say(line: str) -> None:
    Console(stderr=True).print(line, highlight=False, markup=False, soft_wrap=True)
