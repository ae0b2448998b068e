"""`core/sizes.py`: sizes as users write them."""

import pytest

from ziphius.core.errors import ConfigError
from ziphius.core.sizes import size_in_bytes

SIZES = [
    ("5GB", 5 * 10**9),
    ("1.5mb", 1_500_000),
    ("20 KB", 20_000),
    ("7", 7),
    ("1TB", 10**12),
    ("2GiB", 2**31),
    ("0.5 kib", 512),
]


@pytest.mark.parametrize(("text", "size"), SIZES)
def test_sizes(text, size):
    assert size_in_bytes(text, "x") == size


@pytest.mark.parametrize("text", ["", "5G", "5Gi", "5IB", "GB", "-1GB", "0GB", "5 apples", "nan"])
def test_sizes_that_are_none(text):
    with pytest.raises(ConfigError, match=r"room = .*: give a size"):
        size_in_bytes(text, "room")
