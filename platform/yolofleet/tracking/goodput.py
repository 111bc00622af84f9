"""The summary of a run from its events: its status, what failed, the goodput, and what the run costs.

Goodput is the share of the training time that was not lost to failures. Workers are counted, and paid for, from their
start to the next start or the end: a cluster costs the same while it restarts them. Nobody is counted while a run waits
for room or a trial pauses, nor after the last event of a command that was killed without a word: that may be a night.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from yolofleet.core.text import one_line, plural
from yolofleet.tracking.json_lines import Row, seconds_of

STATUS_OF_EVENT = {"start": "RUNNING", "end": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
"""Event kinds that decide the status of a run, and MLflow's word for it."""
ENDS = ("end", "stopped", "failed")
"""Events after which no worker trains until the next start."""
PAUSED = "it has reached the step that it was asked to stop after"
"""The reason of the event ``left`` where a trial pauses: its workers are gone until it continues, if it ever does."""
COMMANDS = ("command", "queued")
"""Events with which a command begins."""
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


def status_after(events: Sequence[Row]) -> str | None:
    """Return the status of a run (RUNNING, FINISHED, FAILED, KILLED) by its events, oldest first; None without any."""
    kinds = [str(event.get("kind")) for event in events]
    return next((STATUS_OF_EVENT[kind] for kind in reversed(kinds) if kind in STATUS_OF_EVENT), None)


@dataclass(frozen=True)
class RunSummary:
    """The summary of a run."""

    starts: int
    """How often workers were started."""
    failures: dict[str, int]
    """Failures by kind."""
    steps_redone: int
    """Steps that were done twice."""
    seconds_lost: float
    """Time from each failure until the run was as far again as before."""
    seconds_trained: float
    """Time in which there were workers, between starts and ends, lost time included."""
    goodput: float | None
    """Share of the time between starts and ends that was not lost; None before anything was trained."""
    worker_hours: float
    """Hours of all workers, those of restarts included."""
    gpu_hours: float
    """The same in GPUs."""
    cost: float | None
    """What the workers cost so far; None where the job names no `cluster.price_per_hour`."""
    forecast_cost: float | None
    """What the run will have cost at its end, at the pace since its last start; None while that is not known."""
    history: list[str]
    """A line for everything out of the ordinary, oldest first; of very many the newest, and how many there are more."""


def summarize_run(events: Sequence[Row], rows: Sequence[Row] = ()) -> RunSummary:
    """Return the summary of a run.

    Args:
        events: Its events, in the order of their times.
        rows: Its metrics; the newest one says how long an unfinished run has trained.
    """
    regained = [event for event in events if event.get("kind") == "regained"]
    lost = sum(float(event.get("seconds_lost", 0.0)) for event in regained)
    periods = list(_periods(events, rows))
    whole = sum(period.whole_seconds for period in periods)
    cost, remaining = _cost(periods), _remaining_cost(periods, rows)
    return RunSummary(
        starts=sum(event.get("kind") == "start" for event in events),
        failures=dict(
            Counter(one_line(event.get("failure"), 80) for event in events if event.get("kind") == "failure")
        ),
        steps_redone=sum(int(event.get("steps_redone", 0)) for event in regained),
        seconds_lost=round(lost, 3),
        seconds_trained=round(sum(period.seconds for period in periods), 3),
        goodput=round(max(0.0, 1 - lost / whole), 4) if whole > 0 else None,
        worker_hours=round(sum(period.worker_hours for period in periods), 4),
        gpu_hours=round(sum(period.worker_hours * period.gpus_per_worker for period in periods), 4),
        cost=None if cost is None else round(cost, 2),
        forecast_cost=None if cost is None or remaining is None else round(cost + remaining, 2),
        history=history_of(events),
    )


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


def ends_wilfully(event: Row) -> bool:
    """Return whether nobody trains after an event because somebody wanted it so: a run's end, or a trial's pause."""
    is_pause = event.get("kind") == "left" and event.get("reason") == PAUSED
    return is_pause or (event.get("kind") in ENDS and bool(event.get("is_wilful", True)))


