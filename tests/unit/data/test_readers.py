import builtins
import bz2
import gzip
import importlib.util
import json
import lzma
import os
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ziphius.core.errors import MissingExtraError
from ziphius.data import texts as texts_module
from ziphius.data.errors import DataError
from ziphius.data.readers import OwnText, described, read_own

needs_parquet = pytest.mark.skipif(
    importlib.util.find_spec("pyarrow") is None, reason="needs the extra data"
)


def read(name: str | Path, column: str = "text") -> tuple[dict[str, str], dict[str, int]]:
    """Read own text; return texts by key, and what was skipped."""
    skipped: Counter[str] = Counter()
    texts = {document.key: document.text for document in read_own(str(name), column, skipped)}
    return texts, dict(skipped)


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_folder_is_read_file_by_file(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "deep" / "b.md").write_bytes(b"\xef\xbb\xbfsecond\r\nline")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / ".hidden").write_text("no")
    texts, skipped = read(tmp_path)
    assert sorted(texts.values()) == ["first", "second\nline"]
    assert skipped == {"not UTF-8": 1, "empty": 1}


def test_files_of_code_are_known_by_their_names(tmp_path: Path) -> None:
    for name in ("a.py", "a.cpp", "a.txt"):
        (tmp_path / name).write_text(name)
    found = {d.text: d.is_code for d in read_own(str(tmp_path), "text", Counter())}
    assert found == {"a.py": True, "a.cpp": True, "a.txt": False}


