"""What each restart of a run took, by its events: our own code, Ray's, and waiting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from yolofleet.tracking.json_lines import Row, seconds_of


@dataclass(frozen=True)
class Restart:
    """The time that a restart of the workers took, from the failure as the driver saw it to the first step."""

    own_seconds: float
    """In our own code: the driver's checks, building and restoring, the first step."""
    ray_seconds: float
    """In Ray's: placing the workers and starting their processes."""
    waited_seconds: float
    """Waiting for nodes, and for a storage that did not answer. The event of an outage comes some time after its end,
    and counts here as its end."""


def restarts(events: Sequence[Row]) -> list[Restart]:
    """Return the times of each restart under one driver; those that failed themselves are left out.

    Args:
        events: A run's events, in the order of their times.
    """
    complete: list[Restart] = []
    restart: dict[str, Row] = {}
    for event in events:
        kind = str(event.get("kind"))
        if kind == "failure":
            restart = {kind: event}
        elif kind == "waiting" and restart:
            restart.setdefault(kind, event)  # the reason may change meanwhile
        elif kind in ("starting", "start") and restart:
            restart[kind] = event
        elif kind == "regained" and {"starting", "start"} <= restart.keys():
            complete.append(_split_time(restart, event, events))
            restart = {}
    return complete


def _split_time(restart: dict[str, Row], regained: Row, events: Sequence[Row]) -> Restart:
    failed, starting, start = (seconds_of(restart[kind]) for kind in ("failure", "starting", "start"))
    prepared = float(restart["start"].get("prepared_seconds", 0.0))
    first_step = float(regained.get("first_step_seconds", 0.0))
    first_step_at = min(start + first_step, seconds_of(regained))
    waited = 0.0
    if "waiting" in restart:  # after the wait it looked for free resources, and asked Ray for the workers
        settled = float(restart["starting"].get("settled_seconds", 0.0))
        waited = max(0.0, starting - settled - seconds_of(restart["waiting"]))
    ours = ((failed, starting - waited), (start - prepared, first_step_at))
    outages = [
        (seconds_of(event) - float(event.get("seconds", 0.0)), seconds_of(event))
        for event in events
        if event.get("kind") == "storage_back"
    ]
    away = sum(_overlap(part, outages) for part in ours)
    own = starting - failed + prepared + first_step - waited - away
    return Restart(
        own_seconds=round(max(0.0, own), 3),
        ray_seconds=round(max(0.0, start - starting - prepared), 3),
        waited_seconds=round(waited + away, 3),
    )


def _overlap(part: tuple[float, float], spans: Sequence[tuple[float, float]]) -> float:
    """Return how much of a stretch of time any of the spans covers."""
    covered, reached = 0.0, part[0]
    for begin, end in sorted(spans):
        begin, end = max(begin, reached), min(end, part[1])
        if end > begin:
            covered, reached = covered + end - begin, end
    return covered
