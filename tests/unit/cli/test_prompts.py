"""`cli/prompts.py`: prompts out of files as people have them, and what is wrong with a row."""

import gzip
import hashlib
import io
import json
import os
import threading
from pathlib import Path

import pytest

from ziphius.cli.prompts import PromptRow, read_prompts
from ziphius.core.errors import ConfigError
from ziphius.data.errors import DataError
from ziphius.text.chat import Message

ROWS = [
    {"id": "a", "prompt": "Hi", "answer": 3},
    {"prompt": [{"role": "user", "content": "Hi"}], "sampling_params": {"seed": 3}},
    {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]},
    {"prompt": "x", "adapter": "lora", "id": {"any": ["thing"]}},
]


def lines(rows: list) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def rows_of(path: Path, content: bytes) -> list[PromptRow]:
    path.write_bytes(content)
    return read_prompts(path).rows


def test_rows_have_prompts_or_messages_and_what_is_asked_of_them(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    where = [f"{path}, line {n}" for n in range(1, 5)]
    assert rows_of(path, lines(ROWS)) == [
        PromptRow(0, where[0], "Hi", name="a"),
        PromptRow(1, where[1], messages=(Message("user", "Hi"),), params={"seed": 3}),
        PromptRow(2, where[2], messages=(Message("system", "S"), Message("user", "Q"))),
        PromptRow(3, where[3], "x", name={"any": ["thing"]}, adapter="lora"),
    ]
    assert read_prompts(path).sha256 == hashlib.sha256(lines(ROWS)).hexdigest()


def test_ends_of_lines_marks_and_empty_lines_change_nothing(tmp_path: Path) -> None:
    plain = rows_of(tmp_path / "in.jsonl", lines(ROWS))
    dressed = b"\xef\xbb\xbf" + lines(ROWS).replace(b"\n", b"\r\n\r\n").rstrip()
    found = rows_of(tmp_path / "in.jsonl", dressed)
    assert [(row.text, row.messages) for row in found] == [
        (row.text, row.messages) for row in plain
    ]
    assert [row.where[-6:] for row in found] == ["line 1", "line 3", "line 5", "line 7"]
    assert [row.number for row in found] == list(range(4))


def test_what_a_file_is_shows_in_its_name_or_its_first_line(tmp_path: Path) -> None:
    assert rows_of(tmp_path / "a", lines(ROWS))[0].text == "Hi"
    assert rows_of(tmp_path / "a.jsonl.gz", gzip.compress(lines(ROWS)))[0].text == "Hi"
    assert rows_of(tmp_path / "a.json", json.dumps(ROWS, indent=1).encode())[3].text == "x"
    for text in ("[INST] hello", '"quoted"', "{not json", "3"):
        assert [row.text for row in rows_of(tmp_path / "a", f"{text}\nmore\n".encode())] == [
            text,
            "more",
        ]
    long = lines([{"prompt": "w " * 100_000}, {"prompt": "b"}])
    assert [len(row.text) for row in rows_of(tmp_path / "a", long)] == [200_000, 1]


def test_a_table_is_read_by_its_columns(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"id": [1, 2], "prompt": ["a", "b"], "solution": [3, 4]})
    parquet.write_table(table, tmp_path / "in.parquet")
    found = read_prompts(tmp_path / "in.parquet").rows
    assert [(row.name, row.text) for row in found] == [(1, "a"), (2, "b")]


def test_what_can_be_read_once_alone_is_read_once(tmp_path: Path, monkeypatch) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(lines(ROWS),))
    writer.start()
    assert len(read_prompts(pipe).rows) == 4
    writer.join()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines(ROWS))))
    found = read_prompts(Path("-"))
    assert found.rows[0].where == "standard input, line 1"
    assert found.sha256 == hashlib.sha256(lines(ROWS)).hexdigest()


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (b"b", "no JSON"),
        (b"\xff", "no UTF-8"),
        (b'{"prompt": "a"', "no JSON"),
        (b'"text"', "must be {"),
        (b'{"text": "a"}', "must be {"),
        (b'{"messages": []}', "must be {"),
        (b'{"prompt": 3}', "must be {"),
        (b'{"messages": [{"content": "a"}]}', "A message has no role"),
        (b'{"messages": [{"role": "user", "content": 3}]}', "The content of a message"),
        (b'{"messages": [{"role": "x", "content": ""}]}', "Unknown role 'x'"),
        (b'{"prompt": "a", "tools": [1]}', "have no tools"),
        (b'{"prompt": "a", "messages": []}', "has a prompt and messages"),
        (b'{"prompt": "a", "temperature": 1}', "has temperature beside the prompt"),
        (b'{"prompt": "a", "sampling_params": [1]}', "must be an object"),
        (b'{"prompt": "a", "adapter": 1}', "must be a name"),
        (b'{"prompt": "\\ud800"}', "half of a UTF-16 pair"),
    ],
)
def test_a_bad_row_is_told_in_its_place(tmp_path: Path, row: bytes, problem: str) -> None:
    path = tmp_path / "in.jsonl"
    first, bad, last = rows_of(path, b'{"prompt": "a"}\n' + row + b'\n{"prompt": "c"}\n')
    assert (bad.number, bad.where) == (1, f"{path}, line 2")
    assert bad.problem is not None
    assert problem in bad.problem
    assert (first.problem, last.problem) == (None, None)
    with pytest.raises(ConfigError, match=r"in.jsonl holds no prompts\. .*line 1: ") as refused:
        rows_of(path, row + b"\n")
    assert problem in str(refused.value)


def test_files_without_prompts_are_refused(tmp_path: Path) -> None:
    for content in (b"", b"\n \r\n", b"\xef\xbb\xbf"):
        with pytest.raises(ConfigError, match="holds no prompts"):
            rows_of(tmp_path / "in.txt", content)
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        rows_of(tmp_path / "in.txt", b"a\xff")
    with pytest.raises(ConfigError, match="is a folder"):
        read_prompts(tmp_path)
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_prompts(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="no whole compressed file"):
        rows_of(tmp_path / "in.jsonl.gz", gzip.compress(lines(ROWS))[:-9])
