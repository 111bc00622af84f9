"""How far a node's clock is from the one that asks.

Nothing in a run compares clocks of two hosts to decide what it does; but events of several hosts are sorted by their
times, and S3 and TLS refuse a clock that is minutes off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import time

from yolofleet.cluster.doctor.line import Line, Verdict

SUBJECT = "clock"
WARN_SECONDS = 1.0
FAIL_SECONDS = 30.0
CURE = "run chrony or systemd-timesyncd on the node (in a container: on its host)"


@dataclass(frozen=True)
class ClockOffset:
    """How far another clock is ahead.

    Attributes:
        seconds: The best estimate; negative where it is behind.
        uncertainty_seconds: The most by which the estimate may be wrong.
    """

    seconds: float
    uncertainty_seconds: float

    @classmethod
    def from_moment(cls, before: float, theirs: float, after: float) -> ClockOffset:
        """Return the offset of a clock that said ``theirs`` between two moments of this one, all in seconds."""
        return cls(theirs - (before + after) / 2, (after - before) / 2)

    @property
    def certain_seconds(self) -> float:
        """How far apart the clocks are at least."""
        return max(0.0, abs(self.seconds) - self.uncertainty_seconds)


def measure_clock(ask: Callable[[], float], tries: int = 3, now: Callable[[], float] = time) -> ClockOffset:
    """Ask another clock a few times and return what the quickest answer tells."""
    found = []
    for _ in range(tries):
        before = now()
        theirs = ask()
        found.append(ClockOffset.from_moment(before, theirs, now()))
    return min(found, key=lambda offset: offset.uncertainty_seconds)


def judge_clock(place: str, offset: ClockOffset) -> Line:
    """Judge by what is certain: a slow answer is no wrong clock."""
    apart = offset.certain_seconds
    measured = {"offset_seconds": offset.seconds, "uncertainty_seconds": offset.uncertainty_seconds}
    if apart <= WARN_SECONDS:
        return Line(place, SUBJECT, "ok", f"within {apart + 2 * offset.uncertainty_seconds:.2g} s", measured=measured)
    side = "ahead of" if offset.seconds > 0 else "behind"
    verdict: Verdict = "fail" if apart > FAIL_SECONDS else "warn"
    return Line(place, SUBJECT, verdict, f"at least {apart:.1f} s {side} the one that asks", CURE, measured)
