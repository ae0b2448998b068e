"""The same rows from every kind of file that people have them in."""

import bz2
import gzip
import json
import lzma
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest

from ziphius.data.chat_rows import COLUMNS
from ziphius.data.errors import DataError
from ziphius.data.json_rows import BLOCK
from ziphius.data.row_files import conversation_files, conversation_rows, without_padding

ROWS = [{"messages": [{"role": "user", "content": f"{i}, \u4f60\U0001f40b"}]} for i in range(5)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
PRETTY = json.dumps(ROWS, indent=1, ensure_ascii=False)


def zstd(data: bytes) -> bytes:
    packed: bytes = pyarrow.compress(data, codec="zstd", asbytes=True)
    return packed


def read(path: Path) -> list[Any]:
    rows = list(conversation_rows(path, COLUMNS))
    assert all(row.problem is None for row in rows)
    return [row.data for row in rows]


KINDS: dict[str, bytes] = {
    "lines.jsonl": LINES.encode(),
    "lines.JSONL": LINES.encode(),
    "lines.ndjson": LINES.replace("\n", "\r\n\r\n").encode(),
    "lines.json": LINES.rstrip().encode(),
    "lines": LINES.encode(),
    "mark.jsonl": b"\xef\xbb\xbf" + LINES.encode(),
    "utf16.jsonl": LINES.encode("utf-16"),
    "big.jsonl": b"\xfe\xff" + LINES.encode("utf-16-be"),
    "unmarked.jsonl": LINES.encode("utf-16-le"),
    "utf32.jsonl": LINES.encode("utf-32"),
    "array.json": json.dumps(ROWS).encode(),
    "array.jsonl": b"\n " + json.dumps(ROWS).encode() + b"\n",
    "pretty.json": PRETTY.encode(),
    "pretty16.json": PRETTY.encode("utf-16"),
    "marked.json": b"\xef\xbb\xbf" + PRETTY.encode(),
    "several.json": "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(),
    "lines.jsonl.gz": gzip.compress(LINES.encode()),
    "LINES.JSONL.GZ": gzip.compress(LINES.encode()),
    "parts.jsonl.gz": b"".join(gzip.compress(line.encode()) for line in LINES.splitlines(True)),
    "array.json.gz": gzip.compress(PRETTY.encode()),
    "lines.jsonl.bz2": bz2.compress(LINES.encode()),
    "lines.jsonl.xz": lzma.compress(LINES.encode()),
    "lines.jsonl.zst": zstd(LINES.encode()),
    "array.json.zst": zstd(PRETTY.encode()),
    "misnamed.jsonl": gzip.compress(LINES.encode()),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_has_the_same_rows(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(KINDS[name])
    assert read(tmp_path / name) == ROWS


def test_tables_have_the_same_rows(tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([{**row, "note": "x"} for row in ROWS])
    pyarrow.parquet.write_table(table, tmp_path / "rows.PARQUET")
    with (
        (tmp_path / "rows.arrow").open("wb") as file,
        pyarrow.ipc.new_stream(file, table.schema) as writer,
    ):
        writer.write_table(table.drop(["note"]).append_column("note", table["note"]))
    for name in ("rows.PARQUET", "rows.arrow"):
        assert read(tmp_path / name) == ROWS
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), tmp_path / "other.parquet")
    assert read(tmp_path / "other.parquet") == [{"body": "x"}]


def test_what_a_table_puts_into_every_row_is_taken_out_again() -> None:
    padded = {"a": None, "b": [{"c": None, "d": 0}, None], "e": ""}
    assert without_padding(padded) == {"b": [{"d": 0}, None], "e": ""}


def test_a_folder_is_its_files_of_rows_and_not_what_lies_beside_them(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text(LINES)
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(PRETTY.encode()))
    for name in ("README.md", "dataset_info.json", "state.json", ".hidden.jsonl", "notes.txt"):
        (tmp_path / name).write_text("{")
    assert sorted(path.name for path in conversation_files(tmp_path)) == ["a.jsonl", "b.json.gz"]
    assert len(read(tmp_path)) == 10
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "README.md").write_text("rows")
    with pytest.raises(DataError, match=r"holds no conversations, only README\.md\. Name a file"):
        read(tmp_path / "other")


def test_rows_say_where_they_stand(tmp_path: Path) -> None:
    where = {}
    for name in ("lines.ndjson", "pretty.json", "several.json", "array.json"):
        (tmp_path / name).write_bytes(KINDS[name])
        rows = list(conversation_rows(tmp_path / name, COLUMNS))
        where[name] = rows[1].where.removeprefix(f"{tmp_path}/{name}, ")
    second = PRETTY[: PRETTY.index('"1, ')].count("\n")  # the line of its role
    assert where["pretty.json"] == f"line {second - 3}, entry 2"
    assert where["lines.ndjson"] == "line 3"
    assert where["several.json"] == f"line {len(json.dumps(ROWS[0], indent=2).splitlines()) + 1}"
    assert where["array.json"] == "line 1, entry 2"


def test_a_bad_line_is_a_row_with_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n\xff\n{"a": "\\ud800"}\n{"a": 2}')
    rows = list(conversation_rows(path, COLUMNS))
    assert [row.data for row in rows][::4] == [{"a": 1}, {"a": 2}]
    assert [row.problem and row.problem.split(":")[0] for row in rows] == [
        *(None, "no JSON", "no UTF-8.", None, None)
    ]
    path.write_bytes(b"[" * 100_000 + b"\n")
    with pytest.raises(DataError, match=r"rows\.jsonl, line 1: no JSON: nested too deeply"):
        list(conversation_rows(path, COLUMNS))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (PRETTY.encode()[:-30], r"rows\.json, line \d+: no JSON"),
        (b'[\n{"a": 1}\n', "line 3: the array is never closed"),
        (b'[{"a": 1}\n{"a": 2}]', "line 2: ',' must stand before"),
        (b'[\n{"a": 1},\n{"a": }]', "line 3: no JSON: Expecting value"),
        (b'[{"a": 1},]', "line 1: no JSON: "),
        (b'[{"a": 1}]\n[{"a": 2}]', "line 2: more follows after the end"),
        (b'[{"a": "\xff"}]', "Write the file as UTF-8"),
        (LINES.encode("utf-16")[:-21] + b"\x00\xd8", "is no utf-16: "),
        (gzip.compress(LINES.encode(), mtime=0)[:-9], "is no whole compressed file"),
        (gzip.compress(LINES.encode(), mtime=0)[:12] + bytes(20), "is no whole compressed file"),
        (lzma.compress(LINES.encode())[:-9], "is no whole compressed file"),
        (bz2.compress(LINES.encode())[:-9], "is no whole compressed file"),
        (zstd(LINES.encode())[:-9], "cannot be read|is no whole"),
        (b"PAR1" + bytes(50), "cannot be read"),
        (b"\xff\xff\xff\xff" + bytes(50), "cannot be read"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, data: bytes, problem: str) -> None:
    (tmp_path / "rows.json").write_bytes(data)
    with pytest.raises(DataError, match=problem) as caught:
        list(conversation_rows(tmp_path / "rows.json", COLUMNS))
    assert "rows.json" in str(caught.value)


def test_a_name_of_the_hub_says_how_to_have_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="hf download --repo-type dataset org/name --local-dir"):
        list(conversation_rows(Path("org/name"), COLUMNS))
    with pytest.raises(DataError, match=r"none\.jsonl cannot be read: No such file"):
        list(conversation_rows(tmp_path / "none.jsonl", COLUMNS))


@pytest.mark.parametrize("kind", ["lines", "array", "several"])
def test_memory_holds_a_block_and_not_the_file(tmp_path: Path, kind: str) -> None:
    row = json.dumps({"messages": ["x" * 2_000]}, indent=1 if kind == "several" else None)
    count = 40 * BLOCK // len(row)
    texts = {"lines": "\n", "array": ",", "several": "\n"}[kind].join([row] * count)
    path = tmp_path / "rows.json"
    path.write_text(f"[{texts}]" if kind == "array" else texts)
    tracemalloc.start()
    seen = sum(1 for _ in conversation_rows(path, COLUMNS))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == count
    assert peak < 12 * BLOCK


def test_a_row_longer_than_a_block_is_read(tmp_path: Path) -> None:
    rows = [{"a": "x" * (3 * BLOCK)}, {"a": '\\"' * BLOCK}, {"a": 1}]
    for text in (json.dumps(rows), "\n".join(map(json.dumps, rows))):
        (tmp_path / "rows.json").write_text(text)
        assert read(tmp_path / "rows.json") == rows
        (tmp_path / "rows.json.gz").write_bytes(gzip.compress(text.encode()))
        assert read(tmp_path / "rows.json.gz") == rows
