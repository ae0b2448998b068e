"""`ops/native/build.py`: what is compiled, what is kept, and what is said when it is not."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ziphius.core.errors import ConfigError
from ziphius.ops import native
from ziphius.ops.native import build


@pytest.fixture(autouse=True)
def _looked_for_anew() -> Iterator[None]:
    build.outcome.cache_clear()
    yield
    build.outcome.cache_clear()


@pytest.mark.skipif(not native.serves(), reason=f"native kernels {native.status()}")
def test_kernels_run_here_unless_switched_off(monkeypatch):
    assert native.status().startswith("on")
    monkeypatch.setenv(native.SWITCH, "off")
    build.outcome.cache_clear()
    assert native.status() == "off: ZIPHIUS_NATIVE=off"


@pytest.mark.parametrize(
    ("value", "complaint"), [("0", "one of: off, on, sanitize"), ("sanitize", "make sanitize")]
)
def test_a_switch_that_would_have_no_effect_is_refused(monkeypatch, value, complaint):
    monkeypatch.setenv(native.SWITCH, value)
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    with pytest.raises(ConfigError, match=complaint):
        native.status()


def test_no_compiler_is_said_not_hidden(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no C++ compiler" in native.status()


def test_a_cache_that_cannot_be_used_is_said_not_hidden(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("ZIPHIUS_CACHE", str(tmp_path / "file" / "cache"))
    assert native.status().startswith("off: ")
    assert "cache" in native.status()


def test_what_the_compiler_refuses_is_said(monkeypatch, tmp_path):
    source = tmp_path / "broken.cpp"
    source.write_text("void work() {\n    std::vector<int> numbers;\n}\n")
    monkeypatch.setenv("ZIPHIUS_CACHE", str(tmp_path))
    compiler = build.shutil.which("g++") or pytest.skip("no g++")
    path, status = build.compiled([source], compiler, ["-shared"])
    assert path is None
    assert "broken.cpp:2" in status  # not the line before, which says in which function


@pytest.mark.parametrize("size", [0, 100, None])
def test_a_library_that_was_cut_is_compiled_anew(monkeypatch, tmp_path, size):
    compiled = []

    def compiler(words, **_):
        if "-o" in words:
            compiled.append(words)
            Path(words[words.index("-o") + 1]).write_bytes(b"code" * 100)
        return SimpleNamespace(returncode=0, stdout="12")

    monkeypatch.setenv("ZIPHIUS_CACHE", str(tmp_path))
    monkeypatch.setattr(build.subprocess, "run", compiler)
    path, _ = build.compiled([], "g++", [])
    path.write_bytes((b"code" * 100)[:size])
    assert build.compiled([], "g++", []) == (path, "on: compiled by g++")
    assert path.read_bytes() == b"code" * 100
    assert len(compiled) == (1 if size is None else 2)


def test_the_digest_is_that_of_what_runs(monkeypatch, tmp_path):
    def compiler(words, **_):
        if "-o" in words:
            Path(words[words.index("-o") + 1]).write_bytes(b"code")
        return SimpleNamespace(returncode=0, stdout=versions[0])

    monkeypatch.setenv("ZIPHIUS_CACHE", str(tmp_path))
    monkeypatch.setattr(build.subprocess, "run", compiler)
    monkeypatch.setattr(build, "find_compiler", lambda: "g++")
    source = tmp_path / "one.cpp"
    monkeypatch.setattr(build, "__file__", str(tmp_path / "build.py"))
    seen, versions = [], [""]
    for text, version in (("a", "12"), ("a", "12"), ("b", "12"), ("b", "13")):
        source.write_text(text)
        versions[0] = version
        build.outcome.cache_clear()
        seen.append(build.digest())
        assert (tmp_path / f"native-{seen[-1]}.so").exists()
    assert seen[0] == seen[1]
    assert len(set(seen)) == 3
    monkeypatch.setenv(native.SWITCH, "off")
    build.outcome.cache_clear()
    assert build.digest() == ""


def started(folder: Path, compiler: Path) -> subprocess.Popen[bytes]:
    """Begin to build one source in a process of its own."""
    code = "from pathlib import Path; from ziphius.ops.native import build; " + (
        f"print(build.compiled([Path({str(folder / 'one.cpp')!r})], {str(compiler)!r}, []))"
    )
    environment = os.environ | {"ZIPHIUS_CACHE": str(folder / "cache")}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=False
    )


def slow_compiler(folder: Path) -> Path:
    """A compiler that notes its calls, and waits at a source until it may go on."""
    (folder / "one.cpp").write_text("")
    compiler = folder / "compiler"
    compiler.write_text(
        f"""#!/bin/sh
case "$*" in *-dumpfullversion*) echo >> {folder}/started; echo 12; exit;; esac
echo "$@" >> {folder}/calls
case " $*" in *" -c "*) until [ -e {folder}/go ]; do sleep 0.05; done;; esac
for word; do target=$word; done
echo code > "$target"
"""
    )
    compiler.chmod(0o755)
    return compiler


def wait_for(path: Path, lines: int = 1) -> None:
    for _ in range(2_400):
        if path.exists() and len(path.read_text().splitlines()) >= lines:
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not come")


def test_of_two_processes_one_compiles_and_both_load(tmp_path):
    compiler = slow_compiler(tmp_path)
    processes = [started(tmp_path, compiler) for _ in range(2)]
    wait_for(tmp_path / "started", lines=2)
    wait_for(tmp_path / "calls")
    time.sleep(2)  # for the other one to begin too, if it would
    (tmp_path / "go").touch()
    told = [process.communicate(timeout=120)[0] for process in processes]
    assert told[0] == told[1]
    assert b"on: compiled by" in told[0]
    assert len((tmp_path / "calls").read_text().splitlines()) == 2, "an object, and the library"


def test_what_a_killed_compile_leaves_is_compiled_anew(tmp_path):
    compiler = slow_compiler(tmp_path)
    killed = started(tmp_path, compiler)
    wait_for(tmp_path / "calls")
    killed.kill()
    killed.communicate()
    assert not list((tmp_path / "cache").glob("*.so"))
    (tmp_path / "go").touch()
    told, _ = started(tmp_path, compiler).communicate(timeout=120)
    assert b"on: compiled by" in told
    [library] = (tmp_path / "cache").glob("*.so")
    assert library.read_text() == "code\n"


def test_other_flags_make_another_library(monkeypatch, tmp_path):
    monkeypatch.setenv("ZIPHIUS_CACHE", str(tmp_path))
    source = tmp_path / "empty.cpp"
    source.write_text("")
    compiler = build.shutil.which("g++") or pytest.skip("no g++")
    flags = (["-shared", "-O0"], ["-shared", "-O1"])
    assert len({build.compiled([source], compiler, words)[0] for words in flags}) == 2
