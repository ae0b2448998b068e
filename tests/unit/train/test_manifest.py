import hashlib
import json
from pathlib import Path

import pytest

from ziphius.train.manifest import (
    MANIFEST_FILE,
    DamagedError,
    check_folder,
    read_manifest,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "step-7"
    (folder / "training").mkdir(parents=True)
    (folder / "model").write_bytes(bytes(range(256)))
    (folder / "training" / "state").write_bytes(b"abc")
    write_manifest(folder, step=7, validation_loss=2.5)
    return folder


def test_a_whole_folder_is_what_it_says(folder: Path) -> None:
    manifest = check_folder(folder)
    assert (manifest.step, manifest.validation_loss) == (7, 2.5)
    sizes = {name: entry.size_bytes for name, entry in manifest.files.items()}
    assert sizes == {"model": 256, "training/state": 3}
    # The published test vector of SHA-256 (FIPS 180-2, appendix B.1).
    assert manifest.files["training/state"].sha256.startswith("ba7816bf8f01cfea414140de5dae2223")


@pytest.mark.parametrize("loss", [None, float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_none(folder: Path, loss: float | None) -> None:
    (folder / MANIFEST_FILE).unlink()
    write_manifest(folder, step=7, validation_loss=loss)
    assert check_folder(folder).validation_loss is None


@pytest.mark.parametrize("bit", range(8))
@pytest.mark.parametrize("place", [0, 100, 255])
def test_every_bit_of_a_file_counts(folder: Path, place: int, bit: int) -> None:
    flip(folder / "model", place, bit)
    with pytest.raises(DamagedError, match=r"^model differs from what was written"):
        check_folder(folder)


def test_bits_of_the_manifest_count(folder: Path) -> None:
    path = folder / MANIFEST_FILE
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        flip(path, place, place % 8)
        with pytest.raises(DamagedError, match=rf"^{MANIFEST_FILE} (is damaged|is that of)"):
            read_manifest(folder)
        path.write_bytes(whole)


def test_a_lost_file_is_named(folder: Path) -> None:
    (folder / "training" / "state").unlink()
    with pytest.raises(DamagedError, match=r"^training/state is missing"):
        check_folder(folder)


def test_a_cut_file_is_named_with_both_sizes(folder: Path) -> None:
    (folder / "model").write_bytes(b"x" * 255)
    with pytest.raises(DamagedError, match=r"^model has 255 bytes instead of 256"):
        check_folder(folder)


def test_a_folder_and_a_link_are_no_files(folder: Path) -> None:
    (folder / "training" / "state").rename(folder / "elsewhere")
    (folder / "training" / "state").symlink_to(folder / "elsewhere")
    with pytest.raises(DamagedError, match=r"^training/state is missing"):
        check_folder(folder)
    (folder / "training" / "state").unlink()
    (folder / "training" / "state").mkdir()
    with pytest.raises(DamagedError, match=r"^training/state is missing"):
        check_folder(folder)


def test_a_manifest_of_another_step_is_refused(folder: Path) -> None:
    other = folder.rename(folder.with_name("step-8"))
    with pytest.raises(DamagedError, match="is that of step 7"):
        check_folder(other)


def test_a_manifest_that_is_lost_is_named(folder: Path) -> None:
    (folder / MANIFEST_FILE).unlink()
    with pytest.raises(DamagedError, match=rf"^{MANIFEST_FILE} cannot be read"):
        check_folder(folder)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"7", b"null", b"{", b"\xff", b"{}", b'{"sha256": 1}']
)
def test_a_manifest_that_is_something_else_is_refused(folder: Path, text: bytes) -> None:
    (folder / MANIFEST_FILE).write_bytes(text)
    with pytest.raises(DamagedError, match=rf"^{MANIFEST_FILE} is damaged"):
        check_folder(folder)


@pytest.mark.parametrize("name", ["/etc/hostname", "../step-6/model"])
def test_files_outside_are_not_looked_at(folder: Path, name: str) -> None:
    path = folder / MANIFEST_FILE
    data = json.loads(path.read_bytes())
    data["files"][name] = data["files"].pop("model")
    del data["sha256"]
    path.write_text(json.dumps(signed(data)))
    with pytest.raises(DamagedError, match="is not in the folder"):
        check_folder(folder)


def signed(data: dict[str, object]) -> dict[str, object]:
    """Put a manifest's own sum right."""
    text = json.dumps(data, sort_keys=True)
    return data | {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def flip(path: Path, place: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)
