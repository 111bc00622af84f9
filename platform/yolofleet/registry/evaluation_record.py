"""What a detector is worth: on which data, with which settings, every figure, and every box behind the figures.

The detections are stored in a version as whole numbers (boxes in thousandths of a pixel, scores in hundred-thousandths,
which is what `Detections` are rounded to), so that two versions can be compared without running either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import safetensors.numpy
from pydantic import Field

from yolofleet.core.errors import UserError
from yolofleet.core.file_names import EVALUATION_CONFIDENCE, EVALUATION_IOU, EVALUATION_MAX_DETECTIONS
from yolofleet.core.local_files import open_regular
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.verification import open_verified
from yolofleet.evaluation.detections import BOX_DECIMALS, SCORE_DECIMALS, Detections
from yolofleet.models.tensor_file import TensorFileError, load_tensors
from yolofleet.registry.versions import RegistryError
from yolofleet.specs.base import Count, Spec

if TYPE_CHECKING:
    from yolofleet.evaluation.average_precision import EvaluationResult
    from yolofleet.evaluation.detector import Detector

MOST_DETECTIONS_BYTES = 2**31
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]


class EvaluationSettings(Spec):
    """How detections are made for an evaluation."""

    image_size: Count
    """Long side of the network's input in pixels."""
    batch_size: Count = 16
    confidence: Share = EVALUATION_CONFIDENCE
    """Lowest score that counts."""
    iou: Share = EVALUATION_IOU
    """IoU above which the worse of two boxes of a class is suppressed."""
    max_detections: Count = EVALUATION_MAX_DETECTIONS
    """Kept per image."""
    rectangular: bool = False
    """Whether images of like shape passed together, padded only as far as they needed."""
    precision: Literal["fp32", "fp16"] = "fp32"
    """What the network computed in."""

    @property
    def protocol(self) -> Literal["square", "rectangular", "published"]:
        """The name of the settings: published has rectangular batches and the published thresholds."""
        thresholds = (self.confidence, self.iou, self.max_detections)
        published = (EVALUATION_CONFIDENCE, EVALUATION_IOU, EVALUATION_MAX_DETECTIONS)
        if self.rectangular and thresholds == published:
            return "published"
        return "rectangular" if self.rectangular else "square"

    def facts(self) -> dict[str, str]:
        """Return what a version is tagged with."""
        return {"protocol": self.protocol, "precision": self.precision}


class ClassRecord(Spec):
    """AP of one class."""

    id: int
    name: str
    num_objects: int
    ap: float | None = None


class EvaluationRecord(Spec):
    """An evaluation by COCO AP, as it is stored."""

    data: str
    """Where the validation set was."""
    manifest_sha256: Sha256
    """Digest of its manifest, which holds those of all its shards."""
    settings: EvaluationSettings
    device: str
    num_images: int
    num_skipped: int = 0
    """Images that could not be read; they count as empty, or where the annotation is damaged not at all."""
    figures: dict[str, float | None]
    """The twelve COCO figures."""
    unrounded_figures: dict[str, float | None] | None = None
    """Those of the weights before they were rounded to half precision; None where they were not."""
    classes: tuple[ClassRecord, ...]
    confirmed_by: str | None = None
    """What computed the same figures from the same detections (`pycocotools 2.0.11`); None where nothing did."""


@dataclass(frozen=True)
class Evaluation:
    """An evaluation with every box behind its figures."""

    record: EvaluationRecord
    detections: Detections

    @staticmethod
    def from_result(
        result: EvaluationResult, dataset: ShardDataset, settings: EvaluationSettings, device: str
    ) -> Evaluation:
        """Return the result of an evaluation with the data and the settings that it was made with."""
        record = EvaluationRecord(
            data=dataset.storage.url,
            manifest_sha256=dataset.manifest.digest,
            settings=settings,
            device=device,
            num_images=result.num_images,
            num_skipped=len(result.skipped),
            figures=dict(result.figures),
            classes=tuple(
                ClassRecord(id=entry.category_id, name=entry.name, num_objects=entry.num_objects, ap=entry.ap)
                for entry in result.per_class
            ),
        )
        return Evaluation(record, result.detections)


