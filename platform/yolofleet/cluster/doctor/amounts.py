"""Amounts of bytes in the words of a line."""

from __future__ import annotations


def readable(num_bytes: float) -> str:
    """Return a number of bytes for people: ``64 MB``, ``2.1 GB``."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.3g} MB"


def speed(bytes_per_second: float) -> str:
    """Return a speed for people: ``120 MB/s``."""
    return f"{readable(bytes_per_second)}/s"
