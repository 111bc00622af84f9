"""How a run advances: which steps are logged, evaluated and saved, and how fast it goes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field


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
