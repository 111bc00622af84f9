"""How a run advances: its loss, the values of a step on their way from the device, and what a restart cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from yolofleet.losses import LossResult
from yolofleet.tracking.goodput import ENDS, ends_wilfully
from yolofleet.tracking.json_lines import Row, seconds_of
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.loop.worker_group import WorkerGroup
from yolofleet.training.loop.worker_progress import KnownProgress, furthest


class LossTerms:
    """The loss terms and skipped samples of all workers since the last row of metrics."""

    NAMES = ("loss", "loss_box", "loss_objectness", "loss_classification")

    def __init__(self, group: WorkerGroup) -> None:
        self._group = group
        self._sums = torch.zeros(len(self.NAMES) + 2, dtype=torch.float64, device=group.device)

    def shared(self) -> torch.Tensor:
        """Return a copy of this worker's sums, which the caller sums over the workers and gives to `means`."""
        return self._sums.clone()

    def begin(self) -> None:
        """Start anew."""
        self._sums.zero_()

    @torch.no_grad()
    def add(self, result: LossResult, num_skipped: int) -> None:
        """Add a micro-batch's loss and the number of its unreadable samples; nothing waits for a device."""
        box, objectness, classification = (
            term.detach().double().reshape(()) for term in (result.box, result.objectness, result.classification)
        )
        self._sums[:4] += torch.stack([box + objectness + classification, box, objectness, classification])
        self._sums[4] += 1
        self._sums[5] += num_skipped

    def take(self) -> dict[str, float]:
        """Return the means over all workers' micro-batches, and start anew; a collective."""
        self._group.sum(self._sums)
        sums = self._sums.tolist()
        self.begin()
        return self.means(sums)

    def means(self, sums: list[float]) -> dict[str, float]:
        """Return the means of sums over all workers."""
        *terms, count, skipped = sums
        count = count or math.nan  # nothing was added: the means are not known
        return {name: term / count for name, term in zip(self.NAMES, terms, strict=True)} | {"skipped_samples": skipped}


@dataclass(frozen=True)
class Reading:
    """Values of a step on their way from the device: a step later they are there, and the device need not wait."""

    values: torch.Tensor
    """(n,) on the host; from a GPU in pinned memory, filled when the device has come so far."""
    copied: torch.cuda.Event | None
    """When that is, on a GPU."""
    row: dict[str, Any] | None
    """The host's part of the row of metrics that is due at the step; None if none is."""

    @staticmethod
    def begin(values: torch.Tensor, row: dict[str, Any] | None) -> Reading:
        """Begin to copy (n,) values of the device, behind the work that is queued there."""
        copied = torch.cuda.Event() if values.is_cuda else None  # type: ignore[no-untyped-call]
        on_host = values.to("cpu", non_blocking=True)
        if copied is not None:
            copied.record()
        return Reading(on_host, copied, row)

    def read(self) -> list[float]:
        """Return the values; waits for the step they are of."""
        if self.copied is not None:
            self.copied.synchronize()
        values: list[float] = self.values.tolist()
        return values


class RestartCost:
    """Records in the run's events when a run is again as far as it had been, and what the restart cost.

    How far it had been is what the driver last heard from the workers, and else the newest row of metrics; so without
    Ray it is known to ``log_every_steps`` only. A start removes the rows of steps that are done again, and may fail
    before it is as far as before: so its event ``start`` says how far that was.

    Args:
        run: The run directory, before its rows of later steps are removed.
        step: The step that the run resumes from.
        group: This worker.
        clock: Seconds since 1970.
    """

    def __init__(
        self, run: RunDirectory, step: int, group: WorkerGroup, clock: Callable[[], float] = time.time
    ) -> None:
        self._run = run
        self._clock = clock
        self._start_step = step
        self._first_step_seconds: float | None = None
        self._began = clock()
        events = run.events()
        self._before = furthest(group.progress.known, _newest_row(run), _not_regained(events))
        if self._before is not None and _ended_wilfully(events):
            self._before = KnownProgress(self._before.step, self._began)

    @property
    def reached(self) -> dict[str, float]:
        """How far the run had been before this start, and since when, for its event ``start``."""
        return {} if self._before is None else {"reached": self._before.step, "reached_at": self._before.at}

    def begin(self) -> None:
        """Record that the preparation is over: the first step begins."""
        self._began = self._clock()

    def observe(self, step: int) -> None:
        """Record that ``step`` steps are done; append the event ``regained`` once that is further than before."""
        if self._before is None:
            return
        if self._first_step_seconds is None:
            self._first_step_seconds = round(self._clock() - self._began, 3)
        if step <= self._before.step:
            return
        self._run.append_event(
            "regained",
            step=step,
            steps_redone=max(0, self._before.step - self._start_step),
            seconds_lost=round(max(0.0, self._clock() - self._before.at), 3),
            first_step_seconds=self._first_step_seconds,
            seconds_since_start=round(self._clock() - self._began, 3),
        )
        self._before = None


def _newest_row(run: RunDirectory) -> KnownProgress | None:
    rows = run.metrics()
    if not rows:
        return None
    row = max(rows, key=lambda row: int(row.get("step", 0)))
    return KnownProgress(int(row.get("step", 0)), seconds_of(row))


def _not_regained(events: Sequence[Row]) -> KnownProgress | None:
    """Return how far the run had been before its newest start; None where that start came as far again."""
    newest = next((event for event in reversed(events) if event.get("kind") in ("start", "regained")), Row())
    return KnownProgress(int(newest["reached"]), float(newest["reached_at"])) if "reached" in newest else None


def _ended_wilfully(events: Sequence[Row]) -> bool:
    """Return whether the run was ended on purpose; workers that save and leave (``left``) may do so for a lost node."""
    for event in reversed(events):
        if ends_wilfully(event):
            return True
        if event.get("kind") in ("start", *ENDS):
            return False
    return False
