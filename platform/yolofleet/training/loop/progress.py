"""How a run advances: which steps are logged, evaluated and saved, and how fast it goes.

The loss terms of all workers, as rows of metrics show them.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from yolofleet.training.loop.worker_group import WorkerGroup


@dataclass(frozen=True)
class Milestones:
    """Which steps do more than train; a step is named by the number of steps done after it.

    Attributes:
        num_steps: Steps of the whole run.
        log_every_steps: Steps between two rows of metrics.
        checkpoint_every_steps: Steps between two checkpoints.
        evaluation_every_steps: Steps between two evaluations; need not be a whole number.
    """

    num_steps: int
    log_every_steps: int
    checkpoint_every_steps: int
    evaluation_every_steps: float

    def logs(self, step: int) -> bool:
        """Return whether a row of metrics is due after ``step`` steps."""
        return step % self.log_every_steps == 0 or step == self.num_steps

    def evaluates(self, step: int) -> bool:
        """Return whether the model is judged after ``step`` steps."""
        period = self.evaluation_every_steps
        return step == self.num_steps or math.floor(step / period) > math.floor((step - 1) / period)

    def saves(self, step: int) -> bool:
        """Return whether a checkpoint is taken: at its own period, and wherever the model was judged."""
        return step % self.checkpoint_every_steps == 0 or self.evaluates(step)


@dataclass
class Pace:
    """Speed of all workers, and waiting of this one, since the last reading."""

    samples: int = 0
    data_wait_seconds: float = 0.0
    _since: float = field(default_factory=time.perf_counter)

    def take(self) -> dict[str, float]:
        """Return samples per second and the share of time spent waiting for data, and start anew."""
        elapsed = max(time.perf_counter() - self._since, 1e-9)
        reading = {
            "samples_per_second": self.samples / elapsed,
            "data_wait_share": min(1.0, self.data_wait_seconds / elapsed),
        }
        self.samples, self.data_wait_seconds, self._since = 0, 0.0, time.perf_counter()
        return reading

    def pause(self) -> None:
        """Leave out what happened since the last reading (an evaluation, say)."""
        self._since = time.perf_counter()
        self.samples, self.data_wait_seconds = 0, 0.0


class LossTerms:
    """The loss terms and skipped samples of all workers since the last row of metrics."""

    NAMES = ("loss", "loss_box", "loss_objectness", "loss_classification")

    def __init__(self, group: WorkerGroup) -> None:
        self._group = group
        self._sums = torch.zeros(len(self.NAMES) + 2, dtype=torch.float64, device=group.device)

    @torch.no_grad()
    def add(self, result: Any, num_skipped: int) -> None:
        """Add a micro-batch's loss and the number of its samples that could not be read; nothing waits for a device."""
        box, objectness, classification = (
            term.detach().double().reshape(()) for term in (result.box, result.objectness, result.classification)
        )
        self._sums[:4] += torch.stack([box + objectness + classification, box, objectness, classification])
        self._sums[4] += 1
        self._sums[5] += num_skipped

    def take(self) -> dict[str, float]:
        """Return the means over all workers' micro-batches; a collective, so every worker calls it."""
        self._group.sum(self._sums)
        *terms, count, skipped = self._sums.tolist()
        self._sums.zero_()
        return {name: term / count for name, term in zip(self.NAMES, terms, strict=True)} | {"skipped_samples": skipped}
