"""The Python API: what the commands do, as functions. Its names are those of the package: ``yolofleet.train``.

Each calls what the command of the same name calls. Lines on the progress go to stderr; results come back as objects,
which show themselves in a notebook. Errors that a user can cure are `yolofleet.core.errors.UserError`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from yolofleet.core.errors import UserError, naming_extras
from yolofleet.core.file_names import EVALUATION_CONFIDENCE, EVALUATION_IOU, EVALUATION_MAX_DETECTIONS
from yolofleet.core.text import cut
from yolofleet.evaluation.prediction import Prediction
from yolofleet.specs.job import JobSpec as Job
from yolofleet.storage import open_file, open_storage

if TYPE_CHECKING:
    from yolofleet.evaluation.average_precision import EvaluationResult
    from yolofleet.evaluation.detector import Detector
    from yolofleet.evaluation.images import ImageInput
    from yolofleet.search.results import Results

__all__ = ["Job", "Prediction", "Run", "evaluate", "export", "load", "predict", "train", "tune"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A finished run.

    Attributes:
        url: The run directory, which `load` and every command take.
        figures: The twelve COCO figures of the released model on the validation set; None where nothing was to measure.
        model: ``models:/NAME/VERSION``; None where the job registers no model.
        report: The page of the run.
    """

    url: str
    figures: Mapping[str, float | None]
    model: str | None
    report: str

    def __repr__(self) -> str:
        ap50, ap = ("none" if self.figures[key] is None else f"{self.figures[key]:.4f}" for key in ("AP50", "AP"))
        return f"Run {self.url}: AP50 {ap50}, AP {ap}\n  model {self.model or 'not registered'}, page {self.report}"

    def _repr_html_(self) -> str:
        """Show the figures and, in a frame, the page."""
        folder, _, name = self.report.rpartition("/")
        page = open_storage(folder).get(name).decode()
        frame = f'<iframe srcdoc="{escape(page)}" style="width:100%;height:480px;border:0"></iframe>'
        return f"<pre>{escape(repr(self))}</pre>{frame}"


def train(
    job: Job | str | Path,
    changes: Mapping[str, Any] | None = None,
    *,
    launcher: Literal["ray", "process"] = "ray",
    verbose: bool = False,
) -> Run:
    """Train a model, evaluate it, and register it where the job says so. Called again, it resumes or returns the run.

    Args:
        job: The job, or its file (a path or an ``s3://`` URL).
        changes: Keys of the job and their values, as ``{"epochs": 5, "data.image_size": 320}``.
        launcher: ``ray`` starts workers on ``RAY_ADDRESS`` or on this machine; ``process`` is this process alone.
        verbose: Whether to show what Ray and the workers print.

    Raises:
        UserError: The job cannot run here; nothing was started.
        WorkError: The training failed; the same call resumes it.
    """
    from yolofleet.cli.train import run_job

    with naming_extras():
        record, _ = run_job(_job(job, changes), launcher, verbose=verbose)
    return Run(url=record.run, figures=record.figures, model=record.model, report=record.report)


def tune(space: str | Path, changes: Mapping[str, Any] | None = None, *, verbose: bool = False) -> Results:
    """Search for the best job. Called again, it resumes or returns the results.

    Args:
        space: The file of the search space (a path or an ``s3://`` URL).
        changes: Keys of the space and their values, as ``{"budget.trials": 20, "job.epochs": 5}``.
        verbose: Whether to show what Ray and the workers print.

    Returns:
        The trials; ``results.entry(results.best)`` is the best one.

    Raises:
        UserError: The search cannot run here; nothing was started.
        WorkError: No trial has completed.
    """
    from yolofleet.cli.tune import run_space
    from yolofleet.search.session import SearchSession
    from yolofleet.specs.search import load_search

    with naming_extras():
        file = open_file(_location(space, "space: the file of a search space"))
        session = SearchSession.open(load_search(file, _overrides(changes)), source=str(space))
        results, _ = run_space(session, verbose=verbose)
    return results


