import builtins
import gzip
import importlib.util
import json
import os
import sys
import types
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ziphius.core.errors import MissingExtraError
from ziphius.data.errors import DataError
from ziphius.data.readers import read_own

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
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.txt").write_text("x")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"a.txt cannot be read: Permission denied"):
        read(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "changed", "plain text"])
def test_a_damaged_gzip_file(tmp_path: Path, damage: str) -> None:
    whole = gzip.compress(b"".join(b'{"text": "%d"}\n' % (7**i) for i in range(200)))
    middle = len(whole) // 2
    contents = {
        "cut": whole[:middle],
        "changed": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
        "plain text": b'{"text": "x"}\n',
    }
    (tmp_path / "a.jsonl.gz").write_bytes(contents[damage])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz is no whole gzip file|no valid JSON"):
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


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.txt.gz", "a.jsonl.zst"])
def test_other_formats_are_not_read_as_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('[{"text": "x"}]')
    with pytest.raises(DataError, match=rf"{name} is neither text, JSON Lines"):
        read(tmp_path / name)
    assert read(tmp_path) == ({}, {"other format": 1})


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


def test_no_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Iterator[dict[str, str]]:
        raise ConnectionError("no route to host")

    fake_hub(monkeypatch, rows)
    with pytest.raises(
        DataError, match=r"name cannot be streamed .*no route to host.* give a local folder"
    ):
        read("hf:owner/name")
