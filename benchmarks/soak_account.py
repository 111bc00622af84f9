"""What the soak's run says of its faults: what each cost, what a damaged checkpoint cost, what was left behind."""

from __future__ import annotations

from datetime import datetime
from typing import Any

LONGEST_DETECTION_SECONDS = 60.0
"""A fault that no failure follows within this time took nothing away (a node without workers, say)."""
MOST_MORE_HANDLES = 10
"""Connections come and go; a restart that keeps only one each time is beyond this after twenty minutes."""
LAST_READINGS = 5
HARMLESS = ("mlflow_down", "s3_503")
"""Training goes on through these."""
LONGEST_NOTICE_SECONDS = 120.0
"""How long after a fault the run's events may begin to show it: a row waits for the storage that is away."""
LONGEST_START_SECONDS = 300.0
"""A damaged checkpoint is noticed by the next workers that start, which faults may put off."""
SIGNS = {
    "kill_worker": ("failure",),
    "kill_raylet": ("node_gone", "failure"),
    "remove_node": ("node_gone",),
    "add_node": ("node_joined",),
    "stop_worker": ("stalled", "failure"),
    "partition": ("stalled", "node_gone", "failure"),
    "s3_503": ("storage_back",),
    "mlflow_down": ("tracking_away",),
    "corrupt_checkpoint": ("checkpoint_passed_over",),
}
"""The kinds of events by which the run's own log shows each fault."""

Event = dict[str, Any]


def leaks(
    num_groups: int,
    processes: list[int],
    names: set[str],
    names_before: set[str],
    keys: list[str],
    handles: list[int],
) -> list[str]:
    """Return what a run has left behind.

    Args:
        num_groups: Placement groups that are still held.
        processes: Training workers that still live.
        names: What lies in the temporary folder under our names.
        names_before: What lay there before.
        keys: Objects of the run directory.
        handles: How many file handles the command held, from its first step to its end.
    """
    found = [f"{num_groups} placement groups"] if num_groups else []
    found += [f"worker process {process}" for process in processes]
    found += [f"temporary folder {name}" for name in sorted(names - names_before)]
    gathered = max(handles[-LAST_READINGS:], default=0) - max(handles[:1], default=0)  # at its very end it closes all
    if gathered > MOST_MORE_HANDLES:
        found.append(f"{gathered} file handles of the command")
    return found + [f"object {key}" for key in keys if ".tmp-" in key or key.startswith("probe/")]


def after_damage(events: list[Event]) -> list[Event]:
    """Return the accounts of failures after which a damaged checkpoint was passed over for the one before it."""
    found, damaged = [], False
    for event in events:
        damaged = damaged or event["kind"] == "checkpoint_passed_over"
        if event["kind"] == "regained":
            found += [event] if damaged else []
            damaged = False
    return found


def costs(done: list[tuple[float, str]], events: list[Event]) -> list[tuple[str, Event]]:
    """Return each fault with the account of the setback that it caused, {} if it caused none.

    A setback lasts from the first failure (or leaving) to the moment when the run is as far as it was. Faults come
    faster than a group starts, so several may share one.

    Args:
        done: When each fault happened, in seconds since 1970, and its kind.
        events: The run's events, in the order of their times.
    """
    setbacks: list[tuple[float, float, Event]] = []
    began: float | None = None
    for event in events:
        if event["kind"] in ("failure", "resize") and began is None:
            began = seconds(event)
        elif event["kind"] == "regained" and began is not None:
            setbacks.append((began, seconds(event), event))
            began = None
    table = []
    for moment, kind in done:
        hit = (account for first, last, account in setbacks if first - LONGEST_DETECTION_SECONDS < moment < last)
        table.append((kind, {} if kind in HARMLESS else next(hit, {})))
    return table


def signs(done: list[tuple[float, str]], events: list[Event]) -> list[bool]:
    """Return for each fault whether the run's own events show it.

    An event is the sign of one fault only: two nodes that were killed left twice.

    Args:
        done: When each fault happened, in seconds since 1970, and its kind.
        events: The run's events, in the order of their times.
    """
    unclaimed = [(seconds(event), str(event["kind"])) for event in events]
    shown = []
    for moment, kind in done:
        longest = LONGEST_START_SECONDS if kind == "corrupt_checkpoint" else LONGEST_NOTICE_SECONDS
        fits = ((when, sign) for when, sign in unclaimed if sign in SIGNS[kind] and -1.0 <= when - moment <= longest)
        sign = next(fits, None)
        if sign is not None and sign[1] != "failure":  # the first failure of several faults is the failure of all
            unclaimed.remove(sign)
        shown.append(sign is not None)
    return shown


def seconds(event: Event) -> float:
    """Return when an event happened, in seconds since 1970."""
    return datetime.fromisoformat(str(event["time"])).timestamp()
