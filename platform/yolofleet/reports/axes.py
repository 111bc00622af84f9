"""The axes of charts: their ends, and round numbers along them, on linear and on logarithmic scales."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

Ends = tuple[float, float]


def share_along(value: float, low: float, high: float, log: bool) -> float:
    """Return where a value lies between two ends: 0 at the lower one, 1 at the upper one."""
    if log:
        return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
    return (value - low) / (high - low)


def ends_of(values: Sequence[float], log: bool) -> Ends:
    """Return the ends of the data, apart from each other."""
    low, high = min(values), max(values)
    if high - low > 1e-12 * max(abs(high), abs(low), 1e-300):
        return low, high
    return (low / 1.5, high * 1.5) if log else (low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5))


def with_margin(ends: Ends, log: bool) -> Ends:
    """Return ends a little further apart, so that marks at the ends are whole."""
    low, high = ends
    if log:
        factor = (high / low) ** 0.06
        return low / factor, high * factor
    margin = 0.06 * (high - low)
    return low - margin, high + margin


def linear_ticks(low: float, high: float, about: int) -> list[float]:
    """Return round numbers that hold both ends between them."""
    rough = (high - low) / about
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.10g}") for index in range(first, last + 1)]


def inside(ticks: Sequence[float], low: float, high: float) -> list[float]:
    """Return the ticks that lie between two ends."""
    room = 1e-9 * (high - low)
    return [tick for tick in ticks if low - room <= tick <= high + room]


def log_ticks(low: float, high: float) -> list[float]:
    """Return round numbers between two ends: few over a wide range, more over a narrow one."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    whole = [10.0**power for power in powers if low <= 10.0**power <= high]
    if len(whole) >= 3:
        return whole[:: math.ceil(len(whole) / 6)]
    ticks: list[float] = []
    for factors in ((1.0, 3.0), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)):
        ticks = [f * 10.0**power for power in powers for f in factors if low <= f * 10.0**power <= high]
        if len(ticks) >= 4:
            break
    return ticks or list(_spread(low, high))


def _spread(low: float, high: float) -> Iterator[float]:
    yield from (float(f"{low * (high / low) ** share:.3g}") for share in (0.05, 0.5, 0.95))


def tick_text(value: float) -> str:
    """Return a value as a tick shows it."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e7):
        return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e")
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{round(value, 6):g}"
