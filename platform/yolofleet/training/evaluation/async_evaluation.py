"""Evaluation of checkpoints beside the training: one at a time, the one that has waited longest first.

The run directory says which checkpoints wait, so an evaluator that dies loses nothing: the next one continues.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

import torch

from yolofleet.core.background import BackgroundLoop, EndLoop
from yolofleet.core.retry import GrowingPause
from yolofleet.core.text import one_line
from yolofleet.models import build_model
from yolofleet.models.weight_differences import load_strictly
from yolofleet.specs.job import JobSpec
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.checkpoint.store import CheckpointStore
from yolofleet.training.evaluation.checkpoint_evaluations import (
    AVERAGE,
    DIGEST,
    CheckpointEvaluations,
    Figures,
    Validation,
    evaluation_row,
)
from yolofleet.training.loop.worker_group import WorkerGroup
from yolofleet.training.loop.worker_progress import StoppedError
from yolofleet.training.setup.builders import open_dataset
from yolofleet.training.setup.preparation import run_table

POLL_SECONDS = 5.0
MOST_ATTEMPTS = 3

EvaluateStep = Callable[[int], Figures]
"""Evaluates the checkpoint of a step; raises whatever prevents that."""


def evaluate_checkpoint(job: JobSpec, step: int, device: torch.device) -> Figures:
    """Return the COCO figures of the averaged model of a checkpoint, on the job's validation set, by this process.

    Raises:
        DamagedCheckpointError: The checkpoint is not whole.
    """
    run = RunDirectory.open(job.storage, job.name)
    checkpoint = CheckpointStore(run.storage.child("checkpoints")).load(step)
    classes = open_dataset(job.data, job.data.val).classes
    model = build_model(run_table(job, run), num_classes=len(classes))
    load_strictly(model, checkpoint.tensors[AVERAGE])
    group = WorkerGroup(device=device)
    group.progress.step = step
    figures = Validation(job, group, run).evaluate_alone(model.float().to(device))
    if figures is None:
        raise RuntimeError("an evaluation by one process gave no figures")
    return figures


class CheckpointEvaluator:
    """Evaluates the checkpoints that wait, in a thread for the length of a with block or at once by `evaluate_all`.

    Args:
        run: The run directory; figures and events are written there.
        evaluate_step: Evaluates one checkpoint; a `StoppedError` of it is no failure.
    """

    def __init__(self, run: RunDirectory, evaluate_step: EvaluateStep) -> None:
        self._run = run
        self._store = CheckpointStore(run.storage.child("checkpoints"))
        self._evaluations = CheckpointEvaluations(run, self._store)
        self._evaluate_step = evaluate_step
        self._failures: Counter[int] = Counter()
        self._one_at_a_time = threading.Lock()
        self._closing = False
        self._pause = GrowingPause()
        self._loop = BackgroundLoop(
            self._evaluate_until_closed,
            seconds=POLL_SECONDS,
            name="checkpoint-evaluator",
            warning="the checkpoints cannot be evaluated at the moment",
        )

    def evaluate_all(self) -> None:
        """Evaluate all checkpoints that wait; one that fails too often is left out, with an event.

        Raises:
            StoppedError: The command was asked to stop, so the figures are no longer needed.
        """
        while self._evaluate_next():
            pass

    def __enter__(self) -> CheckpointEvaluator:
        self._loop.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing = True
        self._loop.close()

    def _evaluate_until_closed(self) -> None:
        if not self._pause.is_over():
            return
        evaluated = False
        try:
            while not self._closing and self._evaluate_next():
                evaluated = True
        except StoppedError as error:
            raise EndLoop from error
        finally:
            self._pause.begin(changed=evaluated)

    def _evaluate_next(self) -> bool:
        """Evaluate the checkpoint that has waited longest; returns False if none waits."""
        with self._one_at_a_time:
            waiting = [step for step in self._evaluations.waiting() if self._failures[step] < MOST_ATTEMPTS]
            if not waiting:
                return False
            step = waiting[0]
            try:
                digest = self._store.file_digest(step, AVERAGE)
                figures = self._evaluate_step(step)
            except StoppedError:
                raise
            except Exception as error:  # a node, a process or a storage that died: it is tried again
                self._failures[step] += 1
                reason = one_line(f"{type(error).__name__}: {error}", 400)
                again = self._failures[step] < MOST_ATTEMPTS
                self._run.append_event("evaluation_failed", step=step, reason=reason, again=again)
                return True
            self._run.append_metrics(evaluation_row(step, figures, **{DIGEST: digest}))
            self._run.flush()
            return True
