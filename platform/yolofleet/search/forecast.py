"""The forecast of a search before it starts: trials, compute, and time with its range."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from yolofleet.core.text import plural
from yolofleet.search.feasibility import TRAINING_PASSES, Screened
from yolofleet.search.trials import Trials
from yolofleet.specs.job import JobSpec
from yolofleet.specs.search import SearchSpec

SPEED_RANGE = (0.6, 1.6)
"""Time per FLOP of other models of a family, in units of the base job's."""
LEAST_DONE = 0.02
"""Share of a search after which its pace says how long it will take."""
DEVIATIONS = 2.0
"""Half the width of the compute's range, in standard deviations."""


@dataclass(frozen=True)
class Forecast:
    """The expected cost of a search."""

    trials: int | None
    """Trials that train; None where only hours limit them."""
    runs: int | None
    """Runs of all trials, repeats included."""
    feasible_share: float
    """Share of the candidates that meet the limits."""
    petaflops: float | None
    """Training compute of all runs, in units of 10^15 operations."""
    petaflops_range: tuple[float, float] | None
    """Its lowest and highest likely value."""
    hours: float | None
    """Worker hours; None where the speed is not known."""
    hours_range: tuple[float, float] | None
    """Their lowest and highest likely value."""
    wall_hours: float | None
    """Hours from start to end; None where the speed is not known."""


def forecast(
    spec: SearchSpec,
    job: JobSpec,
    screened: Sequence[Screened],
    *,
    num_candidates: int | None,
    samples_per_second: float | None,
    base_gflops: float,
    at_a_time: int | None,
) -> Forecast:
    """Forecast a search from a sample of its candidates.

    Args:
        spec: The search.
        job: Its base job.
        screened: Candidates spread evenly over the space.
        num_candidates: Number of all candidates; None in a continuous space.
        samples_per_second: Training speed of the base job on one worker.
        base_gflops: GFLOPs of the base job's forward pass in training, for one image.
        at_a_time: Number of trials that run at a time.
    """
    feasible = [entry for entry in screened if entry.feasible]
    share = len(feasible) / max(len(screened), 1)
    costs = [entry.figures["training_petaflops"] * scheduled_share(spec) for entry in feasible]
    trials = spec.budget.trials
    if num_candidates is not None:
        most = max(1, round(num_candidates * share))
        trials = min(trials, most) if trials is not None else most
    if not costs or (trials is None and spec.budget.gpu_hours is None):
        return Forecast(trials, None, share, None, None, None, None, spec.budget.wall_hours)
    mean = sum(costs) / len(costs)
    deviation = math.sqrt(sum((cost - mean) ** 2 for cost in costs) / len(costs))
    speed = None  # petaFLOPs an hour and worker
    if samples_per_second is not None:
        speed = samples_per_second * base_gflops * 1e9 * TRAINING_PASSES * 3600 / 1e15
    limit = spec.budget.gpu_hours
    if trials is None:
        hours = limit or 0.0
        return Forecast(None, None, share, None, None, hours, (hours, hours), _wall(spec, hours, at_a_time, job))
    runs = trials * spec.repeats
    total = mean * runs
    spread = DEVIATIONS * deviation * math.sqrt(runs)
    around = (max(total - spread, min(costs) * runs), total + spread)
    if speed is None:
        return Forecast(trials, runs, share, total, around, None, None, None)
    expected = total / speed
    low, high = around[0] / speed * SPEED_RANGE[0], around[1] / speed * SPEED_RANGE[1]
    if limit is not None:
        expected, low, high = min(expected, limit), min(low, limit), min(high, limit)
    return Forecast(trials, runs, share, total, around, expected, (low, high), _wall(spec, expected, at_a_time, job))


def scheduled_share(spec: SearchSpec) -> float:
    """Return the expected share of a full training that a trial gets; halving promotes one in r from each rung."""
    scheduler = spec.scheduler
    if scheduler.name != "asha":
        return 1.0
    share = 0.0
    for rung in range(scheduler.rungs + 1):
        reached = scheduler.reduction**-rung
        before = 0.0 if rung == 0 else scheduler.reduction ** (rung - 1 - scheduler.rungs)
        share += reached * (scheduler.reduction ** (rung - scheduler.rungs) - before)
    return share


