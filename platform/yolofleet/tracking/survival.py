"""What a run went through, from its events: what failed, what it cost, and how much of the time was of use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from yolofleet.tracking.json_lines import Row, seconds_of

ENDS = ("end", "stopped", "failed")
"""Events after which nobody trains until the next start."""
TOLD = {
    "failure": "{failure} failure at step {reached}: {reason}",
    "regained": "step {step} reached again: {steps_redone} steps done twice, {seconds_lost} s lost",
    "left": "saved step {step} and left: {reason}",
    "rolled_back": "numbers went wrong: back to step {to_step}, steps {window} are left out",
    "not_rolled_back": "numbers went wrong in steps {window}; not gone back: {reason}",
    "waiting": "{reason}",
    "checkpoint_failed": "checkpoint of step {step} could not be stored: {reason}",
    "checkpoint_passed_over": "checkpoint of step {step} is damaged and was passed over: {reason}",
    "checkpoint_skipped": "checkpoint of step {step} was left out: {reason}",
    "evaluation_failed": "the evaluation of step {step} beside the training failed: {reason}",
    "tracking_away": "MLflow at {uri} does not answer; training goes on, it gets everything later: {reason}",
    "tracking_back": "MLflow at {uri} has caught up after {seconds} s",
    "storage_back": "the storage answers again: {tries} calls failed within {seconds} s: {reason}",
    "node_joined": "node {node} joined the cluster: {offers}",
    "node_gone": "node {node} has left the cluster: {reason}",
    "stalled": "no worker has moved for {silence_seconds} s after step {step}: {reason}",
    "moving": "the workers move again after {seconds} s at step {step}",
    "stopped": "stopped: {reason}",
    "failed": "failed: {reason}",
}
LONGEST_REASON = 200


@dataclass(frozen=True)
class Survival:
    """The account of a run.

    Attributes:
        starts: How often workers were started.
        failures: Failures by kind.
        steps_redone: Steps that were done twice.
        seconds_lost: Time from each failure until the run was again as far as it had been.
        seconds_trained: Time between starts and ends, what was lost included.
        goodput: Share of that time that was not lost; None before anything was trained.
        history: A line for everything out of the ordinary, oldest first.
    """

    starts: int
    failures: dict[str, int]
    steps_redone: int
    seconds_lost: float
    seconds_trained: float
    goodput: float | None
    history: list[str]


def survival(events: Sequence[Row], rows: Sequence[Row] = ()) -> Survival:
    """Return the account of a run.

    Args:
        events: Its events, in the order of their times.
        rows: Its metrics; the newest one tells how long an unfinished run has trained.
    """
    regained = [event for event in events if event.get("kind") == "regained"]
    lost = sum(float(event.get("seconds_lost", 0.0)) for event in regained)
    trained = _seconds_trained(events, rows)
    return Survival(
        starts=sum(event.get("kind") == "start" for event in events),
        failures=dict(Counter(str(event.get("failure")) for event in events if event.get("kind") == "failure")),
        steps_redone=sum(int(event.get("steps_redone", 0)) for event in regained),
        seconds_lost=round(lost, 3),
        seconds_trained=round(trained, 3),
        goodput=round(max(0.0, 1 - lost / trained), 4) if trained > 0 else None,
        history=[line for event in events if (line := told(event)) is not None],
    )


def told(event: Row) -> str | None:
    """Return an event as a line for people; None for one that is in the ordinary course of things."""
    kind = str(event.get("kind"))
    if kind not in TOLD:
        return None
    fields = {key: _short(value) for key, value in event.items()}
    try:
        text = TOLD[kind].format(**fields)
    except KeyError:  # an event of another version, without one of the fields
        text = f"{kind}: {fields}"
    return f"{event.get('time')} {text}"


def _short(value: object) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}..."


def _seconds_trained(events: Iterable[Row], rows: Sequence[Row]) -> float:
    total, began, last = 0.0, None, None
    for event in events:
        last = seconds_of(event)
        if event.get("kind") == "start" and began is None:
            began = last
        elif event.get("kind") in ENDS and began is not None:
            total, began = total + last - began, None
    if began is None or last is None:
        return total
    return total + max(last, *(seconds_of(row) for row in rows[-1:]), began) - began
