"""Sizes of memory and files as users write them."""

import re

from ziphius.core.errors import ConfigError

_UNITS = {
    "": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)},
    **{f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", 1)},
}


def size_in_bytes(text: str, name: str) -> int:
    """Read a size such as 5GB, 1.5 GiB or 1000000 (bytes); GB is a power of 1000, GiB of 1024.

    Args:
        text: what the user wrote.
        name: of the option, for the error.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?I?B?)", text.strip(), re.IGNORECASE)
    unit = match[2].upper() if match else None
    size = 0 if match is None or unit not in _UNITS else int(float(match[1]) * _UNITS[unit])
    if size < 1:
        raise ConfigError(f"{name} = {text!r}: give a size such as 5GB, 200MB or 2GiB.")
    return size