def account_rows(events: Sequence[Row]) -> Iterator[Row]:
    """Yield what a run had cost at each of its checkpoints, and at its end, as rows of metrics.

    A row depends on the events before it alone, so it is the same whenever it is made.
    """
    worker_hours = gpu_hours = cost = 0.0
    has_price = False
    for event, before, now, start in _with_workers(events):
        if start is not None:
            period = _Period(start, now - before)
            worker_hours += period.worker_hours
            gpu_hours += period.worker_hours * period.gpus_per_worker
            cost += period.worker_hours * float(start.get("price_per_hour") or 0.0)
        if event.get("kind") in ("checkpoint", "end") and "step" in event:
            row = {"step": event["step"], "time": event["time"], "worker_hours": worker_hours, "gpu_hours": gpu_hours}
            yield row | ({"cost": cost} if has_price else {})
        if event.get("kind") == "start":
            has_price = event.get("price_per_hour") is not None


def _with_workers(events: Iterable[Row], until: float = 0.0) -> Iterator[tuple[Row, float, float, Row | None]]:
    """Yield each event, the times of the one before it and its own, and the start of the workers that were there.

    The start is None where nobody was there: at a command, the one before it has ended without a word. The last event
    is an empty one, at the moment until which the run was alive.
    """
    start: Row | None = None
    before = 0.0
    for event in (*events, Row()):
        kind, now = event.get("kind"), seconds_of(event) if event else max(until, before)
        yield event, before, now, None if kind in COMMANDS else start
        before = now
        if kind == "start":
            start = event
        elif kind in (*COMMANDS, "waiting") or ends_wilfully(event):
            start = None


def gpu_hours_by_owner(
    events: Sequence[Row], *, since: float, until: float, sender: Row | None = None
) -> dict[tuple[str | None, str | None], float]:
    """Return the GPU hours of a run within a span of time, by the user and the project of who sent it.

    Args:
        events: Its events, in the order of their times.
        since: Begin of the span, in seconds since 1970.
        until: When a run that has no end was last alive.
        sender: The event `queued` that holds until the run has one of its own, for a trial that of its search.
    """
    hours: defaultdict[tuple[str | None, str | None], float] = defaultdict(float)
    for event, before, now, start in _with_workers(events, until):
        if start is not None and now > since:
            gpus = int(start.get("workers", 1)) * float(start.get("gpus_per_worker", 0.0))
            owner = ((sender or {}).get("user"), (sender or {}).get("project"))
            hours[owner] += (now - max(before, since)) / 3600 * gpus
        if event.get("kind") == "queued":
            sender = event
    return dict(hours)


@dataclass
class _Period:
    """The time from a start of workers to the next one, or to the end."""

    start: Row
    seconds: float = 0.0
    """In which they were there."""
    whole_seconds: float = 0.0
    is_last: bool = False

    @property
    def worker_hours(self) -> float:
        return self.seconds / 3600 * int(self.start.get("workers", 1))

    @property
    def gpus_per_worker(self) -> float:
        return float(self.start.get("gpus_per_worker", 0.0))


def _periods(events: Sequence[Row], rows: Sequence[Row]) -> Iterator[_Period]:
    """Yield the times from starts to ends; the newest row says how long an unfinished run has trained."""
    period: _Period | None = None
    for event, before, now, start in _with_workers(events, max((seconds_of(row) for row in rows[-1:]), default=0.0)):
        kind = event.get("kind")
        if period is not None:
            period.whole_seconds += now - before
            period.seconds += 0.0 if start is None else now - before
            if kind == "start" or ends_wilfully(event):
                yield period
                period = None
        if kind == "start":
            period = _Period(event)
    if period is not None:
        period.is_last = True
        yield period


def _cost(periods: Sequence[_Period]) -> float | None:
    """Return what the workers cost; None where the newest start has no price."""
    if not periods or periods[-1].start.get("price_per_hour") is None:
        return None
    return sum(period.worker_hours * float(period.start.get("price_per_hour") or 0.0) for period in periods)


def _remaining_cost(periods: Sequence[_Period], rows: Sequence[Row]) -> float | None:
    """Return what the steps that are left will cost at the pace since the last start; None before two rows of it."""
    if not periods or not periods[-1].is_last:
        return 0.0 if periods else None
    start = periods[-1].start
    steps = [row for row in rows if "loss" in row and "step" in row and seconds_of(row) >= seconds_of(start)]
    if "num_steps" not in start or len(steps) < 2 or steps[-1]["step"] <= steps[0]["step"]:
        return None
    seconds_per_step = (seconds_of(steps[-1]) - seconds_of(steps[0])) / (steps[-1]["step"] - steps[0]["step"])
    hours = float(seconds_per_step) * (int(start["num_steps"]) - int(steps[-1]["step"])) / 3600
    return hours * int(start.get("workers", 1)) * float(start.get("price_per_hour") or 0.0)
