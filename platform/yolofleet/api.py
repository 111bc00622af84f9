"""The Python API: what the commands do, as functions. Its names are those of the package: ``yolofleet.train``.

Each calls what the command of the same name calls. Lines on the progress go to stderr; results come back as objects,
which show themselves in a notebook. Errors that a user can cure are `yolofleet.core.errors.UserError`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from yolofleet.core.errors import UserError, naming_extras
from yolofleet.specs.job import JobSpec as Job
from yolofleet.storage import open_file, open_storage

if TYPE_CHECKING:
    from PIL.Image import Image

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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prediction:
    """What was found in an image; a notebook shows the image with its boxes.

    Attributes:
        objects: Best first: category_id, category_name, bbox x, y, width, height in pixels, score.
        pixels: (H, W, 3) uint8 RGB, the upright image.
    """

    objects: list[dict[str, Any]]
    pixels: NDArray[np.uint8]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.objects)

    def __len__(self) -> int:
        return len(self.objects)

    def __repr__(self) -> str:
        counts = Counter(entry["category_name"] for entry in self.objects).most_common()
        found = ", ".join(f"{count} {name}" for name, count in counts) or "nothing found"
        return f"Prediction of {self.pixels.shape[1]}x{self.pixels.shape[0]} pixels: {found}"

    def image(self) -> Image:
        """Return the image with boxes and labels."""
        from yolofleet.data.draw import draw_detections

        return draw_detections(self.pixels, self.objects)

    def _repr_png_(self) -> bytes:
        from yolofleet.data.draw import encode

        return encode(self.image(), "png")


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
        session = SearchSession.open(load_search(open_file(space), _overrides(changes)), source=str(space))
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

    name = model.url if isinstance(model, Run) else str(model)
    if Path(name).is_file() and (Path(name).parent / DETECTOR_CARD_NAME).is_file():
        name = str(Path(name).parent)
    with naming_extras():
        return open_detector(name, device, tracking_uri)


def predict(
    model: Detector | str | Path | Run, images: ImageInput | Sequence[ImageInput], **options: Any
) -> list[Prediction]:
    """Find objects in images.

    Args:
        model: A detector, or what `load` takes.
        images: One or several: paths, bytes of files, base64 text, or arrays (H, W, 3) uint8 RGB.
        options: ``confidence``, ``iou``, ``max_detections``, ``image_size`` and ``batch_size``, as
            `Detector.predict` takes them.

    Returns:
        A prediction for each image.

    Raises:
        UserError: An image cannot be read; the message says which and why.
    """
    from yolofleet.evaluation.images import read_image

    detector = _detector(model)
    several: list[Any] = list(images) if isinstance(images, list | tuple) else [images]
    pixels = [read_image(image) for image in several]
    found = detector.predict(pixels, **options)
    return [Prediction(objects=objects, pixels=shown) for objects, shown in zip(found, pixels, strict=True)]


def evaluate(model: Detector | str | Path | Run, data: str | Path, **options: Any) -> EvaluationResult:
    """Evaluate a model on a dataset by COCO AP.

    Args:
        model: A detector, or what `load` takes.
        data: A sharded dataset: a folder or an ``s3://`` URL.
        options: ``image_size``, ``batch_size``, ``confidence``, ``iou``, ``max_detections``, ``rectangular``,
            ``precision`` and ``augment``, as `yolofleet.evaluation.evaluate.evaluate` takes them.

    Returns:
        ``figures`` has the twelve figures, ``per_class`` those of each class, ``detections`` every box.

    Raises:
        UserError: There is no such model or dataset, or it is damaged.
    """
    from yolofleet.data.verification import open_verified
    from yolofleet.evaluation.evaluate import evaluate as evaluate_model

    detector = _detector(model)
    options = {"image_size": detector.card.image_size} | options
    network = detector.network if options.get("precision", "fp32") == "fp32" else detector.model
    return evaluate_model(network, open_verified(data), classes=detector.classes, device=detector.device, **options)


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
        out: The file to write; for Triton the model repository.
        format: onnx, torchscript, safetensors, triton, or a plugin's.
        nms: Whether suppression is inside, as standard ONNX operators, with the thresholds of the model.
        dynamic: Whether the file takes any batch and any size.
        batch: Images that pass together, unless `dynamic`.
        image_size: Side of the input in pixels; the model's unless given.

    Returns:
        The file.

    Raises:
        UserError: The format is not known, or does not take these options.
    """
    from yolofleet.export.exporter import export_detector
    from yolofleet.export.formats import Request
    from yolofleet.export.settings import InputShape, Thresholds

    detector = _detector(model)
    card = detector.card
    thresholds = Thresholds(confidence=card.confidence, iou=card.iou, max_detections=card.max_detections)
    shape = InputShape(batch=batch, image_size=image_size or card.image_size, dynamic=dynamic)
    request = Request(format=format, shape=shape, thresholds=thresholds if nms else None)
    return export_detector(detector, Path(out), request).path


def _detector(model: Detector | str | Path | Run) -> Detector:
    return load(model) if isinstance(model, str | Path | Run) else model


def _job(job: Job | str | Path, changes: Mapping[str, Any] | None) -> Job:
    from yolofleet.specs.base import apply_overrides

    if not isinstance(job, Job):
        return Job.load(open_file(job), _overrides(changes))
    if not changes:
        return job
    return Job.parse(apply_overrides(job.document(), _overrides(changes)), source=f"job {job.name}")


def _overrides(changes: Mapping[str, Any] | None) -> list[str]:
    """Return changes as the overrides of a command line; JSON is YAML."""
    if changes is not None and not isinstance(changes, Mapping):
        raise UserError(f"changes: a mapping is needed, such as {{'epochs': 5}}, not {type(changes).__name__}")
    return [f"{key}={json.dumps(value, default=str)}" for key, value in (changes or {}).items()]
