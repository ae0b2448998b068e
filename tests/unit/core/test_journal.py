"""`core/journal.py`: what is put down is found again, whole, and by the same work alone."""

import json
import os
from pathlib import Path

import pytest

from ziphius.core.errors import ConfigError, OutputError
from ziphius.core.journal import Journal

ABOUT = {"seed": 1, "model": ["a", [1, 2]], "stop": ("x",)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sub" / "work.partial"


def filled(path: Path, *numbers: int) -> None:
    with Journal(path, ABOUT) as journal:
        for number in numbers:
            journal.add(number, {"text": "\u9cb8\n" * number})


def test_results_are_found_again_in_the_order_of_their_numbers(path: Path) -> None:
    filled(path, 3, 1)
    filled(path, 2)
    with Journal(path, ABOUT) as journal:
        assert [number in journal for number in range(5)] == [False, True, True, True, False]
        assert len(journal) == 3
        found = [json.loads(line) for line in journal.lines()]
    assert found == [{"row": n, "text": "\u9cb8\n" * n} for n in (1, 2, 3)]


def test_a_cut_at_any_place_costs_the_lines_behind_it_alone(path: Path) -> None:
    filled(path, 0, 1, 2)
    whole = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with Journal(path, ABOUT) as journal:
            assert len(journal) == max(0, sum(end <= size for end in ends) - 1)
            for number in range(3):
                if number not in journal:
                    journal.add(number, {"text": "\u9cb8\n" * number})
        assert path.read_bytes() == whole


def test_zeros_that_a_power_cut_left_are_cut_off(path: Path) -> None:
    filled(path, 0, 1)
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(100) + b"\n" + b'{"row": 2}\n')
    with Journal(path, ABOUT) as journal:
        assert len(journal) == 2
    assert path.read_bytes() == whole


def test_other_work_does_not_go_on_with_it(path: Path) -> None:
    filled(path, 0)
    for about, names in [
        (ABOUT | {"seed": 2}, "another seed:"),
        (ABOUT | {"seed": 2, "model": []}, "another seed, another model:"),
        (ABOUT | {"new": None}, None),
        ({"seed": 1, "stop": ["x"]}, "another model:"),
    ]:
        if names is None:
            Journal(path, about).close()
            continue
        with pytest.raises(ConfigError, match=names):
            Journal(path, about)


@pytest.mark.parametrize("content", [b"mine\n", b"mine", b'{"row": 1}\n', b"\0", b"[]\n"])
def test_a_file_of_somebody_else_is_left_alone(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is in the way"):
        Journal(path, ABOUT)
    assert path.read_bytes() == content


def test_one_process_at_a_time_writes_it(path: Path) -> None:
    with Journal(path, ABOUT) as journal:
        with pytest.raises(OutputError, match="in use by another process"):
            Journal(path, ABOUT)
        journal.discard()
        assert not path.exists()
    filled(path, 1)


def test_a_full_disk_loses_nothing_that_was_there(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(path, 0)
    before = path.read_bytes()
    pwrite = os.pwrite

    def full(file: int, data: bytes, place: int) -> int:
        if len(data) > 10:
            return pwrite(file, data[:10], place)
        raise OSError(28, "No space left on device")

    with Journal(path, ABOUT) as journal:
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(OutputError, match=r"Cannot write .*work.partial: No space left"):
            journal.add(1, {"text": "a long enough text"})
        assert path.read_bytes() == before
        assert 1 not in journal
        monkeypatch.undo()
        journal.add(1, {"text": "a"})
    with Journal(path, ABOUT) as journal:
        assert len(journal) == 2


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for wrong in (tmp_path / "file" / "x", tmp_path):
        with pytest.raises(OutputError, match=f"Cannot write {wrong}"):
            Journal(wrong, ABOUT)
