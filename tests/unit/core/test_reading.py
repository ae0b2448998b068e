import os
from pathlib import Path

import pytest

from ziphius.core import reading
from ziphius.core.errors import AssetError, CheckpointError
from ziphius.core.reading import (
    file_inside,
    list_folder,
    open_file,
    parse_object,
    read_bytes,
    read_object,
    read_text,
)


def test_an_object_is_read_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, {"b": "\\ud83d\\udc0b \u4f60"}], "c": null}')
    expected = {"a": [1, {"b": "\U0001f40b \u4f60"}], "c": None}
    assert read_object(path, 1_000, AssetError) == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not valid JSON"),
        (b'{"a": 1', "is not valid JSON"),
        (b"\xef\xbb\xbf{}", "is not valid JSON"),
        (b'{"a": "\xed\xa0\x80"}', "is not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' + b"[" * 100_000, "nested too deeply"),
        (b"[1]", "holds a JSON list, not an object"),
        (b'"\\ud800"', "holds a JSON str, not an object"),
        (b'{"a": NaN}', "holds NaN, which is not JSON"),
        (b'{"a": [-Infinity]}', "holds -Infinity"),
        (b'{"x": {"a": 1, "b": 2, "a": 1}}', "lists a twice"),
        (b'{"x": [1, {"a": "b\\uD8ff"}]}', "half of a UTF-16 pair under x.1.a,"),
        (b'{"x": {"\\udc00": 1}}', "half of a UTF-16 pair under x.\\udc00,"),
    ],
)
def test_what_is_no_strict_object_is_refused_by_name(content: bytes, words: str) -> None:
    with pytest.raises(AssetError) as caught:
        parse_object(content, "origin", AssetError)
    assert str(caught.value).startswith("origin ")
    assert words in str(caught.value)
    assert str(caught.value).encode()


def test_a_file_of_the_limit_is_read_and_a_longer_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 1_000)
    assert read_bytes(path, 1_000, CheckpointError) == b"x" * 1_000
    with pytest.raises(CheckpointError, match="a has 1,000 bytes; at most 999 are read"):
        read_bytes(path, 999, CheckpointError)


def test_text_is_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"\xe4\xbd\xa0")
    assert read_text(path, 10, CheckpointError) == "\u4f60"
    path.write_bytes(b"abc\xff")
    with pytest.raises(CheckpointError, match=r"is not UTF-8: .* at byte 3"):
        read_text(path, 10, CheckpointError)


def test_a_pipe_that_takes_the_place_of_a_file_is_refused_without_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    os.mkfifo(path)
    monkeypatch.setattr(reading, "regular_file", lambda path, error: path)
    with (
        pytest.raises(CheckpointError, match="not a regular file"),
        open_file(path, CheckpointError),
    ):
        pass


def test_an_error_while_reading_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"")
    with (
        pytest.raises(CheckpointError, match="a cannot be read: broken"),
        open_file(path, CheckpointError),
    ):
        raise OSError(5, "broken")


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "/a", "b/a", "a\\b", "a\0"])
def test_only_plain_names_are_followed(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="only plain names inside the folder are read"):
        file_inside(tmp_path, name, CheckpointError)


def test_links_stay_in_the_folder_or_in_the_blobs_beside_snapshots(tmp_path: Path) -> None:
    folder, blobs, outside = tmp_path / "snapshots" / "1", tmp_path / "blobs", tmp_path / "out"
    for place in (folder, blobs, outside):
        place.mkdir(parents=True)
        (place / "a").write_text("")
    (folder / "in").symlink_to("a")
    (folder / "blob").symlink_to("../../blobs/a")
    (folder / "away").symlink_to("../../out/a")
    (folder / "circle").symlink_to("circle")
    assert file_inside(folder, "in", CheckpointError) == folder / "in"
    assert file_inside(folder, "blob", CheckpointError) == folder / "blob"
    with pytest.raises(CheckpointError, match="away is a link that leaves the model folder"):
        file_inside(folder, "away", CheckpointError)
    with pytest.raises(CheckpointError, match="circle cannot be opened"):
        file_inside(folder, "circle", CheckpointError)


def test_links_may_lead_to_the_blobs_of_a_cache(tmp_path: Path) -> None:
    cache = tmp_path / "hub" / "models--owner--name"
    deep, own = cache / "snapshots" / "1" / "a" / "b", tmp_path / "own"
    for place in (deep, own, cache / "blobs", tmp_path / "models--x", tmp_path / "x" / "blobs"):
        place.mkdir(parents=True)
    kept, *others = cache / "blobs" / "0", tmp_path / "models--x" / "0", tmp_path / "x/blobs/0"
    for target in (kept, *others):
        target.write_text("")
    (deep / "f").symlink_to("../../../../blobs/0")
    (own / "f").symlink_to(kept)
    for folder in (deep, own):
        assert file_inside(folder, "f", CheckpointError) == folder / "f"
    for number, target in enumerate(others):
        (own / f"{number}").symlink_to(target)
        with pytest.raises(CheckpointError, match="is a link that leaves the model folder"):
            file_inside(own, f"{number}", CheckpointError)


def test_names_of_a_folder_are_listed_or_the_reason_is_given(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("")
    (tmp_path / "a").symlink_to("nothing")
    assert list_folder(tmp_path, CheckpointError) == ["a", "b"]
    with pytest.raises(CheckpointError, match="none does not exist"):
        list_folder(tmp_path / "none", CheckpointError)
    with pytest.raises(CheckpointError, match="b is neither a model folder nor"):
        list_folder(tmp_path / "b", CheckpointError)
