"""Durations as people write and read them: 90s, 12m, 5h, 30d, 2w."""

from __future__ import annotations

import re

from yolofleet.core.text import cut

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
LONGEST_SECONDS = 10.0**10


def parse_duration(text: str) -> float:
    """Return the seconds that ``45s``, ``1.5h`` or ``30d`` means.

    Raises:
        ValueError: It is no duration.
    """
    match = re.fullmatch(r"\s*([0-9]{1,10}(?:\.[0-9]{1,10})?)\s*([smhdw])\s*", text, flags=re.ASCII)
    seconds = float(match[1]) * UNITS[match[2]] if match else LONGEST_SECONDS
    if seconds >= LONGEST_SECONDS:
        raise ValueError(f"{cut(text)!r} is not a duration; write a number and s, m, h, d or w, e.g. 12h or 30d")
    return seconds


def format_duration(seconds: float) -> str:
    """Return a duration in four characters at most, rounded down: ``59s``, ``12m``, ``47h``, ``30d``, ``99w``."""
    for unit, most in (("s", 100), ("m", 100), ("h", 48), ("d", 100)):
        if seconds < most * UNITS[unit]:
            return f"{int(max(seconds, 0)) // UNITS[unit]}{unit}"
    return f"{min(int(seconds) // UNITS['w'], 999)}w"


def describe_duration(seconds: float) -> str:
    """Return a duration in words: ``59 s``, ``12 min``, ``3 h 05 min``, ``2 d 07 h``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24:02d} h"
