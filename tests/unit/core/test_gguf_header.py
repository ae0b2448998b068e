import struct
from pathlib import Path

import pytest

from ziphius.core import gguf_header
from ziphius.core.errors import AssetError
from ziphius.core.gguf_header import GgufHeader, is_gguf_path, read_gguf_header

STRINGS, BYTES = 8, 0


def entry(key: str, kind: int, count: int, content: bytes) -> bytes:
    """Write a metadata array."""
    name = struct.pack("<Q", len(key)) + key.encode()
    return name + struct.pack("<IIQ", 9, kind, count) + content


def text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def read(tmp_path: Path, *entries: bytes, keep: tuple[str, ...] = ()) -> GgufHeader:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + b"".join(entries))
    return read_gguf_header(path, keep=keep, error=AssetError)


def test_long_lists_are_kept_on_request_only(tmp_path: Path) -> None:
    strings = entry("s", STRINGS, 1_025, text(b"ab") * 1_025)
    numbers = entry("n", BYTES, 1_025, bytes([7]) * 1_025)
    after = entry("e", BYTES, 2, b"\1\2")
    found = read(tmp_path, strings, numbers, after).metadata
    assert found == {"s": None, "n": None, "e": [1, 2]}
    found = read(tmp_path, strings, numbers, after, keep=("s", "n")).metadata
    assert found == {"s": ["ab"] * 1_025, "n": [7] * 1_025, "e": [1, 2]}


@pytest.mark.parametrize("kind", [STRINGS, BYTES])
@pytest.mark.parametrize("keep", [(), ("k",)])
def test_items_of_all_lists_together_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int, keep: tuple[str, ...]
) -> None:
    monkeypatch.setattr(gguf_header, "LARGEST_ITEM_COUNT", 3_000)
    content = bytes(1_500 * (8 if kind == STRINGS else 1))
    read(tmp_path, entry("j", kind, 1_500, content), entry("k", kind, 1_500, content), keep=keep)
    with pytest.raises(AssetError, match=r"a\.gguf lists more than 3,000 items"):
        read(
            tmp_path,
            entry("j", kind, 1_500, content),
            entry("k", kind, 1_500, content),
            entry("l", BYTES, 1, b"1"),
            keep=keep,
        )


def test_a_header_that_goes_on_for_ever_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_header, "LARGEST_HEADER_BYTES", 5_000)
    read(tmp_path, entry("j", BYTES, 4_000, bytes(4_000)), bytes(8) + bytes(4) + bytes(1_000))
    with pytest.raises(AssetError, match="an array goes on beyond 5000 bytes"):
        read(tmp_path, entry("j", BYTES, 6_000, bytes(6_000)))
    with pytest.raises(AssetError, match="its header goes on beyond 5000 bytes"):
        read(tmp_path, entry("j", STRINGS, 1, text(bytes(6_000))))


def test_the_ending_counts_in_either_case_and_folders_do_not(tmp_path: Path) -> None:
    (tmp_path / "b.gguf").mkdir()
    assert is_gguf_path(tmp_path / "A.GGUF")
    assert not is_gguf_path(tmp_path / "b.gguf")
    assert not is_gguf_path(tmp_path / "gguf")
