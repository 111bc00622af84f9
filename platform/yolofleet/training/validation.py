"""Judging the averaged model during a run: every worker takes its share of the images, the first one scores."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from torch import nn

from yolofleet.data.dataset import ShardDataset
from yolofleet.data.evaluation_stream import EvaluationStream
from yolofleet.evaluation.evaluate import collect_detections, score_detections
from yolofleet.specs.job import JobSpec
from yolofleet.training.group import WorkerGroup
from yolofleet.training.input import open_dataset


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
