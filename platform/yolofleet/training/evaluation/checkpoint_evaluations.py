"""What the checkpoints of a run were judged to be worth, and which of them wait to be judged.

The model is judged by its workers between two steps, or beside the training from a checkpoint whose ``state.json`` says
``to_judge``. Both leave a row of metrics; the second one names the weights that it holds for, since a run that was
rolled back may come to another state at the same step.

Judging the averaged model during a run: every worker takes its share of the images, the first one scores.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from torch import nn

from yolofleet.data.dataset import ShardDataset
from yolofleet.data.evaluation_stream import EvaluationStream
from yolofleet.evaluation.evaluate import collect_detections, score_detections
from yolofleet.specs.job import JobSpec
from yolofleet.tracking.json_lines import Row
from yolofleet.tracking.run_directory import Cursors, RunDirectory
from yolofleet.training.checkpoint.store import Checkpoint, CheckpointStore, DamagedCheckpointError
from yolofleet.training.loop.worker_group import WorkerGroup
from yolofleet.training.setup.builders import open_dataset


class Validation:
    """The job's validation set, and how it is judged."""

    def __init__(self, job: JobSpec, group: WorkerGroup) -> None:
        self._job = job
        self._group = group

    @cached_property
    def _dataset(self) -> ShardDataset:
        return open_dataset(self._job.data, self._job.data.val)

    @cached_property
    def _ground_truth(self) -> dict[str, Any]:
        return self._dataset.annotations()

    def __call__(self, model: nn.Module) -> Mapping[str, float | None] | None:
        """Return the twelve COCO figures on the first worker, None on the others."""
        settings = self._job.evaluation
        stream = EvaluationStream(
            self._dataset,
            image_size=self._job.data.image_size,
            stride=max(model.strides),  # type: ignore[arg-type]
            batch_size=settings.batch_size,
            rank=self._group.rank,
            world_size=self._group.world_size,
        )
        rows = collect_detections(
            model,
            stream,
            device=self._group.device,
            confidence=settings.confidence,
            iou=settings.iou,
            max_detections=settings.max_detections,
        )
        everything = self._group.gather_rows(rows)
        if everything is None:
            return None
        return score_detections(everything, self._ground_truth).figures


TO_JUDGE = "to_judge"
PREFIX = "val_"
AVERAGE = "average"
DIGEST = "average_sha256"
MOST_WAITING = 3
"""Checkpoints that are kept until they are judged; where the training is faster than that, some are left out."""

Figures = Mapping[str, float | None]
logger = logging.getLogger(__name__)


def judgement_row(step: int, figures: Figures, **fields: Any) -> Row:
    """Return the row of metrics of an evaluation after ``step`` steps."""
    return {"step": step} | {f"{PREFIX}{name}": value for name, value in figures.items()} | fields


class Judgements:
    """Follows a run's metrics and keeps its evaluations.

    Args:
        run: The run directory; it is only read.
        store: Its checkpoints.
    """

    def __init__(self, run: RunDirectory, store: CheckpointStore) -> None:
        self._run = run
        self._store = store
        self._cursors: Cursors = {}
        self._rows: dict[int, list[Row]] = {}
        self._to_judge: dict[int, bool] = {}

    def best_first(self) -> list[int]:
        """Return the steps of the judged checkpoints, the best first; of two that are as good, the later."""
        scores = {step: score for step in self._store.steps() if (score := self._score(step)) is not None}
        return sorted(scores, key=lambda step: (scores[step], step), reverse=True)

    def waiting(self) -> list[int]:
        """Return the steps of the checkpoints that wait to be judged, oldest first."""
        self._refresh()
        return [step for step in self._store.steps() if self._is_to_be_judged(step) and not self._judged(step)]

    def kept(self, steps: list[int]) -> set[int]:
        """Return which checkpoints no retention may take: the best, the one that is judged next, the newest waiting."""
        best, waiting = self.best_first()[:1], self.waiting()
        return {*best, *waiting[:1], *waiting[1:][-(MOST_WAITING - 1) :]} & set(steps)

    def _refresh(self) -> None:
        rows, self._cursors = self._run.new_metrics(self._cursors)
        for row in rows:
            if f"{PREFIX}AP" in row:
                self._rows.setdefault(int(row["step"]), []).append(row)

    def _score(self, step: int) -> float | None:
        """Return the AP of a checkpoint; None if it was not judged, or there was nothing to judge it by."""
        self._refresh()
        judged = self._judged(step)
        return None if not judged else judged[-1][f"{PREFIX}AP"]

    def _judged(self, step: int) -> list[Row]:
        """Return the evaluations of the weights that the checkpoint of this step holds now."""
        rows = self._rows.get(step, [])
        if not any(DIGEST in row for row in rows):
            return rows
        try:
            digest = self._store.file_digest(step, AVERAGE)
        except DamagedCheckpointError:
            return []
        return [row for row in rows if row.get(DIGEST, digest) == digest]

    def _is_to_be_judged(self, step: int) -> bool:
        if step not in self._to_judge:
            try:
                self._to_judge[step] = bool(self._store.state(step).get(TO_JUDGE, False))
            except DamagedCheckpointError:
                return False
        return self._to_judge[step]


def best_checkpoint(run: RunDirectory, store: CheckpointStore) -> Checkpoint | None:
    """Return the best judged checkpoint that is whole, the newest one if none was judged, None if there is none."""
    for step in Judgements(run, store).best_first():
        try:
            return store.load(step)
        except DamagedCheckpointError as error:
            logger.warning("the best checkpoint is passed over: %s", error)
    return store.newest()
