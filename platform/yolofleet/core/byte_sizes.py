"""Numbers of bytes as people write and read them."""

from __future__ import annotations

import re

from yolofleet.core.text import cut

_FACTORS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15}
_FACTORS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def parse_bytes(text: str) -> int:
    """Return the number of bytes that ``128MB``, ``1.5 GB`` or ``512MiB`` means.

    Raises:
        ValueError: It is no size.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text, flags=re.ASCII)
    if match is None or match[2].upper() not in _FACTORS:
        raise ValueError(f"{cut(text)!r} is not a size; write a number of bytes, or e.g. 500MB, 200GB, 512MiB")
    size = float(match[1]) * _FACTORS[match[2].upper()]
    if size >= 2**63:
        raise ValueError(f"{cut(text)!r} is larger than any disk; write less")
    return int(size)


def format_bytes(num_bytes: float) -> str:
    """Return a number of bytes for people: ``128 MB``, ``2.1 GB``."""
    step = max(0, min((len(str(int(num_bytes))) - 1) // 3, len(_UNITS) - 1))
    value = num_bytes / 1000**step
    return f"{value:.0f} {_UNITS[step]}" if value >= 100 or step == 0 else f"{value:.1f} {_UNITS[step]}"