def load(model: str | Path | Run, *, device: str = "auto", tracking_uri: str | None = None) -> Detector:
    """Load a detector, to predict with it.

    Args:
        model: A run, or the path or URL of a run directory, of a detector package or of a file in one;
            ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.
        device: auto, cpu, cuda or cuda:N.
        tracking_uri: The MLflow server or database of a registered version; by default MLFLOW_TRACKING_URI, else the
            database beside the runs.

    Raises:
        UserError: There is no such model, it is damaged, or the device does not exist.
    """
    from yolofleet.cli.model_argument import open_detector
    from yolofleet.core.file_names import DETECTOR_CARD_NAME

    needed = "model: a run, the path or URL of a run directory or a detector package, or NAME@ALIAS"
    name = model.url if isinstance(model, Run) else _location(model, needed)
    if Path(name).is_file() and (Path(name).parent / DETECTOR_CARD_NAME).is_file():
        name = str(Path(name).parent)
    with naming_extras():
        return open_detector(name, device, tracking_uri)


def predict(
    model: Detector | str | Path | Run,
    images: ImageInput | Iterable[ImageInput],
    *,
    confidence: float | None = None,
    iou: float | None = None,
    max_detections: int | None = None,
    image_size: int | None = None,
    batch_size: int = 8,
) -> list[Prediction]:
    """Find objects in images.

    Args:
        model: A detector, or what `load` takes.
        images: One or several: paths, bytes of files, base64 text, or arrays (H, W, 3) uint8 RGB.
        confidence: Lowest score returned; the model's value if None, as for the next three.
        iou: Overlap above which the worse of two boxes of a class is suppressed.
        max_detections: Kept per image.
        image_size: Long side of the network's input in pixels, a multiple of the model's largest stride.
        batch_size: Images that pass the network together.

    Returns:
        A prediction for each image.

    Raises:
        UserError: An image cannot be read, or a value is none that is allowed; the message says which and why.
    """
    from yolofleet.evaluation.images import read_image

    detector = _detector(model)
    given: Any = images
    is_one = isinstance(given, str | bytes | bytearray | memoryview | np.ndarray) or not isinstance(given, Iterable)
    pixels = [read_image(image) for image in ([given] if is_one else given)]
    thresholds: dict[str, Any] = {"confidence": confidence, "iou": iou, "max_detections": max_detections}
    found = detector.predict(pixels, image_size=image_size, batch_size=batch_size, **thresholds)
    return [Prediction(objects=objects, pixels=shown) for objects, shown in zip(found, pixels, strict=True)]


def evaluate(
    model: Detector | str | Path | Run,
    data: str | Path,
    *,
    image_size: int | None = None,
    batch_size: int = 16,
    confidence: float = EVALUATION_CONFIDENCE,
    iou: float = EVALUATION_IOU,
    max_detections: int = EVALUATION_MAX_DETECTIONS,
    rectangular: bool = False,
    precision: Literal["fp32", "fp16"] = "fp32",
    augment: bool = False,
) -> EvaluationResult:
    """Evaluate a model on a dataset by COCO AP.

    Args:
        model: A detector, or what `load` takes.
        data: A sharded dataset: a folder or an ``s3://`` URL.
        image_size: Long side of the network's input in pixels; the model's if None.
        batch_size: Images that pass the network together.
        confidence: Lowest score that counts.
        iou: Overlap above which the worse of two boxes of a class is suppressed.
        max_detections: Kept per image.
        rectangular: Pad images of like shape only as far as they need; as the published evaluation does, and faster.
        precision: fp32 computes in the precision of the weights, fp16 with a copy of them in half precision.
        augment: Whether each image passes at several scales, once mirrored (test-time augmentation).

    Returns:
        ``figures`` has the twelve figures, ``per_class`` those of each class, ``detections`` every box.

    Raises:
        UserError: There is no such model or dataset, it is damaged, or a value is none that is allowed.
    """
    from yolofleet.data.verification import open_verified
    from yolofleet.evaluation.detector import check_settings
    from yolofleet.evaluation.evaluate import evaluate as evaluate_model

    detector = _detector(model)
    size = detector.card.image_size if image_size is None else image_size
    check_settings(
        confidence=confidence, iou=iou, max_detections=max_detections, image_size=size, batch_size=batch_size
    )
    if precision not in ("fp32", "fp16"):
        raise UserError(f"precision={precision!r}: use 'fp32' or 'fp16'")
    return evaluate_model(
        detector.network if precision == "fp32" else detector.model,
        open_verified(_location(data, "data: the path or URL of a sharded dataset")),
        classes=detector.classes,
        device=detector.device,
        image_size=size,
        batch_size=batch_size,
        confidence=confidence,
        iou=iou,
        max_detections=max_detections,
        rectangular=rectangular,
        precision=precision,
        augment=augment,
    )