def work_done(
    spec: SearchSpec, trials: Trials, running: Mapping[tuple[int, int], float], num_candidates: int | None
) -> float | None:
    """Return the share of a search's budget that is used, from 0 to 1; None where only the clock limits it.

    Args:
        spec: The search.
        trials: Its record.
        running: Share of the training done, of the runs that train now, by trial and repeat.
        num_candidates: Number of all candidates; None in a continuous space.
    """
    shares = []
    if spec.budget.gpu_hours is not None:
        shares.append(trials.gpu_seconds / 3600 / spec.budget.gpu_hours)
    numbers = [number for number in (spec.budget.trials, num_candidates) if number is not None]
    if numbers:
        done = 0.0
        for trial in trials.trials.values():
            for repeat in range(spec.repeats):
                newest = trial.at(repeat)
                done += max(0.0 if newest is None else newest.share, running.get((trial.number, repeat), 0.0))
        ended = sum(trial.end is not None for trial in trials.trials.values())
        expected = max(min(numbers) * spec.repeats * scheduled_share(spec), 1e-9)
        shares.append(1.0 if ended >= min(numbers) else min(done / expected, 0.99))
    return min(max(shares), 1.0) if shares else None


def seconds_left(spec: SearchSpec, elapsed_seconds: float, done: float | None, done_before: float) -> float | None:
    """Return how long a search will still take at its own pace; None before there is one.

    Args:
        spec: The search.
        elapsed_seconds: Time since this start of it.
        done: Share of its budget that is used (`work_done`).
        done_before: The same at this start.
    """
    left = []
    if done is not None and done - done_before >= LEAST_DONE:
        left.append(elapsed_seconds * (1 - done) / (done - done_before))
    if spec.budget.wall_hours is not None:
        left.append(max(3600 * spec.budget.wall_hours - elapsed_seconds, 0.0))
    return min(left) if left else None


def _wall(spec: SearchSpec, hours: float, at_a_time: int | None, job: JobSpec) -> float | None:
    if at_a_time is None:
        return None
    per_hour = at_a_time * job.cluster.most_workers * (job.cluster.gpus_per_worker or 1.0)
    wall = hours / per_hour
    return wall if spec.budget.wall_hours is None else min(wall, spec.budget.wall_hours)


def forecast_lines(expected: Forecast, spec: SearchSpec) -> list[str]:
    """Return a forecast as lines of text."""
    algorithm = spec.algorithm.name.replace("_", " ")
    scheduler = {"none": "every trial trains to its end", "asha": "successive halving", "population": "a population"}
    lines = [
        ("as many trials as the hours allow" if expected.trials is None else plural(expected.trials, "trial"))
        + (f" of {plural(spec.repeats, 'run')}" if spec.repeats > 1 else "")
        + f", chosen by {algorithm}; {scheduler[spec.scheduler.name]}",
        f"{expected.feasible_share:.0%} of the space meets the constraints",
    ]
    if expected.petaflops is not None and expected.petaflops_range is not None:
        low, high = expected.petaflops_range
        lines.append(f"compute: about {expected.petaflops:.3g} PFLOP of training ({low:.3g} to {high:.3g})")
    if expected.hours is None or expected.hours_range is None:
        lines.append(
            "time: not known; give samples_per_second (training speed of the base job on one worker, images a second)"
        )
    else:
        low, high = expected.hours_range
        wall = "" if expected.wall_hours is None else f"; about {_hours(expected.wall_hours)} by the clock"
        lines.append(f"time: about {_hours(expected.hours)} of workers ({_hours(low)} to {_hours(high)}){wall}")
    limits = spec.budget.document()
    lines.append("it ends at " + " or ".join(f"{value:g} {name.replace('_', ' ')}" for name, value in limits.items()))
    return lines


def _hours(hours: float) -> str:
    return f"{hours * 60:.1f} minutes" if hours < 1.5 else f"{hours:.1f} hours"
