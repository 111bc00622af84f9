"""Going back to the last good checkpoint when numbers went wrong, and leaving out the steps that did it. Once.

Skipped steps leave the weights alone, but what made the next ones infinite may have happened before: weights that had
begun to diverge, a stretch of damaged samples. So the run goes back to the newest whole checkpoint before the first bad
step and does not do the bad steps again; their samples stay unused, every other sample keeps its place. If numbers go
wrong again, it is not the samples, and the run ends with the evidence. What was left out is in ``facts.json`` at once
and in the ``state.json`` of every later checkpoint.

Steps whose loss or gradient is no finite number: skipped, counted, told of, and too many in a row end the run.

With loss scaling (fp16) a gradient may be infinite only because the scale is too high. Such a step is skipped as well,
but the scale is what gives way; it is held against the run once the scale is as low as it gets, or where the loss
itself, which the scale does not touch, is no number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from yolofleet.core.errors import WorkError
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.checkpoint.run_state import RunState
from yolofleet.training.checkpoint.store import CheckpointStore
from yolofleet.training.loop.precision import Precision
from yolofleet.training.loop.worker_group import WorkerGroup

MOST_KEYS_NAMED = 32


class NonFiniteError(WorkError):
    """Too many steps in a row were no finite number.

    Attributes:
        window: The first of those steps and the one after the last.
    """

    def __init__(self, message: str, window: tuple[int, int]) -> None:
        super().__init__(message)
        self.window = window


class FiniteGuard:
    """Judges each step, the same on every worker.

    Attributes:
        adapting: Whether the newest step was skipped only for its loss scale.
    """

    def __init__(self, group: WorkerGroup, precision: Precision, most_in_a_row: int) -> None:
        self._group = group
        self._precision = precision
        self._most_in_a_row = most_in_a_row
        self._seen: list[tuple[Tensor, tuple[str, ...]]] = []
        self._good_step = 0
        self.adapting = False

    def begin_step(self) -> None:
        """Forget the micro-batches of the last step."""
        self._seen = []

    def observe(self, loss: Tensor, keys: tuple[str, ...]) -> None:
        """Note a micro-batch of this worker: its loss and the keys of its samples."""
        self._seen.append((loss.detach(), keys))

    def judge(self, gradient_norm: Tensor) -> bool:
        """Return whether loss and gradient of the step are finite on every worker; a collective."""
        total = torch.stack([loss.double().reshape(()) for loss, _ in self._seen]).sum()
        self._group.sum(total)
        # One reading of the device for both: the host waits once a step.
        loss_finite, finite = torch.stack([total.isfinite(), total.isfinite() & gradient_norm.isfinite()]).tolist()
        self.adapting = loss_finite and not finite and self._precision.may_lower_scale()
        return bool(finite)

    def tell(self, run: RunDirectory, state: RunState) -> None:
        """Note a skipped step in the run's events, unless the loss scale alone is the reason."""
        if not self.adapting:
            run.append_event("non_finite", step=state.step, in_a_row=state.non_finite_in_a_row)

    def is_over(self, state: RunState) -> bool:
        """Whether too many steps in a row were skipped, so that `check` will end the run."""
        return state.non_finite_in_a_row > self._most_in_a_row

    def check(self, state: RunState, store: CheckpointStore) -> None:
        """End the run where too many steps in a row were skipped; a collective then.

        Raises:
            NonFiniteError: Names the samples, of all workers, and the newest checkpoint before those steps.
        """
        self._good_step = state.step - state.non_finite_in_a_row
        if not self.is_over(state):
            return
        bad, rest = self._keys()
        if bad:
            told = f"The loss is already no number for the micro-batches with the samples {_listed(bad)}"
        else:
            told = f"The losses are numbers, their gradients are not; samples of the last step: {_listed(rest)}"
        store.wait()
        good = "there is no checkpoint before them"
        for step in self.kept(store.steps()):
            good = f"the last good checkpoint is step {step}, and the same command goes on from it"
        raise NonFiniteError(
            f"step {state.step}: loss or gradient was no finite number for {state.non_finite_in_a_row} steps in a row "
            f"(most_non_finite_steps is {self._most_in_a_row}); {good}. {told}. Under another name, try a lower "
            "hyperparameters.lr0, or precision fp32",
            window=(state.step - state.non_finite_in_a_row, state.step),
        )

    def kept(self, steps: list[int]) -> set[int]:
        """Return which checkpoints must stay: the newest before the steps in a row that are not finite.

        The run goes back to it if there are too many of them.

        Args:
            steps: Steps of all checkpoints, oldest first.
        """
        return set([step for step in steps if step <= self._good_step][-1:])

    def _keys(self) -> tuple[list[str], list[str]]:
        """Return the sample keys of micro-batches whose loss is no number, and of the others, over all workers."""
        bad = [key for loss, keys in self._seen if not loss.isfinite() for key in keys]
        rest = [key for loss, keys in self._seen if loss.isfinite() for key in keys]
        return (
            shared_text("".join(f"{key}\n" for key in bad), self._group).splitlines(),
            shared_text("".join(f"{key}\n" for key in rest), self._group).splitlines(),
        )


def shared_text(text: str, group: WorkerGroup) -> str:
    """Return the texts of all workers one after the other, on every worker."""
    data = torch.tensor(list(text.encode()), dtype=torch.int32, device=group.device)
    lengths = torch.zeros(group.world_size, dtype=torch.int64, device=group.device)
    lengths[group.rank] = len(data)
    group.sum(lengths)
    everything = torch.zeros(int(lengths.sum()), dtype=torch.int32, device=group.device)
    start = int(lengths[: group.rank].sum())
    everything[start : start + len(data)] = data
    if len(everything):
        group.sum(everything)  # places of other workers are 0
    return bytes(everything.tolist()).decode()


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - MOST_KEYS_NAMED} more" if len(keys) > MOST_KEYS_NAMED else ""
    return ", ".join(keys[:MOST_KEYS_NAMED]) + more


FACT = "skipped_windows"


def skipped_windows(run: RunDirectory) -> list[list[int]]:
    """Return the steps [from, to) that the run leaves out."""
    return [[int(first), int(end)] for first, end in run.facts().get(FACT, [])]


def roll_back(run: RunDirectory, group: WorkerGroup, error: NonFiniteError) -> bool:
    """Prepare the run directory for going on from before the bad steps, and return whether that is possible.

    A collective: every worker gets the first one's answer.
    """
    return bool(group.first_value(int(group.is_first and _prepared(run, error))))


def _prepared(run: RunDirectory, error: NonFiniteError) -> bool:
    first, end = error.window
    store = CheckpointStore(run.storage.child("checkpoints"), told=run.append_event, fenced=run.check_held)
    good = store.newest(at_most=first)
    done = bool(skipped_windows(run))
    run.check_held()
    if not done and good is not None:
        run.record_facts(skipped_windows=[[first, end]])
    if good is not None:
        store.forget_after(good.step)  # a start from one of the bad steps would fail at once
    if done or good is None:
        reason = "it was done once and did not help" if done else "there is no checkpoint before it"
        run.append_event("not_rolled_back", window=[first, end], reason=reason)
        return False
    run.append_event("rolled_back", to_step=good.step, window=[first, end], reason=str(error))
    return True
