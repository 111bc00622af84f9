"""NaN and infinity: bad steps are skipped, and too many in a row send the run back to the checkpoint before them, once.

A step whose loss or gradient is non-finite on any worker changes no weights. But what made it so may have happened
before: weights that had begun to diverge, a stretch of damaged samples. So after too many such steps in a row the run
goes back to the newest whole checkpoint before the first of them and leaves them out; their samples stay unused, all
others keep their positions. If it happens again, the samples are not the cause, and the run ends with the evidence.
What was left out is recorded in ``facts.json`` at once, and in the ``state.json`` of every later checkpoint.

The decision is made on the device, where the step's updates follow it, and the host reads it while the next step is
computed. Only where the next bad step would be one too many does the host wait for it.

With loss scaling (fp16) a gradient may be infinite only because the scale is too high. Such a step is skipped as well,
but only the scale is lowered. It counts against the run where the scale is at its lowest, or where the loss itself,
which the scale does not touch, is non-finite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from yolofleet.core.errors import WorkError
from yolofleet.core.text import and_more, plural
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.checkpoint.run_state import RunState
from yolofleet.training.checkpoint.store import CheckpointStore
from yolofleet.training.loop.update import LOWEST_SCALE
from yolofleet.training.loop.worker_group import WorkerGroup

MOST_KEYS_NAMED = 32
FACT = "skipped_windows"


class NonFiniteError(WorkError):
    """Too many steps in a row were non-finite.

    Attributes:
        window: The first of those steps and the one after the last.
    """

    def __init__(self, message: str, window: tuple[int, int]) -> None:
        super().__init__(message)
        self.window = window


class FiniteGuard:
    """Decides of each step whether it is finite, the same on every worker."""

    def __init__(self, group: WorkerGroup, most_in_a_row: int) -> None:
        self._group = group
        self._most_in_a_row = most_in_a_row
        self._seen: list[tuple[Tensor, tuple[str, ...]]] = []
        self._good_step = 0

    def begin_step(self) -> None:
        """Forget the micro-batches of the last step."""
        self._seen = []

    def observe(self, loss: Tensor, keys: tuple[str, ...]) -> None:
        """Remember a micro-batch of this worker: its loss and the keys of its samples."""
        self._seen.append((loss.detach(), keys))

    def total_loss(self) -> Tensor:
        """Return the loss of this worker's micro-batches of the step, (1,) float64 on the device."""
        return torch.stack([loss.double().reshape(()) for loss, _ in self._seen]).sum(0, keepdim=True)

    def count(self, run: RunDirectory, state: RunState, loss: float, gradient_norm: float, scale: float) -> bool:
        """Count the newest step, record it where it was skipped, and return whether it was finite.

        Args:
            run: Where events go; the first worker writes.
            state: Where the run stands.
            loss: The loss over all workers.
            gradient_norm: Norm of the whole gradient.
            scale: The loss scale of the step; a skip that only lowers it is no event.
        """
        finite = math.isfinite(loss) and math.isfinite(gradient_norm)
        adapting = math.isfinite(loss) and not finite and scale > LOWEST_SCALE
        state.count_step(finite, adapting=adapting)
        if not finite and not adapting and self._group.is_first:
            run.append_event("non_finite", step=state.step, in_a_row=state.non_finite_in_a_row)
        return finite

    def may_exceed(self, state: RunState) -> bool:
        """Return whether one more skipped step would be one too many."""
        return state.non_finite_in_a_row >= self._most_in_a_row

    def is_exceeded(self, state: RunState) -> bool:
        """Return whether too many steps in a row were skipped, so that `check` will raise."""
        return state.non_finite_in_a_row > self._most_in_a_row

    def check(self, state: RunState, store: CheckpointStore) -> None:
        """Raise where too many steps in a row were skipped; a collective then.

        Raises:
            NonFiniteError: Names the samples, of all workers, and the newest checkpoint before those steps.
        """
        self._good_step = state.step - state.non_finite_in_a_row
        if not self.is_exceeded(state):
            return
        bad, others = self._shared_keys(finite=False), self._shared_keys(finite=True)
        if bad:
            evidence = "The loss itself is non-finite for the micro-batches with the samples "
            evidence += and_more(bad, MOST_KEYS_NAMED)
        else:
            evidence = "The losses are finite, their gradients are not; samples of the last step: "
            evidence += and_more(others, MOST_KEYS_NAMED)
        store.wait()
        good = "there is no checkpoint before them"
        for step in self.protected_steps(store.steps()):
            good = f"the last good checkpoint is step {step}; resume the run from it with the same command"
        steps = plural(state.non_finite_in_a_row, "step")
        raise NonFiniteError(
            f"step {state.step}: loss or gradient was non-finite for {steps} in a row "
            f"(most_non_finite_steps is {self._most_in_a_row}); {good}. {evidence}. Under another name, try a lower "
            "hyperparameters.lr0, or precision fp32",
            window=(self._good_step, state.step),
        )

    def protected_steps(self, steps: Iterable[int]) -> set[int]:
        """Return which checkpoints must stay: the newest before the current row of non-finite steps.

        Args:
            steps: Steps of all checkpoints, oldest first.
        """
        return set([step for step in steps if step <= self._good_step][-1:])

    def _shared_keys(self, *, finite: bool) -> list[str]:
        """Return the sample keys, over all workers, of micro-batches whose loss is finite or is not."""
        keys = [key for loss, keys in self._seen if bool(loss.isfinite()) == finite for key in keys]
        return self._group.concatenate_texts("".join(f"{key}\n" for key in keys)).splitlines()


def skipped_windows(run: RunDirectory) -> list[list[int]]:
    """Return the steps [from, to) that the run leaves out."""
    return [[int(first), int(end)] for first, end in run.facts().get(FACT, [])]


def roll_back(run: RunDirectory, group: WorkerGroup, error: NonFiniteError) -> bool:
    """Prepare the run directory to resume from before the bad steps, and return whether that is possible.

    A collective: every worker gets the first one's answer.
    """
    return bool(group.first_value(int(group.is_first and _roll_back(run, error))))


def _roll_back(run: RunDirectory, error: NonFiniteError) -> bool:
    first, end = error.window
    store = CheckpointStore(run.storage.child("checkpoints"), on_event=run.append_event, check_lock=run.check_lock)
    good = store.newest(at_most=first)
    done_before = bool(skipped_windows(run))
    run.check_lock()
    if not done_before and good is not None:
        run.record_facts(**{FACT: [[first, end]]})
    if good is not None:
        store.remove_after(good.step)  # a start from one of the bad steps would fail at once
    if done_before or good is None:
        reason = "this was done once and did not help" if done_before else "there is no checkpoint before it"
        run.append_event("not_rolled_back", window=[first, end], reason=reason)
        return False
    run.append_event("rolled_back", to_step=good.step, window=[first, end], reason=str(error))
    return True
