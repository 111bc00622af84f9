"""The status of a run, by its events."""

from __future__ import annotations

from collections.abc import Sequence

from yolofleet.tracking.json_lines import Row

STATUS_OF_EVENT = {"start": "RUNNING", "end": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
"""Event kinds that decide the status of a run, and MLflow's word for it."""


def status_after(events: Sequence[Row]) -> str | None:
    """Return the status of a run (RUNNING, FINISHED, FAILED, KILLED) by its events, oldest first; None without any."""
    kinds = [str(event.get("kind")) for event in events]
    return next((STATUS_OF_EVENT[kind] for kind in reversed(kinds) if kind in STATUS_OF_EVENT), None)
