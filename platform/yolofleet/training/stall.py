"""A group of workers that stands still, noted in the run's events before it is so long that anyone is ended for it."""

from __future__ import annotations

from yolofleet.tracking.mirror import Told
from yolofleet.training.attendance import Member, stood_still_seconds, unheard

SHARE_OF_TIMEOUT = 0.25
"""Standing still for this share of ``cluster.hang_timeout_seconds`` is worth a line."""


class Stall:
    """Notes when a group stops to move, and when it moves again.

    Args:
        told: Takes the events ``stalled`` and ``moving``.
        hang_timeout_seconds: The silence after which workers are ended.
    """

    def __init__(self, told: Told, hang_timeout_seconds: float) -> None:
        self._told = told
        self._threshold_seconds = hang_timeout_seconds * SHARE_OF_TIMEOUT
        self._longest_seconds = 0.0

    def look(self, now: float, members: list[Member]) -> None:
        """Judge everyone's last report.

        Args:
            now: The time by the clock of the list.
            members: The workers that have reported.
        """
        seconds = stood_still_seconds(now, members)
        step = min((member.step for member in members), default=0)
        if seconds > self._threshold_seconds:
            if not self._longest_seconds:
                lost = [member.described() for member in unheard(now, members)]
                reason = f"nothing is heard of {', '.join(lost)}" if lost else "all of them answer, and wait"
                self._told("stalled", step=step, silence_seconds=round(seconds, 3), reason=reason)
            self._longest_seconds = max(self._longest_seconds, seconds)
        elif self._longest_seconds:
            self._told("moving", step=step, seconds=round(self._longest_seconds, 3))
            self._longest_seconds = 0.0
