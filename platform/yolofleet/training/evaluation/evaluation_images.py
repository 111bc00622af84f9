"""The same few images at each evaluation of a run, drawn with what the model found: one sees it learn.

They are drawn by a thread of their own, small, and of so many evaluations at most, so that they cost the training next
to nothing. One evaluation is left out while those of another are still being drawn.
"""

from __future__ import annotations

import logging
import math
import threading

from yolofleet.data.dataset import ShardDataset
from yolofleet.evaluation.detections import Detections
from yolofleet.evaluation.samples import draw_samples
from yolofleet.specs.job import JobSpec
from yolofleet.tracking.run_directory import EVALUATION_IMAGES, RunDirectory

NUM_IMAGES = 8
MOST_EVALUATIONS = 20
"""Evaluations of a run whose images are kept, evenly spread over it."""
SIDE_PIXELS = 320
logger = logging.getLogger(__name__)


class EvaluationImages:
    """Keeps images of a run's evaluations in its directory.

    Args:
        job: The job of the run.
        run: The run directory.
    """

    def __init__(self, job: JobSpec, run: RunDirectory) -> None:
        self._run = run
        self._every = max(1, math.ceil(job.epochs / job.evaluation.every_epochs / MOST_EVALUATIONS))
        self._num_seen = 0
        self._thread: threading.Thread | None = None

    def keep(self, dataset: ShardDataset, detections: Detections, step: int) -> None:
        """Begin to draw the images of an evaluation, if it is one of those that are kept."""
        self._num_seen += 1
        if self._is_busy() or (self._num_seen - 1) % self._every:
            return
        arguments = (dataset, detections, step)
        self._thread = threading.Thread(target=self._draw, args=arguments, name="evaluation-images", daemon=True)
        self._thread.start()

    def is_full(self) -> bool:
        """Return whether the run directory has images of as many evaluations as it may have; it is listed for that."""
        entries = self._run.storage.list(f"{EVALUATION_IMAGES}/")
        return len({entry.key.rpartition("/")[0] for entry in entries}) >= MOST_EVALUATIONS

    def wait(self) -> None:
        """Return when what was begun is drawn."""
        if self._thread is not None:
            self._thread.join()

    def _is_busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _draw(self, dataset: ShardDataset, detections: Detections, step: int) -> None:
        try:
            images = draw_samples(dataset, detections, count=NUM_IMAGES, side=SIDE_PIXELS)
            self._run.check_lock()
            for number, image in enumerate(images):
                self._run.storage.put(f"{EVALUATION_IMAGES}/step-{step}/{number:02d}.jpg", image.jpeg)
        except Exception as error:  # an image must never end a run
            logger.warning("the images of the evaluation of step %d could not be kept: %s", step, error)
