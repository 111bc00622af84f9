"""Evaluation of the averaged model during a run: the figures of its checkpoints, and which of them still lack some.

The workers evaluate the model between two steps, or another process does it from a checkpoint whose ``state.json`` says
``to_judge``. Both leave a row of metrics. The second one names the weights that it holds for, since a run that was
rolled back may come to other weights at the same step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from yolofleet.core.errors import WorkError
from yolofleet.core.terminal import note
from yolofleet.core.text import one_line, plural
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.evaluation_stream import EvaluationBatch, EvaluationStream
from yolofleet.models.network import Network
from yolofleet.specs.assignment import AssignmentSpec
from yolofleet.specs.job import JobSpec
from yolofleet.specs.stop import StopSpec
from yolofleet.tracking.json_lines import Row
from yolofleet.tracking.run_directory import METRICS_LOGS, RunDirectory
from yolofleet.training.checkpoint.store import Checkpoint, CheckpointStore, DamagedCheckpointError, Sizes
from yolofleet.training.loop.progress import LossTerms
from yolofleet.training.loop.worker_group import WorkerGroup
from yolofleet.training.setup.builders import build_loss, open_dataset

if TYPE_CHECKING:
    from yolofleet.training.evaluation.evaluation_images import EvaluationImages

EVALUATE_LATER = "to_judge"
"""Key of ``state.json``: the checkpoint is to be evaluated by another process."""
PREFIX = "val_"
AVERAGE = "average"
DIGEST = "average_sha256"
MOST_WAITING = 3
"""Checkpoints that are kept until they are evaluated; where training is faster than that, some are left out."""

Figures = Mapping[str, float | None]
logger = logging.getLogger(__name__)


class MeasuredNetwork(nn.Module):
    """A network in evaluation mode that also adds up the loss of what it predicts, from the same pass.

    As published, the loss is that of the lead head without matching: every candidate is a positive.
    """

    def __init__(self, network: Network, job: JobSpec, terms: LossTerms) -> None:
        super().__init__()
        self.network = network
        self._targets = torch.empty(0, 6)
        self._terms = terms
        self.train(network.training)  # a module is made in training mode, and would take the network along
        self._loss = build_loss(
            network,
            job.resolved_hyperparameters(),
            job.data.image_size,
            AssignmentSpec(assigner="none", matching="fixed"),
        )

    def announce(self, batches: Iterable[EvaluationBatch]) -> Iterator[EvaluationBatch]:
        """Yield the batches, each just before its images are passed."""
        for batch in batches:
            self._targets = batch.targets
            yield batch

    def forward(self, images: Tensor) -> Tensor:
        """Predict for the images (B, 3, H, W) of the batch that was yielded last, as the network does."""
        raw = self.network.lead(images)
        height, width = images.shape[-2:]
        self._terms.add(self._loss(raw, self._targets, (height, width)), 0)
        return self.network.decode(raw)


class Validation:
    """Evaluates a model on the job's validation set; each worker takes a share of the images, the first one scores.

    Args:
        job: What is trained.
        group: This worker; the step that it has done is the one that is evaluated.
        run: Gets images of the evaluations; None: none are drawn.
    """

    def __init__(self, job: JobSpec, group: WorkerGroup, run: RunDirectory | None = None) -> None:
        self._job = job
        self._group = group
        self._run = run

    def evaluate_alone(self, model: nn.Module) -> Figures | None:
        """Do the same in a process that may end right after it; it knows of no other evaluation."""
        if self.images is not None and self.images.is_full():
            self._run = self.images = None
        figures = self(model)
        self.close()
        return figures

    def close(self) -> None:
        """Return when the images of the last evaluation are kept: while the lock of the run is still held."""
        if self.images is not None:
            self.images.wait()

    @cached_property
    def _dataset(self) -> ShardDataset:
        return open_dataset(self._job.data, self._job.data.val)

    @cached_property
    def images(self) -> EvaluationImages | None:
        """What keeps images of the evaluations."""
        if self._run is None:
            return None
        from yolofleet.training.evaluation.evaluation_images import EvaluationImages

        return EvaluationImages(self._job, self._run)

    @cached_property
    def _ground_truth(self) -> dict[str, Any]:
        return self._dataset.annotations()

    def __call__(self, model: nn.Module) -> Figures | None:
        """Return the twelve COCO figures and the loss, a mean over batches, on the first worker, None on the others.

        Raises:
            WorkError: There is not enough memory, even for fewer images at a time.
        """
        from yolofleet.evaluation.evaluate import evaluation_precision, score_detections

        assert isinstance(model, Network)
        if self._group.is_first:  # for who watches; nothing is stored
            self._group.progress.report({"kind": "evaluating", "step": self._group.progress.step})
        settings = self._job.evaluation
        network = model
        if evaluation_precision(settings.protocol, self._group.device) == "fp16":
            from yolofleet.evaluation.inference_form import half_precision

            network = half_precision(model)
        batch_size = settings.batch_size
        while (collected := self._collect(network, batch_size)) is None:
            batch_size //= 2
        rows, terms = collected
        all_rows = self._group.gather_rows(rows)
        losses = {name: value for name, value in terms.take().items() if name in LossTerms.NAMES}
        if all_rows is None:
            return None
        result = score_detections(all_rows, self._ground_truth)
        if self.images is not None:
            self.images.keep(self._dataset, result.detections, self._group.progress.step)
        return result.figures | losses

    def _collect(self, network: Network, batch_size: int) -> tuple[Tensor, LossTerms] | None:
        """Return this worker's detections and its sums of the loss; a collective.

        None, on all workers, where fewer images at a time may fit: which images a worker takes depends on how many.
        """
        from yolofleet.evaluation.evaluate import collect_detections

        settings = self._job.evaluation
        terms = LossTerms(self._group)
        measured = MeasuredNetwork(network, self._job, terms)
        stream = EvaluationStream(
            self._dataset,
            image_size=self._job.data.image_size,
            stride=max(network.strides),
            batch_size=batch_size,
            rank=self._group.rank,
            world_size=self._group.world_size,
            rectangular=settings.protocol == "published",
            max_pixels=self._job.data.max_pixels,
        )
        rows: Tensor | None = None
        try:
            rows = collect_detections(
                measured,
                measured.announce(stream),
                device=self._group.device,
                confidence=settings.confidence,
                iou=settings.iou,
                max_detections=settings.max_detections,
            )
        except (RuntimeError, MemoryError) as error:
            from yolofleet.training.loop.out_of_memory import is_out_of_memory

            if not is_out_of_memory(error):
                raise
            if batch_size == 1 or settings.protocol == "published":  # whose padding depends on the batch
                raise WorkError(
                    f"out of memory in the evaluation after step {self._group.progress.step}, of "
                    f"{plural(batch_size, 'image')} at a time: {one_line(error)}. Under another name, train with a "
                    "smaller evaluation.batch_size"
                ) from None
            note(f"out of memory with {plural(batch_size, 'image')} at a time: evaluating fewer")
        failed = self._group.flag(rows is None)
        self._group.sum(failed)
        return None if rows is None or failed > 0 else (rows, terms)


def evaluation_row(step: int, figures: Figures, **fields: Any) -> Row:
    """Return the row of metrics of an evaluation after ``step`` steps."""
    return {"step": step} | {f"{PREFIX}{name}": value for name, value in figures.items()} | fields


class CheckpointEvaluations:
    """Follows a run's metrics and knows the evaluations of its checkpoints.

    Args:
        run: The run directory; it is only read.
        store: Its checkpoints.
        stop: The early end that the job asks for: no checkpoint after it is the best one, and none before it may go
            without its evaluation.
    """

    def __init__(self, run: RunDirectory, store: CheckpointStore, stop: StopSpec | None = None) -> None:
        self._store = store
        self._run = run
        self._stop = stop
        self._metrics = run.reader(*METRICS_LOGS)
        self._rows: dict[int, list[Row]] = {}
        self._evaluate_later: dict[int, bool] = {}

    def best_first(self) -> list[int]:
        """Return the steps of the evaluated checkpoints, best AP first; of two that are equal, the later one."""
        return self._best_first(self._refresh())

    def waiting(self) -> list[int]:
        """Return the steps of the checkpoints that wait for their evaluation, oldest first."""
        return self._waiting(self._refresh())

    def protected_steps(self, files: Mapping[int, Sizes]) -> set[int]:
        """Return which checkpoints must stay: the best, the next one to evaluate, the newest that wait."""
        self._refresh(files)
        best, waiting = self._best_first(files)[:1], self._waiting(files)
        if self._stop is not None and self._stop.patience is not None:
            return {*best, *waiting}
        return {*best, *waiting[:1], *waiting[1:][-(MOST_WAITING - 1) :]}

    def _best_first(self, files: Mapping[int, Sizes]) -> list[int]:
        evaluations = {step: self._evaluations(step, sizes) for step, sizes in files.items()}
        scores = {step: rows[-1][f"{PREFIX}AP"] for step, rows in evaluations.items() if rows}
        last = self._last_step()
        # Without ground truth there is no score.
        scored = {step: score for step, score in scores.items() if score is not None and step <= last}
        return sorted(scored, key=lambda step: (scored[step], step), reverse=True)

    def _last_step(self) -> float:
        """Return the last step that may be the best; without an early end all may."""
        if self._stop is None or self._stop.patience is None:
            return math.inf
        from yolofleet.training.evaluation.early_stop import metric_of_rows, out_of_patience, patience_since

        rows = [row for rows in self._rows.values() for row in rows]
        end = out_of_patience(metric_of_rows(rows, self._stop.metric), self._stop, patience_since(self._run))
        return math.inf if end is None else end.step

    def _waiting(self, files: Mapping[int, Sizes]) -> list[int]:
        return [
            step
            for step, sizes in files.items()
            if self._is_for_later(step, sizes) and not self._evaluations(step, sizes)
        ]

    def _refresh(self, files: Mapping[int, Sizes] | None = None) -> Mapping[int, Sizes]:
        """Read the new rows, and return the files of all checkpoints, listed now if they are not given."""
        for row in self._metrics.new_rows():
            if f"{PREFIX}AP" in row:
                self._rows.setdefault(int(row["step"]), []).append(row)
        return self._store.committed() if files is None else files

    def _evaluations(self, step: int, sizes: Sizes) -> list[Row]:
        """Return the evaluations of the weights that the checkpoint of this step holds now."""
        rows = self._rows.get(step, [])
        if not any(DIGEST in row for row in rows):
            return rows
        try:
            digest = self._store.file_digest(step, AVERAGE, sizes)
        except DamagedCheckpointError:
            return []
        return [row for row in rows if row.get(DIGEST, digest) == digest]

    def _is_for_later(self, step: int, sizes: Sizes) -> bool:
        if step not in self._evaluate_later:
            try:
                self._evaluate_later[step] = bool(self._store.state(step, sizes).get(EVALUATE_LATER, False))
            except DamagedCheckpointError:
                return False
        return self._evaluate_later[step]


def best_checkpoint(run: RunDirectory, store: CheckpointStore) -> Checkpoint | None:
    """Return the best evaluated checkpoint that is whole; the newest if none was evaluated; None if there is none."""
    stop = run.job_document().get("stop")
    spec = None if stop is None else StopSpec.parse(stop, source=f"{run.url}/job.yaml: stop")
    for step in CheckpointEvaluations(run, store, spec).best_first():
        try:
            return store.load(step)
        except DamagedCheckpointError as error:
            logger.warning("the best checkpoint is passed over: %s", error)
    return store.newest()
