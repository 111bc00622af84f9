"""Judging a run's checkpoints beside its training: the one that has waited longest first, one at a time.

What waits is read from the run directory, so whoever comes next goes on where a judge that died has stopped.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from types import TracebackType

import torch

from yolofleet.models import build_model
from yolofleet.specs.job import JobSpec
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.checkpoint.run_state import load_strictly
from yolofleet.training.checkpoint.store import CheckpointStore
from yolofleet.training.evaluation.checkpoint_evaluations import (
    AVERAGE,
    DIGEST,
    Figures,
    Judgements,
    Validation,
    judgement_row,
)
from yolofleet.training.loop.worker_group import StoppedError, WorkerGroup
from yolofleet.training.setup.builders import open_dataset
from yolofleet.training.setup.preparation import run_table

POLL_SECONDS = 5.0
END_TIMEOUT_SECONDS = 10.0
MOST_ATTEMPTS = 3

JudgeStep = Callable[[int], Figures]
"""Judges the checkpoint of a step; raises what keeps it from that."""
logger = logging.getLogger(__name__)


def judged_here(job: JobSpec, step: int, device: torch.device) -> Figures:
    """Return the COCO figures of the averaged model of a checkpoint, on the job's validation set, by this process.

    Raises:
        DamagedCheckpointError: The checkpoint is not whole.
    """
    run = RunDirectory.open(job.storage, job.name)
    checkpoint = CheckpointStore(run.storage.child("checkpoints")).load(step)
    classes = open_dataset(job.data, job.data.val).classes
    model = build_model(run_table(job, run), num_classes=len(classes))
    load_strictly(model, checkpoint.tensors[AVERAGE])
    figures = Validation(job, WorkerGroup(device=device))(model.float().to(device))
    if figures is None:
        raise RuntimeError("an evaluation by one process gave no figures")
    return figures


class Judge:
    """Judges what waits, in a thread for the length of a with block or at once by `judge_all`.

    Args:
        run: The run directory; figures and events are written there.
        judge_step: Judges one checkpoint; a `StoppedError` of it is no failure.
    """

    def __init__(self, run: RunDirectory, judge_step: JudgeStep) -> None:
        self._run = run
        self._store = CheckpointStore(run.storage.child("checkpoints"))
        self._judgements = Judgements(run, self._store)
        self._judge_step = judge_step
        self._failures: Counter[int] = Counter()
        self._over = threading.Event()
        self._one_at_a_time = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="judge", daemon=True)

    def judge_all(self) -> None:
        """Judge everything that waits; what failed too often is left, and told.

        Raises:
            StoppedError: Nobody waits for the figures any more.
        """
        while self._judge_next():
            pass

    def __enter__(self) -> Judge:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(END_TIMEOUT_SECONDS)

    def _watch(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            try:
                while not self._over.is_set() and self._judge_next():
                    pass
            except StoppedError:
                return
            except Exception as error:  # storage that does not answer: what waits is still there later
                logger.warning("the checkpoints cannot be looked at for the moment: %s", error)

    def _judge_next(self) -> bool:
        """Judge the checkpoint that has waited longest; False if none waits."""
        with self._one_at_a_time:
            waiting = [step for step in self._judgements.waiting() if self._failures[step] < MOST_ATTEMPTS]
            if not waiting:
                return False
            step = waiting[0]
            try:
                digest = self._store.file_digest(step, AVERAGE)
                figures = self._judge_step(step)
            except StoppedError:
                raise
            except Exception as error:  # a node, a process or a storage that died: it is tried again
                self._failures[step] += 1
                reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
                again = self._failures[step] < MOST_ATTEMPTS
                self._run.append_event("evaluation_failed", step=step, reason=reason, again=again)
                return True
            self._run.append_metrics(judgement_row(step, figures, **{DIGEST: digest}))
            self._run.flush()
            return True
