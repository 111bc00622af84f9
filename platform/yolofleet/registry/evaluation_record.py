"""What a detector was found to be worth, in a form that can be looked at again: on which data, how, and each box.

The detections travel with the version as whole numbers (boxes in thousandths of a pixel, scores in hundred-thousandths,
which is what `Detections` are rounded to), so that two versions are compared without running either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import safetensors.numpy
from pydantic import Field
from safetensors import SafetensorError

from yolofleet.core.errors import UserError
from yolofleet.data.dataset import ShardDataset
from yolofleet.evaluation.detections import BOX_DECIMALS, SCORE_DECIMALS, Detections
from yolofleet.evaluation.reference_ap import reference_average_precision, reference_differences, reference_name
from yolofleet.registry.versions import RegistryError
from yolofleet.specs.base import Spec
from yolofleet.storage import StorageError

if TYPE_CHECKING:
    from yolofleet.evaluation.detector import Detector
    from yolofleet.evaluation.evaluate import EvaluationResult

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class JudgingSettings(Spec):
    """How detections are made for judging."""

    image_size: Count
    """Long side of the network's input in pixels."""
    batch_size: Count = 16
    """Images that pass the network together."""
    confidence: Share = 0.001
    """Lowest score that counts."""
    iou: Share = 0.65
    """Overlap above which the worse of two boxes of a class is suppressed."""
    max_detections: Count = 300
    """Kept per image."""


class JudgedClass(Spec):
    """What one class reached."""

    id: int
    name: str
    num_objects: int
    ap: float | None = None


class Judgement(Spec):
    """A judgement by COCO AP."""

    data: str
    """Where the validation set lay."""
    manifest_sha256: Sha256
    """Digest of its manifest, which holds those of all its shards."""
    settings: JudgingSettings
    device: str
    num_images: int
    num_skipped: int = 0
    """Images that could not be read; they count as empty."""
    figures: dict[str, float | None]
    """The twelve COCO figures."""
    classes: tuple[JudgedClass, ...]
    confirmed_by: str | None = None
    """What computed the same figures from the same detections (`pycocotools 2.0.11`); None where nothing did."""


@dataclass(frozen=True)
class Judged:
    """A judgement with what was judged.

    Attributes:
        judgement: Data, settings and figures.
        detections: Each box.
    """

    judgement: Judgement
    detections: Detections


def judged(result: EvaluationResult, dataset: ShardDataset, settings: JudgingSettings, device: str) -> Judged:
    """Return the result of an evaluation as a judgement."""
    judgement = Judgement(
        data=dataset.storage.url,
        manifest_sha256=dataset.manifest.digest,
        settings=settings,
        device=device,
        num_images=result.num_images,
        num_skipped=len(result.skipped),
        figures=dict(result.figures),
        classes=tuple(
            JudgedClass(id=entry.category_id, name=entry.name, num_objects=entry.num_objects, ap=entry.ap)
            for entry in result.per_class
        ),
    )
    return Judged(judgement, result.detections)


def judge(
    detector: Detector,
    dataset: ShardDataset,
    settings: JudgingSettings | None = None,
    on_images: Callable[[int], None] | None = None,
) -> Judged:
    """Judge a detector on a dataset.

    Args:
        detector: On the device that it shall compute on.
        dataset: The validation set.
        settings: How; by default the published evaluation's, at the detector's own input size.
        on_images: Told how many images were done, each time some are.

    Raises:
        UserError: Detector and dataset have no class in common, or the dataset cannot be read.
    """
    from yolofleet.evaluation.evaluate import evaluate

    settings = settings or JudgingSettings(image_size=detector.card.image_size)
    result = evaluate(
        detector.network,
        dataset,
        image_size=settings.image_size,
        classes=detector.classes,
        batch_size=settings.batch_size,
        device=detector.device,
        confidence=settings.confidence,
        iou=settings.iou,
        max_detections=settings.max_detections,
        on_batch=lambda batch: on_images(len(batch.image_ids) + len(batch.skipped)) if on_images else None,
    )
    return judged(result, dataset, settings, str(detector.device))


def confirmed(judged: Judged) -> Judged:
    """Return a judgement whose figures pycocotools has computed from the same detections; unchanged without its data.

    Raises:
        RegistryError: pycocotools computes other figures.
    """
    judgement = judged.judgement
    try:
        dataset = ShardDataset(judgement.data)
        if dataset.manifest.digest != judgement.manifest_sha256:
            return judged
        truth = dataset.annotations()
    except (UserError, StorageError):
        return judged
    if problems := reference_differences(judgement.figures, reference_average_precision(truth, judged.detections)):
        raise RegistryError(
            f"the figures to register are not those of their detections on {judgement.data}: {'; '.join(problems)}. "
            "Figures or detections were changed, or one of the two computes them wrongly: evaluate again"
        )
    return replace(judged, judgement=judgement.model_copy(update={"confirmed_by": reference_name()}))


def judged_package(folder: Path, data: str, device: str) -> Judged:
    """Judge a detector package on a dataset.

    Raises:
        UserError: The package, the dataset or the device cannot be used.
    """
    from yolofleet.evaluation.detector import Detector, select_device

    return judge(Detector.load(folder, select_device(device, "--device")), ShardDataset(data))


def judged_manifests(data: str | None) -> dict[str, bytes]:
    """Return the manifest of the data that a detector package was judged on, by ``val``; empty where it was not."""
    return {} if data is None else {"val": ShardDataset(data).manifest.to_bytes()}


def judged_evidence(judged: Judged | None) -> dict[str, Any]:
    """Return a judgement as evidence: figures, and the data that they were taken on."""
    if judged is None:
        return {}
    judgement = judged.judgement
    return {
        "figures": judgement.figures,
        "num_images": judgement.num_images,
        "data": {"val": judgement.manifest_sha256},
        "data_url": {"val": judgement.data},
    }


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
    """Read what `write_detections` wrote, number by number the same.

    Raises:
        RegistryError: The file is damaged.
    """
    try:
        columns = safetensors.numpy.load_file(path)
        return Detections(
            image_ids=columns["image_ids"].astype(np.int64),
            category_ids=columns["category_ids"].astype(np.int64),
            boxes=columns["boxes"].reshape(-1, 4) / 10**BOX_DECIMALS,
            scores=columns["scores"] / 10**SCORE_DECIMALS,
        )
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise RegistryError(f"{path}: holds no detections ({error})") from error
