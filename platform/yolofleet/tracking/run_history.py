"""What happened to a run, in lines for people."""

from __future__ import annotations

from collections.abc import Sequence

from yolofleet.core.text import plural
from yolofleet.tracking.json_lines import Row

DESCRIPTIONS = {
    "failure": "{failure} failure at step {reached}: {reason}",
    "regained": "step {step} reached again: {steps_redone} done twice, {seconds_lost} s lost",
    "left": "saved step {step} and left: {reason}",
    "rolled_back": "loss or gradient was non-finite: back to step {to_step}, steps {window} are left out",
    "not_rolled_back": "loss or gradient was non-finite in steps {window}; not rolled back: {reason}",
    "ended_early": "ended early, at step {step}: {reason}",
    "out_of_memory": "out of memory in the step after {step}; from now on {measure}: {reason}",
    "epochs_raised": "epochs were raised from {was} to {now} at step {step}; the schedule is planned anew",
    "waiting": "{reason}",
    "admitted": "there is room after {waited_seconds} s",
    "checkpoint_failed": "checkpoint of step {step} could not be stored: {reason}",
    "checkpoint_passed_over": "checkpoint of step {step} is damaged and was passed over: {reason}",
    "checkpoint_skipped": "checkpoint of step {step} was left out: {reason}",
    "evaluation_failed": "the evaluation of step {step} beside the training failed: {reason}",
    "tracking_away": "MLflow at {uri} does not answer; training continues, and it gets everything later: {reason}",
    "tracking_back": "MLflow at {uri} has caught up after {seconds} s",
    "storage_back": "the storage answers again: {tries} failed within {seconds} s: {reason}",
    "node_joined": "node {node} joined the cluster: {offers}",
    "node_gone": "node {node} has left the cluster: {reason}",
    "stalled": "no worker has made progress for {silence_seconds} s after step {step}: {reason}",
    "slow_rank": "rank {rank} on {host} needs {excess_percent}% more time than the others, most of it for {stage}",
    "moving": "the workers make progress again after {seconds} s at step {step}",
    "notification_failed": "{to} could not be notified of {about}: {reason}",
    "stopped": "stopped: {reason}",
    "failed": "failed: {reason}",
}
COUNTED = {"steps_redone": "step", "tries": "call"}
"""The fields that a description names with what they count."""
LONGEST_REASON = 200
MOST_HISTORY = 300
"""Lines of a summary's history."""


def history_of(events: Sequence[Row]) -> list[str]:
    """Return a line for everything out of the ordinary, oldest first; of very many the newest, and how many more."""
    unusual = [event for event in events if event.get("kind") in DESCRIPTIONS]
    left_out = len(unusual) - MOST_HISTORY
    earlier = [f"{plural(left_out, 'earlier event')} in events*.jsonl, not shown"] if left_out > 0 else []
    return [*earlier, *(line for event in unusual[-MOST_HISTORY:] if (line := format_event(event)) is not None)]


def format_event(event: Row) -> str | None:
    """Return an event as a line for people; None for an ordinary one."""
    kind = str(event.get("kind"))
    if kind not in DESCRIPTIONS:
        return None
    fields = {key: _describe(key, value) for key, value in event.items()}
    try:
        text = DESCRIPTIONS[kind].format(**fields)
    except KeyError:  # an event of another version, without one of the fields
        text = f"{kind}: {fields}"
    return f"{_describe('time', event.get('time'))} {text}"


def _describe(key: str, value: object) -> str:
    if key in COUNTED and isinstance(value, int):
        return plural(value, COUNTED[key])
    text = " ".join(str(value).split())
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]}..."
