import json
from pathlib import Path

import pytest

from ziphius.cli import assets
from ziphius.cli.main import main
from ziphius.core.assets import ASSETS, asset_path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZIPHIUS_CACHE", str(tmp_path / "cache"))


def test_list_shows_every_asset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["assets"]) == 0
    out = capsys.readouterr().out
    assert [name for name in ASSETS if name not in out] == []
    assert "not fetched" in out


def test_list_as_json_says_what_is_cached(capsys: pytest.CaptureFixture[str]) -> None:
    path = asset_path("smollm2-135m-instruct")
    path.parent.mkdir(parents=True)
    path.touch()
    # Of the right size, without its bytes on the disk.
    with path.open("r+b") as file:
        file.truncate(98_362_432)
    assert main(["assets", "--json"]) == 0
    (entry, *_) = json.loads(capsys.readouterr().out)
    assert entry["name"] == "smollm2-135m-instruct"
    assert (entry["state"], entry["path"]) == ("fetched", str(path))
    assert entry["licence"] == "Apache-2.0"

    with pytest.raises(SystemExit) as raised:
        main(["assets", "verify"])
    assert raised.value.code == 1
    assert "damaged" in capsys.readouterr().out


def test_verify_names_what_is_not_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["assets", "verify"]) == 0
    with pytest.raises(SystemExit) as raised:
        main(["assets", "verify", "smollm2-135m-instruct"])
    assert raised.value.code == 1
    assert "not fetched" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fetch"], "fetch needs names or --all"),
        (["list", "x"], "list takes no names"),
        (["--all"], "--all goes with fetch, and without names"),
        (["fetch", "x", "--all"], "--all goes with fetch, and without names"),
    ],
)
def test_words_without_effect_are_errors(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["assets", *args])
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


def test_an_unknown_asset_is_an_error_before_anything_is_fetched(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "fetch", pytest.fail)
    assert main(["assets", "fetch", "smollm2-135m-instruct", "smollm3"]) == 2
    assert "no asset 'smollm3'" in capsys.readouterr().err


@pytest.mark.net("smollm2-135m-instruct")
@pytest.mark.slow
def test_fetch_brings_the_real_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["assets", "fetch", "smollm2-135m-instruct"]) == 0
    assert str(asset_path("smollm2-135m-instruct")) in capsys.readouterr().out
    assert asset_path("smollm2-135m-instruct").read_bytes()[:4] == b"GGUF"
    assert main(["assets", "verify", "smollm2-135m-instruct"]) == 0
