import errno
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.data.made import make_data, use_corpora
from ziphius.core.errors import OutputError
from ziphius.data import prepare as module
from ziphius.data import shards
from ziphius.data.config import DataConfig
from ziphius.data.corpora import CORPORA
from ziphius.data.document import Document, is_held_out
from ziphius.data.errors import DataError
from ziphius.data.loader import MixLoader
from ziphius.data.mathematics import EXERCISES
from ziphius.data.prepare import PreparedData, prepare, token_bytes
from ziphius.text.special import EOS, FIM_BEGIN
from ziphius.text.tokenizer import Tokenizer

DOMAINS = ("general", "chinese", "books", "code")


def texts(count: int = 200) -> dict[str, list[str]]:
    return {
        domain: [f"{domain} {n}: " + "and so on " * (n % 7) for n in range(count)]
        for domain in DOMAINS
    }


def config(**settings: object) -> DataConfig:
    return DataConfig(processes=0, **settings)


def documents_of(data: PreparedData, tokenizer: Tokenizer, domain: str, split: str) -> set[str]:
    found = getattr(data.domains[domain], split)
    return {
        tokenizer.decode(found.tokens(n, 0, length).tolist(), skip_special=True)
        for n, length in enumerate(found.lengths_N.tolist())
    }


def test_every_document_is_in_one_split(
    cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_corpora(monkeypatch, made := texts(2_000))
    data = prepare(config(fim_rate=0.0), tokenizer)
    for domain in DOMAINS:
        train, validation = (
            documents_of(data, tokenizer, domain, split) for split in ("train", "validation")
        )
        assert train | validation == set(made[domain])
        assert not train & validation
        held_out = {
            text
            for n, text in enumerate(made[domain])
            if is_held_out(Document(f"{domain}/{n}", text))
        }
        assert held_out <= validation
    assert data.shares == pytest.approx({"general": 0.4, "chinese": 0.2, "books": 0.3, "code": 0.1})


def test_a_second_time_nothing_is_read(
    cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = use_corpora(monkeypatch, texts())
    first = prepare(config(), tokenizer)
    assert sorted(reads) == sorted(DOMAINS)
    again = prepare(config(), tokenizer)
    assert sorted(reads) == sorted(DOMAINS)
    assert again.fingerprint == first.fingerprint


def test_assets_are_not_needed_once_they_are_tokenized(
    cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_corpora(monkeypatch, texts(20))
    for name, corpus in module.CORPORA.items():
        monkeypatch.setitem(module.CORPORA, name, replace(corpus, assets=("chitchat",)))
    fetched: list[str] = []
    monkeypatch.setattr(module, "fetch", fetched.append)
    prepare(config(), tokenizer)
    assert fetched == ["chitchat"] * 4
    prepare(config(), tokenizer)
    assert fetched == ["chitchat"] * 4


@pytest.mark.parametrize(
    ("settings", "made_anew"),
    [({"fim_rate": 0.7}, ["code"]), ({"domain_megabytes": 0.001}, [*DOMAINS])],
)
def test_what_depends_on_a_setting_is_made_anew(
    cache: Path,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, float],
    made_anew: Sequence[str],
) -> None:
    reads = use_corpora(monkeypatch, texts())
    first = prepare(config(), tokenizer)
    reads.clear()
    second = prepare(config(**settings), tokenizer)
    assert sorted(reads) == sorted(made_anew)
    assert second.fingerprint != first.fingerprint


def test_another_vocabulary_makes_everything_anew(
    cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = use_corpora(monkeypatch, texts(20))
    prepare(config(), tokenizer)
    prepare(config(), tokenizer.with_chat_format("deepseek-v3"))
    assert len(reads) == 8


def test_mixes_share_their_domains(
    cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = use_corpora(monkeypatch, texts())
    prepare(config(mix="v2", fim_rate=0.0), tokenizer)
    prepare(config(mix="coder", fim_rate=0.0), tokenizer)
    assert len(reads) == 4


def test_mathematics_is_made_as_the_mix_needs_it(
    cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_corpora(monkeypatch, {d: [f"{d} {n} " * 20 for n in range(300)] for d in DOMAINS})
    monkeypatch.setitem(module.CORPORA, "mathematics", CORPORA["mathematics"])
    monkeypatch.setattr(module, "MEGABYTE", 10_000)
    data = prepare(config(mix="r1"), tokenizer)
    sizes = {n: d.train.counts.bytes + d.validation.counts.bytes for n, d in data.domains.items()}
    share = sizes["mathematics"] / sum(sizes.values())
    assert 0.3 <= share < 0.33
    assert list(data.shares) == ["general", "chinese", "books", "code", "mathematics"]


def test_mathematics_that_leaves_exercises_out_is_other_text(
    cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = use_corpora(monkeypatch, {d: [f"{d} {n} " * 20 for n in range(300)] for d in DOMAINS})
    monkeypatch.setitem(module.CORPORA, "mathematics", CORPORA["mathematics"])
    monkeypatch.setattr(module, "MEGABYTE", 10_000)
    names = sorted(set(EXERCISES) - {"equation"})
    orders = ((), ("equation", "mean"), ("mean", "equation", "mean"), tuple(names))
    whole, some, same, only = (
        prepare(config(mix="r1", mathematics_without=names), tokenizer) for names in orders
    )
    assert len({data.fingerprint for data in (whole, some, only)}) == 3
    assert some.fingerprint == same.fingerprint
    assert sorted(reads) == sorted(DOMAINS)
    texts = documents_of(only, tokenizer, "mathematics", "train")
    assert all("x = " in text for text in texts)
    assert not [t for t in documents_of(some, tokenizer, "mathematics", "train") if "x = " in t]


def test_code_is_filled_in_the_middle_and_nothing_else(
    cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_corpora(monkeypatch, texts())
    data = prepare(config(fim_rate=1.0), tokenizer)
    begin = tokenizer.token_id(FIM_BEGIN)
    for domain in DOMAINS:
        split = data.domains[domain].train
        firsts = [split.tokens(n, 1, 1)[0] for n in range(len(split.lengths_N))]
        assert all((first == begin) == (domain == "code") for first in firsts)


def test_every_document_ends(
    cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_corpora(monkeypatch, texts(30))
    split = prepare(config(), tokenizer).domains["books"].train
    for n, length in enumerate(split.lengths_N.tolist()):
        ids = split.tokens(n, 0, length).tolist()
        assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.token_id(EOS))


def test_own_text_and_what_was_left_out(cache: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number}.txt").write_text(f"text {number % 59}")
    (folder / "bad.txt").write_bytes(b"\xff")
    data = prepare(config(own=(str(folder),)), tokenizer)
    own = data.domains["own"]
    assert own.skipped == {"duplicate": 1, "not UTF-8": 1}
    assert own.train.counts.documents + own.validation.counts.documents == 59
    assert data.shares == {"own": 1.0}


def test_own_text_is_taken_whole_and_a_limit_is_a_sample_of_it(
    cache: Path, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.ndjson"
    rows = [{"text": f"{n:04d} " + "and so on " * 9} for n in range(2_000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def numbers(**settings: object) -> set[int]:
        data = prepare(config(own=(str(path),), **settings), tokenizer)
        splits = (documents_of(data, tokenizer, "own", split) for split in ("train", "validation"))
        return {int(text[:4]) for split in splits for text in split}

    assert numbers() == set(range(2_000))
    assert f"{path}: read as JSON Lines" in capsys.readouterr().err
    few, other = numbers(own_megabytes=0.02), numbers(own_megabytes=0.02, own_seed=1)
    assert (
        "Of 0.2 MB of text in 2,000 documents 0.0 MB in 210 are taken: a random sample of all"
        in (capsys.readouterr().err)
    )
    assert len(few) == len(other) == 210
    assert few != other
    assert min(few) < 50
    assert max(few) > 1_950
    assert data_of(path, tokenizer).skipped == {"not in the sample": 1_790}


def data_of(path: Path, tokenizer: Tokenizer) -> shards.DomainShards:
    return prepare(config(own=(str(path),), own_megabytes=0.02), tokenizer).domains["own"]


def test_own_text_that_changed_is_read_again(
    cache: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one line\n" * 100)
    first = prepare(config(own=(str(path),)), tokenizer)
    path.write_text("one line\n" * 100 + "more\n" * 100)
    second = prepare(config(own=(str(path),)), tokenizer)
    sizes = [data.domains["own"].train.counts.bytes for data in (first, second)]
    assert sizes[1] > sizes[0]
    # As long as before, but written later.
    os.utime(path, (0, 0))
    third = prepare(config(own=(str(path),)), tokenizer)
    assert len({data.fingerprint for data in (first, second, third)}) == 3


def test_a_full_disk_leaves_nothing_half(
    cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_corpora(monkeypatch, texts())
    real, calls = np.save, []

    def full(path: Path, array: np.ndarray) -> None:
        calls.append(path)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, array)

    monkeypatch.setattr(shards.np, "save", full)
    with pytest.raises(OutputError, match=r"No space left on device. Nothing was kept"):
        prepare(config(), tokenizer)
    assert [path.name.partition("-")[0] for path in (cache / "tokens").iterdir()] == ["general"]
    monkeypatch.undo()
    monkeypatch.setenv("ZIPHIUS_CACHE", str(cache))
    reads = use_corpora(monkeypatch, texts())
    prepare(config(), tokenizer)
    assert "general" not in reads


def test_another_process_may_be_faster(
    cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_corpora(monkeypatch, texts(20))
    prepare(config(), tokenizer)
    moved = tmp_path / "moved"
    (cache / "tokens").rename(moved)
    real = module.write_shards

    def late(folder: Path, name: str, encoded: Any) -> Any:
        counts = real(folder, name, encoded)
        for finished in moved.glob(f"{name}-*"):
            finished.rename(folder.parent / finished.name)
        return counts

    monkeypatch.setattr(module, "write_shards", late)
    assert prepare(config(), tokenizer).domains["books"].train.counts.documents > 0
    assert not [path for path in (cache / "tokens").iterdir() if path.name.startswith(".")]


def test_bytes_of_tokens_are_those_of_the_text(
    cache: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_corpora(
        monkeypatch,
        {d: ["h\u00e9llo \u4e16\u754c" * 9 + str(n) for n in range(80)] for d in DOMAINS},
    )
    data = prepare(config(fim_rate=1.0), tokenizer)
    for domain in data.domains.values():
        split = domain.train
        ids = np.concatenate([split.tokens(n, 0, k) for n, k in enumerate(split.lengths_N)])
        assert data.token_bytes[ids].sum() == split.counts.bytes
    assert token_bytes(tokenizer)[tokenizer.token_id(EOS)] == 0


def test_predicted_bytes_leave_out_first_tokens_and_padding(tmp_path: Path) -> None:
    data = make_data(tmp_path, {"general": [50]})
    data.token_bytes[:10] = np.arange(10)
    ids_BT = np.array([[1, 2, 3, 4, 5, 6]])
    documents_BT = np.array([[0, 0, 1, 1, -1, -1]])
    assert data.predicted_bytes(ids_BT, documents_BT) == 2 + 4


def test_a_fingerprint_knows_the_shares(tmp_path: Path) -> None:
    one = make_data(tmp_path / "a", {"general": [50], "code": [50]})
    other = PreparedData(one.domains, {"general": 0.4, "code": 0.6}, one.token_bytes)
    assert one.fingerprint != other.fingerprint


def test_batches_are_the_same_for_any_number_of_processes(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_corpora(monkeypatch, texts())
    found = []
    for processes in (0, 1):
        monkeypatch.setenv("ZIPHIUS_CACHE", str(tmp_path / str(processes)))
        data = prepare(DataConfig(mix="coder", processes=processes), tokenizer)
        loader = MixLoader(data, seq_len=32, seed=3, rows=16, micro_batch_size=16)
        found.append(loader.batch(5, 0, 0, 1))
    assert found[0].ids_BT.tolist() == found[1].ids_BT.tolist()
    assert found[0].bytes_count == found[1].bytes_count > 0


def test_own_files_without_text_are_counted_by_reason(
    cache: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"\xff\xfe\xff")
    (folder / "b.txt").write_text(" \n")
    with pytest.raises(DataError, match=r"no text in .*own\. Left out: ") as error:
        prepare(config(own=(str(folder),)), tokenizer)
    assert {"1 empty", "1 not UTF-8"} == set(
        str(error.value).split(": ")[1].rstrip(".").split(", ")
    )
    assert not list((cache / "tokens").glob("own-*"))
