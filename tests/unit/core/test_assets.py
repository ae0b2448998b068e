"""The wheels here are made by hand and found by the real pip in a folder: no network, no mock."""

import errno
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ziphius.core import assets
from ziphius.core.assets import ASSETS, Asset, asset_path, fetch, is_cached, verify
from ziphius.core.errors import AssetError, OutputError
from ziphius.core.files import beside

CONTENT = b"whales " * 1_000
IMPORTED = "raise SystemExit('the code of the package must not run')"


@pytest.fixture(autouse=True)
def _only_wheels_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("ZIPHIUS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "wheels").mkdir()


@pytest.fixture
def whales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """An asset that can be fetched."""
    make_wheel(tmp_path / "wheels", CONTENT)
    asset = Asset(
        package="whale-data",
        version="1.0",
        member="whale_data/whales.txt",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        size_bytes=len(CONTENT),
        licence="MIT",
        what_for="tests",
    )
    monkeypatch.setitem(ASSETS, "whales", asset)
    return asset


def make_wheel(folder: Path, content: bytes) -> Path:
    path = folder / "whale_data-1.0-py3-none-any.whl"
    info = "whale_data-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("whale_data/whales.txt", content)
        wheel.writestr("whale_data/__init__.py", IMPORTED)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: whale-data\nVersion: 1.0\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def files_below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.usefixtures("whales")
def test_fetch_takes_out_the_one_member(tmp_path: Path) -> None:
    assert not is_cached("whales")
    path = fetch("whales")
    assert path == asset_path("whales")
    assert path.read_bytes() == CONTENT
    assert is_cached("whales")
    assert verify("whales")
    assert files_below(tmp_path / "cache") == ["whales.txt"]


@pytest.mark.usefixtures("whales")
def test_fetch_uses_the_cache(tmp_path: Path) -> None:
    path = fetch("whales")
    (tmp_path / "wheels" / "whale_data-1.0-py3-none-any.whl").unlink()
    assert fetch("whales") == path


@pytest.mark.usefixtures("whales")
@pytest.mark.parametrize("damage", [b"shorter", CONTENT[::-1]])
def test_fetch_mends_a_damaged_cache(damage: bytes) -> None:
    path = fetch("whales")
    path.write_bytes(damage)
    assert not verify("whales")
    assert fetch("whales").read_bytes() == CONTENT


@pytest.mark.usefixtures("whales")
def test_fetches_at_once_do_not_collide(tmp_path: Path) -> None:
    found = []
    threads = [threading.Thread(target=lambda: found.append(fetch("whales"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() for path in found] == [CONTENT] * 3
    assert files_below(tmp_path / "cache") == ["whales.txt"]


def other_content(wheel: Path) -> None:
    make_wheel(wheel.parent, CONTENT[::-1])


def larger_content(wheel: Path) -> None:
    make_wheel(wheel.parent, CONTENT + b"\0" * 10_000_000)


def no_member(wheel: Path) -> None:
    content = wheel.read_bytes().replace(b"whales.txt", b"whalez.txt")
    wheel.write_bytes(content)


def damaged_member(wheel: Path) -> None:
    content = bytearray(wheel.read_bytes())
    content[60:64] = b"\xff\xff\xff\xff"
    wheel.write_bytes(content)


def no_wheel(wheel: Path) -> None:
    wheel.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (other_content, r"whales is not the recorded file: .*expected .*Nothing was kept"),
        (larger_content, r"whales is not the recorded file"),
        (no_member, r"whale_data-1.0-py3-none-any.whl has no member whale_data/whales.txt"),
        (damaged_member, r"whale_data-1.0-py3-none-any.whl is damaged \(whales\)"),
        (
            no_wheel,
            r"pip could not download whale-data==1.0 \(.*\)\. When .* ziphius assets fetch whales",
        ),
    ],
)
@pytest.mark.usefixtures("whales")
def test_a_bad_wheel_is_one_clear_error_and_leaves_nothing(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(tmp_path / "wheels" / "whale_data-1.0-py3-none-any.whl")
    with pytest.raises(AssetError, match=message):
        fetch("whales")
    assert files_below(tmp_path / "cache") == []


@pytest.mark.usefixtures("whales")
def test_a_full_disk_is_one_clear_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(assets.os, "fsync", fsync)
    with pytest.raises(AssetError, match=r"No space left on device\. Set ZIPHIUS_CACHE"):
        fetch("whales")
    assert files_below(tmp_path / "cache") == []


@pytest.mark.usefixtures("whales")
def test_a_cache_that_cannot_be_made_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ZIPHIUS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(AssetError, match=r"Not a directory\. Set ZIPHIUS_CACHE"):
        fetch("whales")


def test_an_unknown_asset_is_named_with_the_known_ones() -> None:
    with pytest.raises(AssetError, match=r"no asset 'whale'\. Known: .*smollm2-135m-instruct"):
        fetch("whale")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"ZIPHIUS_CACHE": "{}/a", "XDG_CACHE_HOME": "{}/b"}, "{}/a"),
        ({"ZIPHIUS_CACHE": "~/a", "HOME": "{}"}, "{}/a"),
        ({"ZIPHIUS_CACHE": "", "XDG_CACHE_HOME": "{}/b"}, "{}/b/ziphius"),
        ({"ZIPHIUS_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "{}/c"}, "{}/c/.cache/ziphius"),
    ],
)
def test_cache_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    expected: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    assert assets.cache_folder() == Path(expected.format(tmp_path))
    assert capsys.readouterr() == ("", "")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files, and a home folder in which nothing can be."""
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("ZIPHIUS_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"ziphius-{os.getuid()}"


def test_without_a_home_folder_to_write_to_the_cache_is_a_temporary_one(
    temporary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert assets.cache_folder() == assets.cache_folder() == temporary
    assert temporary.stat().st_mode & 0o777 == 0o700
    assert capsys.readouterr().err == (
        f"The cache folder {temporary.parent}/file/.cache/ziphius cannot be used: {temporary} is "
        "used instead. Set ZIPHIUS_CACHE to a folder with room and the right to write.\n"
    )


def test_without_the_right_to_look_into_a_home_folder_neither(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.is_dir

    def refuse(path: Path) -> bool:
        if path.name == "ziphius":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setenv("HOME", str(temporary.parent))
    monkeypatch.setattr(Path, "is_dir", refuse)
    assert assets.cache_folder() == temporary
    monkeypatch.setenv("ZIPHIUS_CACHE", str(temporary.parent / "ziphius"))
    with pytest.raises(OutputError, match=r"no right to look into it. Set ZIPHIUS_CACHE"):
        assets.cache_folder()


def test_without_any_home_folder_neither(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    monkeypatch.delenv("HOME")
    assert assets.cache_folder() == temporary


@pytest.mark.parametrize("way", ["open to all", "a link", "somebody else's"])
def test_a_temporary_folder_of_somebody_else_is_not_used(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "a link":
        (temporary.parent / "theirs").mkdir()
        temporary.symlink_to(temporary.parent / "theirs")
    else:
        temporary.mkdir(mode=0o700)
    if way == "open to all":
        temporary.chmod(0o777)
    if way == "somebody else's":
        owner = temporary.stat().st_uid
        monkeypatch.setattr(os, "getuid", lambda: owner + 1)
        temporary.rename(temporary.with_name(f"ziphius-{owner + 1}"))
    with pytest.raises(OutputError, match=r"is not this user's alone. Set ZIPHIUS_CACHE"):
        assets.cache_folder()


@pytest.mark.usefixtures("whales")
@pytest.mark.parametrize("told_by", ["pip", "the disk"])
def test_a_disk_that_fills_while_pip_downloads_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told_by: str
) -> None:
    line = "ERROR: [Errno 28] No space left on device" if told_by == "pip" else ""
    program = tmp_path / "pip"
    program.write_text(f"#!/bin/sh\necho '{line}'\necho 'and more'\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(assets.sys, "executable", str(program))
    if told_by == "the disk":
        usage = shutil.disk_usage(tmp_path)._replace(free=10)
        monkeypatch.setattr(assets.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(AssetError, match=rf"{tmp_path}/cache: the disk is full: No space left"):
        fetch("whales")
    assert files_below(tmp_path / "cache") == []


@pytest.mark.usefixtures("whales")
def test_fetch_sweeps_what_a_killed_fetch_left(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    left = beside(asset_path("whales").with_name("fetch")).name
    left = left.replace(f".{os.getpid()}-", f".{ended.pid}-")
    (asset_path("whales").parent / left / "wheels").mkdir(parents=True)
    fetch("whales")
    assert [path.name for path in asset_path("whales").parent.iterdir()] == ["whales.txt"]