def test_the_order_of_files_is_that_of_no_folder(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for number in range(20):
            (tmp_path / folder / f"{number}.txt").write_text(folder)
    order = "".join(d.text for d in read_own(str(tmp_path), "text", Counter()))
    assert sorted(order) == ["a"] * 20 + ["b"] * 20
    assert "ab" in order[:20]
    assert "ba" in order[:20]


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    rows = b'{"body": "one"}\n\n{"body": ""}\n{"body": null}\n{"body": "\xff"}\n{"body": "two"}\n'
    path = tmp_path / name
    path.write_bytes(gzip.compress(rows) if name.endswith(".gz") else rows)
    texts, skipped = read(path, "body")
    assert list(texts.values()) == ["one", "two"]
    assert skipped == {"empty": 2, "not UTF-8": 1}


def test_a_missing_column_names_those_there_are(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", {"title": "a", "body": "b"})
    with pytest.raises(DataError, match=r"row 1: there is no column 'text'. It has: title, body"):
        read(path)


def test_a_column_that_is_no_text(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", {"text": "a"}, {"text": 5})
    with pytest.raises(DataError, match=r"row 2: the column 'text' holds int, not text"):
        read(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is no valid JSON"),
        ("[1]", "line 2 holds no JSON object"),
        ("[" * 200_000, "line 2 is no valid"),
    ],
)
def test_a_line_that_is_no_object(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        read(path)


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no .*absent.txt. Give a file, a folder"):
        read(tmp_path / "absent.txt")


def test_a_folder_that_is_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no files"):
        read(tmp_path)


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.txt").write_text("x")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"a.txt cannot be read: Permission denied"):
        read(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_gzip_file(tmp_path: Path, damage: str) -> None:
    whole = gzip.compress(b"".join(b'{"text": "%d"}\n' % (7**i) for i in range(200)))
    middle = len(whole) // 2
    contents = {
        "cut": whole[:middle],
        "changed": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
    }
    (tmp_path / "a.jsonl.gz").write_bytes(contents[damage])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz is no whole compressed|no valid JSON"):
        read(tmp_path)


def test_json_lines_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.jsonl").write_text("{}")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"a.jsonl cannot be read: Permission denied"):
        read(tmp_path)


def test_a_folder_within_that_cannot_be_read_is_not_left_out_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.txt").write_text("x")
    listed = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("inner"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"folder .*inner cannot be read: Permission denied"):
        read(tmp_path)


ROWS = "".join(json.dumps({"text": f"Whale {i} dives.", "n": i}) + "\n" for i in range(3))
WHALES = ["Whale 0 dives.", "Whale 1 dives.", "Whale 2 dives."]


@pytest.mark.parametrize(
    "name",
    [
        "a.ndjson",
        "a.JSONL",
        "a.jsonlines",
        "a.json",
        "a.ipynb",
        "a.txt",
        "a",
        "a.jsonl.zst",
        "a.gz",
    ],
)
@pytest.mark.parametrize("mark", ["", "\ufeff", "\n \n"])
def test_rows_are_known_by_what_they_say(tmp_path: Path, name: str, mark: str) -> None:
    (tmp_path / name).write_text(mark + ROWS, encoding="utf-8")
    assert list(read(tmp_path / name)[0].values()) == WHALES


@pytest.mark.parametrize("form", ["list", "spread out", "one", "csv", "tsv"])
def test_other_rows(tmp_path: Path, form: str) -> None:
    rows = [json.loads(line) for line in ROWS.splitlines()]
    path = tmp_path / f"a.{form if form.endswith('sv') else 'json'}"
    mark = "\t" if form == "tsv" else ","
    contents = {
        "list": json.dumps(rows),
        "spread out": json.dumps(rows, indent=1),
        "one": json.dumps(rows[0], indent=1),
    }
    lines = [f"n{mark}text", *(f'{row["n"]}{mark}"{row["text"]}"' for row in rows)]
    path.write_text(contents.get(form, "\r\n".join(lines)))
    assert list(read(path)[0].values()) == (WHALES[:1] if form == "one" else WHALES)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, None])
@pytest.mark.parametrize(("content", "texts"), [(ROWS, WHALES), ("A whale.\n", ["A whale.\n"])])
def test_compressed_files(
    tmp_path: Path, pack: Callable[[bytes], bytes] | None, content: str, texts: list[str]
) -> None:
    if pack is None:
        pyarrow = pytest.importorskip("pyarrow")
        packed = pyarrow.compress(content.encode(), codec="zstd", asbytes=True)
    else:
        packed = pack(content.encode())
    (tmp_path / "a.packed").write_bytes(packed)
    assert list(read(tmp_path)[0].values()) == texts


def test_text_that_looks_like_json_is_text(tmp_path: Path) -> None:
    texts = ["[1] A footnote.\n", "{curly} words\n[and more]\n", "[not, json]\nat all\n"]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    assert sorted(read(tmp_path)[0].values()) == sorted(texts)


def test_a_notebook_is_its_cells(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Whales\n", "They dive."]},
        {"cell_type": "code", "source": "print(1)", "outputs": [{"text": "1"}]},
    ]
    for name, indent in (("a.ipynb", 1), ("b.ipynb", None)):
        (tmp_path / name).write_text(json.dumps({"cells": cells, "nbformat": 4}, indent=indent))
    assert list(read(tmp_path)[0].values()) == ["# Whales\nThey dive.\n\nprint(1)\n"] * 2


@needs_parquet
@pytest.mark.parametrize("form", ["parquet", "file", "stream"])
def test_what_lies_beside_rows_is_not_the_data(tmp_path: Path, form: str) -> None:
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "data").mkdir()
    table = pyarrow.table({"text": ["Whale one.", "Whale two."]})
    path = tmp_path / "data" / "train-00000-of-00001"
    if form == "parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        new = pyarrow.ipc.new_file if form == "file" else pyarrow.ipc.new_stream
        with new(path, table.schema) as writer:
            writer.write_table(table)
    beside = ("README.md", "LICENSE", "load.py", "CITATION.cff", "requirements.txt", "run.sh")
    for name in beside:
        (tmp_path / name).write_text("no text of the data\n")
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / "labels.csv").write_text("n,label\n1,whale\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (tmp_path / "paper.pdf").write_bytes(b"%PDF-1.5\n")
    texts, skipped = read(tmp_path)
    assert list(texts.values()) == ["Whale one.", "Whale two."]
    assert skipped == {
        "beside rows": 6,
        "JSON without 'text'": 1,
        "CSV without 'text'": 1,
        "not UTF-8": 1,
        "binary": 1,
    }


def test_text_without_rows_is_read_but_not_what_is_about_it(tmp_path: Path) -> None:
    names = ("README", "Readme.de.md", "LICENSE-MIT", "licence.txt", "COPYING", "NOTICE.md")
    for name in (*names, "noticeable.txt", "a.txt"):
        (tmp_path / name).write_text(name)
    write_lines(tmp_path / "settings.json", {"name": "notes"})
    (tmp_path / "index.csv").write_text("name,size\na.txt,5\n")
    texts, skipped = read(tmp_path)
    assert sorted(texts.values()) == ["a.txt", "noticeable.txt"]
    assert skipped == {"about the data": 6, "JSON without 'text'": 1, "CSV without 'text'": 1}
    assert list(read(tmp_path / "README")[0].values()) == ["README"]


def test_rows_of_a_folder_that_lack_the_column_are_an_error(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", {"text": "one"})
    write_lines(tmp_path / "b.jsonl", {"body": "two"})
    (tmp_path / "c.txt").write_text("three")
    with pytest.raises(DataError, match=r"b.jsonl, row 1: there is no column 'text'. It has: body"):
        read(tmp_path)
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(DataError, match=r"b.jsonl, row 1: there is no column 'text'. It has: body"):
        read(tmp_path)


def test_json_without_rows_that_is_named_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1, 2]")
    with pytest.raises(DataError, match=r"a.json is neither JSON Lines nor a JSON list of objects"):
        read(tmp_path / "a.json")


def test_a_pointer_is_not_the_data(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    )
    with pytest.raises(DataError, match=r"a.parquet is a pointer of Git LFS and not the data"):
        read(tmp_path)


@pytest.mark.parametrize("lines", [True, False])
def test_a_long_file_is_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: bool
) -> None:
    monkeypatch.setattr(texts_module, "LONGEST_PIECE", 1_000)
    text = "".join(f"\u9be8 {n} \u00e9" + "\n" * lines for n in range(600))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    pieces = list(read(tmp_path)[0].values())
    assert "".join(pieces) == text
    assert len(pieces) == -(-len(text.encode()) // 1_000)
    assert all(piece.endswith("\n") for piece in pieces) == lines


def test_files_are_described_one_by_one(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", {"text": "one"})
    (tmp_path / "README.md").write_text("card")
    assert list(described(OwnText(str(tmp_path), "text").files)) == [
        f"{tmp_path / 'README.md'}: left out: beside rows",
        f"{tmp_path / 'a.jsonl'}: read as JSON Lines",
    ]
    for number in range(30):
        write_lines(tmp_path / f"{number}.jsonl", {"text": str(number)})
    lines = list(described(OwnText(str(tmp_path), "text").files))
    assert len(lines) == 21
    assert lines[-1] == "and 12 more: 12 JSON Lines"


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("at home")
    assert list(read("~/a.txt")[0].values()) == ["at home"]


@needs_parquet
def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "x.parquet"
    table = pyarrow.table({"body": ["one", "", None, "two"], "other": [1, 2, 3, 4]})
    pyarrow.parquet.write_table(table, path)
    texts, skipped = read(path, "body")
    assert list(texts.values()) == ["one", "two"]
    assert skipped == {"empty": 2}
    with pytest.raises(DataError, match=r"there is no column 'text'. It has: body, other"):
        read(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"x.parquet cannot be read as parquet"):
        read(path, "body")


@pytest.mark.parametrize("name", ["x.parquet", "hf:owner/name"])
def test_what_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real = builtins.__import__

    def without(module: str, *args: Any) -> Any:
        if module.split(".")[0] in ("pyarrow", "datasets"):
            raise ImportError(module)
        return real(module, *args)

    (tmp_path / "x.parquet").write_bytes(b"")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'ziphius\[data\]'"):
        read(name if name.startswith("hf:") else tmp_path / name)


def fake_hub(monkeypatch: pytest.MonkeyPatch, rows: Any) -> list[tuple[Any, ...]]:
    """Put a module in the place of datasets whose load_dataset gives these rows."""
    calls: list[tuple[Any, ...]] = []

    def load_dataset(name: str, **options: Any) -> Any:
        calls.append((name, options))
        return rows()

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


def test_a_data_set_of_the_hub_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_hub(monkeypatch, lambda: iter([{"text": "one"}, {"text": "two"}]))
    assert list(read("hf:owner/name")[0].values()) == ["one", "two"]
    assert list(read("hf:owner/name:test")[0].values()) == ["one", "two"]
    assert calls == [
        ("owner/name", {"split": split, "streaming": True}) for split in ("train", "test")
    ]


@needs_parquet
def test_the_real_library_streams_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = tmp_path / "set"
    folder.mkdir()
    write_lines(folder / "train.jsonl", {"text": "one"}, {"text": ""}, {"text": "two"})
    texts, skipped = read(f"hf:{folder}")
    assert list(texts.values()) == ["one", "two"]
    assert skipped == {"empty": 1}


def test_a_part_of_the_hub_is_shuffled_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Rows(list[dict[str, str]]):
        def shuffle(self, seed: int, buffer_size: int) -> list[dict[str, str]]:
            assert buffer_size > 1_000
            return self[::-1] if seed == 5 else self

    fake_hub(monkeypatch, lambda: Rows([{"text": "one"}, {"text": "two"}]))
    documents = OwnText("hf:owner/name", "text", shuffled=5).read(Counter())
    assert [document.text for document in documents] == ["two", "one"]


def test_no_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Iterator[dict[str, str]]:
        raise ConnectionError("no route to host")

    fake_hub(monkeypatch, rows)
    with pytest.raises(
        DataError, match=r"name cannot be streamed .*no route to host.* give a local folder"
    ):
        read("hf:owner/name")
