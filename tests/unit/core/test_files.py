import errno
import os
import re
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from ziphius.core import files
from ziphius.core.errors import ConfigError, OutputError
from ziphius.core.files import existing_path, new_folder, refuse_occupied, write_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", [b"\x00\xff", "\u4f60\u597d", ""])
def test_write_file_writes_bytes_and_utf8(tmp_path: Path, content: bytes | str) -> None:
    write_file(tmp_path / "a", content)
    expected = content if isinstance(content, bytes) else content.encode()
    assert (tmp_path / "a").read_bytes() == expected
    assert names(tmp_path) == ["a"]


def test_write_file_replaces_and_gives_the_users_rights(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old and longer")
    with (tmp_path / "a").open() as reader:
        write_file(tmp_path / "a", "new")
        assert reader.read() == "old and longer"
    assert (tmp_path / "a").read_text() == "new"
    (tmp_path / "plain").write_text("")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "plain")]
    assert modes[0] == modes[1]


def test_write_file_keeps_the_old_content_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(files.os, "fsync", disk_full)
    with pytest.raises(OutputError, match=r"Cannot write .*a: No space left on device"):
        write_file(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def disk_full(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_write_file_syncs_the_file_before_and_the_folder_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []

    def fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        events.append(("folder" if is_folder else "file", (tmp_path / "a").exists()))

    monkeypatch.setattr(files.os, "fsync", fsync)
    write_file(tmp_path / "a", "x")
    assert events == [("file", False), ("folder", True)]


def test_new_folder_appears_whole_with_its_parents(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "one"
    with new_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("x")
        assert not target.exists()
        assert folder.parent == target.parent
    assert (target / "sub" / "a").read_text() == "x"
    assert names(target.parent) == ["one"]


def test_new_folder_syncs_everything_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append((path.name, (tmp_path / "new").exists()))

    with new_folder(tmp_path / "new") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("x")
        monkeypatch.setattr(files.os, "fsync", fsync)
    assert {("a", False), ("sub", False), (folder.name, False)} < set(synced)
    assert synced[-1] == (tmp_path.name, True)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_new_folder_leaves_nothing_after_an_error(
    tmp_path: Path, error: type[BaseException]
) -> None:
    def fill_and_fail() -> None:
        with new_folder(tmp_path / "new") as folder:
            (folder / "a").write_text("x")
            raise error

    with pytest.raises(error):
        fill_and_fail()
    assert names(tmp_path) == []


def test_new_folder_takes_an_empty_folder_and_refuses_a_full_one(tmp_path: Path) -> None:
    target = tmp_path / "new"
    target.mkdir()
    with new_folder(target) as folder:
        (folder / "a").write_text("x")
    with pytest.raises(OutputError, match=r"new is not empty.*remove it"), new_folder(target):
        pytest.fail("the block must not run")
    assert names(tmp_path) == ["new"]


def test_new_folder_refuses_what_was_filled_meanwhile(tmp_path: Path) -> None:
    target = tmp_path / "new"

    def fill_while_another_fills() -> None:
        with new_folder(target):
            target.mkdir()
            (target / "theirs").write_text("x")

    with pytest.raises(OutputError, match="Directory not empty"):
        fill_while_another_fills()
    assert names(tmp_path) == ["new"]
    assert names(target) == ["theirs"]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_refuse_occupied_names_what_is_in_the_way(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "new"
    target.write_text("") if kind == "file" else target.symlink_to(tmp_path)
    with pytest.raises(OutputError, match="new is in the way"):
        refuse_occupied(target)


def test_new_folder_under_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match=r"Cannot write .*file/new"),
        new_folder(tmp_path / "file" / "new"),
    ):
        pytest.fail("the block must not run")


def ended_process() -> int:
    with subprocess.Popen(["true"]) as process:
        return process.pid


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_left_is_swept(tmp_path: Path, kind: str) -> None:
    ours = files.beside(tmp_path / "one")
    theirs = ours.name.replace(f".{os.getpid()}-", f".{ended_process()}-")
    elsewhere = theirs[:-20] + f"{int(theirs[-20:-12], 16) ^ 1:08x}" + theirs[-12:]
    others = [".one.tmp", ".one.7-a.tmp", "one", theirs.removeprefix("."), elsewhere]
    for name in (ours.name, theirs, *others):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").write_text("x")
    (tmp_path / theirs.replace(".one.", ".two.")).write_text("a file")
    if kind == "file":
        write_file(tmp_path / "new", "x")
    else:
        with new_folder(tmp_path / "new"):
            pass
    assert names(tmp_path) == sorted([ours.name, *others, "new"])


def test_an_error_inside_a_new_folder_speaks_of_the_users_path(tmp_path: Path) -> None:
    def fill(action: Callable[[Path], object]) -> None:
        with new_folder(tmp_path / "new") as folder:
            action(folder)

    target = re.escape(str(tmp_path / "new"))
    with pytest.raises(OutputError, match=rf"Cannot write {target}/no/a: No such file"):
        fill(lambda folder: write_file(folder / "no" / "a", "x"))
    with pytest.raises(OutputError, match=rf"Cannot write {target}: No such file"):
        fill(lambda folder: (folder / "no" / "a").write_text("x"))
    with pytest.raises(OutputError, match=rf"Cannot write {target}: No space left"):
        fill(disk_full)
    with pytest.raises(FileNotFoundError):
        fill(lambda folder: (tmp_path / "source").read_text())
    assert names(tmp_path) == []


def test_words_of_a_user_that_name_a_path_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a").write_text("x")
    assert existing_path("~/a") == tmp_path / "a"
    for nothing in ("~/b", "~/a/b", "x" * 300):
        assert existing_path(nothing) is None
    with pytest.raises(ConfigError, match=r"~no-such-user/a: there is no such user"):
        existing_path("~no-such-user/a")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ConfigError, match=r"Cannot look at .*loop: Too many levels"):
        existing_path("~/loop")


def test_a_disk_without_room_is_told_of_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "not" / "there" / "yet"
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    files.refuse_full_disk(folder, 10**6, "the model")
    with pytest.raises(OutputError) as error:
        files.refuse_full_disk(folder, 10**6 + 1, "the model")
    assert str(error.value) == (
        f"Cannot write {folder}: the model takes 1.0 MB, and 1.0 MB are free on the disk of "
        f"{tmp_path}. Make room, or choose a folder on another disk."
    )
    assert not (tmp_path / "not").exists()