def export(
    model: Detector | str | Path | Run,
    out: str | Path,
    *,
    format: str = "onnx",
    nms: bool = False,
    dynamic: bool = False,
    batch: int = 1,
    image_size: int | None = None,
) -> Path:
    """Write a detector for another runtime.

    Args:
        model: A detector, or what `load` takes.
        out: The local file to write; for Triton the model repository.
        format: onnx, torchscript, safetensors, triton, or a plugin's.
        nms: Whether suppression is inside, as standard ONNX operators, with the thresholds of the model.
        dynamic: Whether the file takes any batch and any size.
        batch: Images that pass together, unless `dynamic`.
        image_size: Side of the input in pixels; the model's unless given.

    Returns:
        The file.

    Raises:
        UserError: The format is not known, or does not take these options, or `out` is no local file.
    """
    from yolofleet.evaluation.detector import check_settings
    from yolofleet.export.exporter import export_detector
    from yolofleet.export.formats import Request
    from yolofleet.export.settings import InputShape, Thresholds

    path = _location(out, "out: the path of a file")
    if ":/" in path:  # a Path has lost a slash of its URL
        raise UserError(f"out: {path}: a local path is needed; 'yolofleet export MODEL {path}' writes to a storage")
    detector = _detector(model)
    card = detector.card
    thresholds = Thresholds(confidence=card.confidence, iou=card.iou, max_detections=card.max_detections)
    size = card.image_size if image_size is None else image_size
    check_settings(image_size=size, batch=batch)
    shape = InputShape(batch=batch, image_size=size, dynamic=dynamic)
    request = Request(format=format, shape=shape, thresholds=thresholds if nms else None)
    with naming_extras():
        return export_detector(detector, Path(path), request).path


def _detector(model: Detector | str | Path | Run) -> Detector:
    from yolofleet.evaluation.detector import Detector

    return model if isinstance(model, Detector) else load(model)


def _location(value: object, needed: str) -> str:
    """Return the path or URL that a user gave.

    Raises:
        UserError: It is neither; the message begins with what is needed.
    """
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"{needed} is needed, not {type(value).__name__} {cut(repr(value))}")
    return str(value)


def _job(job: Job | str | Path, changes: Mapping[str, Any] | None) -> Job:
    from yolofleet.specs.base import apply_overrides

    if not isinstance(job, Job):
        needed = "job: a Job (Job.parse makes one of a mapping), or the path or URL of a job's file"
        return Job.load(open_file(_location(job, needed)), _overrides(changes))
    if not changes:
        return job
    return Job.parse(apply_overrides(job.document(), _overrides(changes)), source=f"job {job.name}")


def _overrides(changes: Mapping[str, Any] | None) -> list[str]:
    """Return changes as the overrides of a command line; JSON is YAML."""
    if changes is not None and not isinstance(changes, Mapping):
        raise UserError(f"changes: a mapping is needed, such as {{'epochs': 5}}, not {type(changes).__name__}")
    return [f"{key}={json.dumps(value, default=_plain)}" for key, value in (changes or {}).items()]


def _plain(value: Any) -> Any:
    """Return a number or array of NumPy as JSON has it, anything else (a path) as text."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)