@dataclass(frozen=True)
class Evidence:
    """What is known of a detector package when it is registered."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    """Figures, data digests, job (plain JSON values). They are kept whole in ``evidence.json``, and their leaves, those
    of ``job`` apart, as tags of the version."""
    evaluation: Evaluation | None = None
    """What it is worth; None where it was not evaluated."""
    manifests: Mapping[str, bytes] = field(default_factory=dict)
    """The manifests of its data as they are stored, by ``train`` and ``val``."""
    report: bytes | None = None
    """The page of its evaluation report."""


def evaluate_detector(
    detector: Detector,
    dataset: ShardDataset,
    settings: EvaluationSettings,
    on_images: Callable[[int], None] | None = None,
) -> Evaluation:
    """Evaluate a detector on a dataset.

    Args:
        detector: On the device that computes.
        dataset: The validation set.
        settings: How detections are made.
        on_images: Called with a number of images each time that some are done.

    Raises:
        UserError: Detector and dataset have no class in common, or the dataset cannot be read.
    """
    from yolofleet.evaluation.evaluate import evaluate

    result = evaluate(
        detector.network if settings.precision == "fp32" else detector.model,
        dataset,
        classes=detector.classes,
        device=detector.device,
        on_batch=lambda batch: on_images(len(batch.image_ids) + len(batch.skipped)) if on_images else None,
        **settings.model_dump(),
    )
    return Evaluation.from_result(result, dataset, settings, str(detector.device))


def confirm_figures(evaluation: Evaluation) -> Evaluation:
    """Compute the figures again with pycocotools, and record that; without its data the evaluation is unchanged.

    Raises:
        RegistryError: pycocotools computes other figures.
    """
    from yolofleet.evaluation.reference_ap import reference_average_precision, reference_differences, reference_name

    record = evaluation.record
    try:
        dataset = ShardDataset(record.data)
        if dataset.manifest.digest != record.manifest_sha256:
            return evaluation
        truth = dataset.annotations()
    except UserError:
        return evaluation
    if problems := reference_differences(record.figures, reference_average_precision(truth, evaluation.detections)):
        raise RegistryError(
            f"the figures to register are not those of their detections on {record.data}: {'; '.join(problems)}. "
            "Figures or detections were changed, or one of the two programs is wrong: evaluate again"
        )
    return replace(evaluation, record=record.model_copy(update={"confirmed_by": reference_name()}))


def evaluate_package(
    folder: Path, data: str, device: str, facts: Mapping[str, Any] | None = None, *, protocol: str = "square"
) -> Evidence:
    """Evaluate a detector package on a dataset, and return what is known of it then.

    Args:
        folder: The detector package.
        data: The validation set.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        facts: What was known before.
        protocol: ``square`` or ``published``.

    Raises:
        UserError: The package, the dataset or the device cannot be used.
    """
    from yolofleet.evaluation.detector import Detector, select_device
    from yolofleet.evaluation.evaluate import evaluation_precision

    detector, dataset = Detector.load(folder, select_device(device, "--device")), open_verified(data)
    settings = EvaluationSettings(
        image_size=detector.card.image_size,
        rectangular=protocol == "published",
        precision=evaluation_precision(protocol, detector.device),
    )
    evaluation = evaluate_detector(detector, dataset, settings)
    record = evaluation.record
    figures = {"figures": record.figures, "evaluation": settings.facts(), "num_images": record.num_images}
    origin = {"data": {"val": record.manifest_sha256}, "data_url": {"val": record.data}}
    return Evidence({**(facts or {}), **figures, **origin}, evaluation, {"val": dataset.manifest.to_bytes()})


def write_detections(detections: Detections, path: Path) -> None:
    """Write detections as a safetensors file."""
    scales: Mapping[str, tuple[np.typing.NDArray[np.float64], int]] = {
        "boxes": (detections.boxes, BOX_DECIMALS),
        "scores": (detections.scores, SCORE_DECIMALS),
    }
    columns = {name: np.rint(values * 10**decimals).astype(np.int32) for name, (values, decimals) in scales.items()}
    ids = {"image_ids": detections.image_ids, "category_ids": detections.category_ids}
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file({**columns, **ids}, path)


def read_detections(path: Path) -> Detections:
    """Read what `write_detections` wrote, exactly.

    Raises:
        RegistryError: The file is damaged.
    """
    try:
        with open_regular(path, MOST_DETECTIONS_BYTES) as file:
            columns = {name: tensor.numpy() for name, tensor in load_tensors(file).items()}
        return Detections(
            image_ids=columns["image_ids"].astype(np.int64),
            category_ids=columns["category_ids"].astype(np.int64),
            boxes=columns["boxes"].reshape(-1, 4) / 10**BOX_DECIMALS,
            scores=columns["scores"] / 10**SCORE_DECIMALS,
        )
    except (OSError, TensorFileError, ValueError, KeyError) as error:
        raise RegistryError(f"{path}: is damaged: no detections can be read from it ({error})") from error
