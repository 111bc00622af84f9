"""The summary of a run from its events: what failed, what each restart took, the goodput, and what the run costs.

Goodput is the share of the training time that was not lost to failures. Workers are counted, and paid for, from their
start to the next start or the end: a cluster costs the same while it restarts them. Nobody is counted while a run waits
for room or a trial pauses, nor after the last event of a command that was killed without a word: that may be a night.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from yolofleet.core.text import one_line
from yolofleet.tracking.json_lines import Row, seconds_of
from yolofleet.tracking.run_history import history_of


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


ENDS = ("end", "stopped", "failed")
"""Events after which no worker trains until the next start."""
PAUSED = "it has reached the step that it was asked to stop after"
"""The reason of the event ``left`` where a trial pauses: its workers are gone until it continues, if it ever does."""
COMMANDS = ("command", "queued")
"""Events with which a command begins."""


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
