"""Evaluation of a model on a dataset: detections of its images, and their COCO figures.

It has two halves, so that ranks can share the work: `collect_detections` turns a rank's batches into one plain tensor,
the caller gathers the tensors of all ranks, and `score_detections` computes the figures once. `evaluate` does both in
one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from yolofleet.core.errors import UserError
from yolofleet.core.file_names import EVALUATION_CONFIDENCE, EVALUATION_IOU, EVALUATION_MAX_DETECTIONS
from yolofleet.core.text import and_more
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.evaluation_stream import EvaluationBatch, EvaluationStream
from yolofleet.data.letterbox import Letterbox
from yolofleet.evaluation.average_precision import EvaluationResult, coco_average_precision
from yolofleet.evaluation.detections import Detections
from yolofleet.evaluation.nms import non_maximum_suppression
from yolofleet.evaluation.protocol import COCO_PROTOCOL, Protocol

if TYPE_CHECKING:
    from yolofleet.evaluation.inference_form import Precision

COLUMNS = 7  # image id, x1, y1, x2, y2, score, class index


def evaluation_precision(protocol: str, device: str | torch.device) -> Precision:
    """Return the precision of a protocol: published means half precision where there is a GPU."""
    return "fp16" if protocol == "published" and torch.device(device).type == "cuda" else "fp32"


@torch.inference_mode()
def collect_detections(
    model: nn.Module,
    batches: Iterable[EvaluationBatch],
    device: str | torch.device = "cpu",
    *,
    confidence: float = EVALUATION_CONFIDENCE,
    iou: float = EVALUATION_IOU,
    max_detections: int = EVALUATION_MAX_DETECTIONS,
    classes: Sequence[int] | None = None,
    precision: Precision = "fp32",
    augment: bool = False,
    on_batch: Callable[[EvaluationBatch], None] | None = None,
) -> Tensor:
    """Run a model over batches; it and its training mode are left as they were.

    Args:
        model: Gives decoded predictions (B, N, 5 + C) in evaluation mode; it lies on `device`.
        batches: Letterboxed images.
        device: Where the model lies.
        confidence: Candidates below are dropped; each class above it makes a detection of its own.
        iou: Overlap above which the worse of two boxes of a class is suppressed.
        max_detections: Kept per image.
        classes: Class indices to keep (None: all).
        precision: fp32 computes in the precision of the weights, fp16 with a copy of them in half precision.
        augment: Whether each image passes at several scales, once mirrored (test-time augmentation).
        on_batch: Called with each batch after it is done, for progress and for what the stream could not read.

    Returns:
        (D, 7) float64 on the CPU: image id, x1, y1, x2, y2 in pixels of the original image, score, class index.
        Float64 holds every id below 2^53 exactly, so tensors of several ranks can be gathered as they are.
    """
    was_training = model.training
    model.eval()
    collected = [torch.empty(0, COLUMNS, dtype=torch.float64)]  # so that no batches also give a tensor
    try:
        network = model
        if augment or precision != "fp32":
            from yolofleet.evaluation.inference_form import inference_form

            network = inference_form(model, precision=precision, augment=augment)
        dtype = next((weights.dtype for weights in network.parameters()), torch.float32)
        for batch in batches:
            if len(batch.image_ids):  # empty where no image of a batch could be read
                images = batch.images.to(device, non_blocking=True).to(dtype) / 255  # (B, 3, H, W)
                suppressed = non_maximum_suppression(
                    network(images), confidence=confidence, iou=iou, max_detections=max_detections, classes=classes
                )
                for image_id, letterbox, detections in zip(batch.image_ids, batch.letterboxes, suppressed, strict=True):
                    collected.append(_rows(image_id, letterbox, detections.cpu().double()))
            if on_batch is not None:
                on_batch(batch)
    finally:
        model.train(was_training)
    return torch.cat(collected)


def _rows(image_id: int, letterbox: Letterbox, detections: Tensor) -> Tensor:
    """Map one image's detections (k, 6) in the letterboxed image to rows (k, 7) in the original one."""
    ids = torch.full((len(detections), 1), float(image_id), dtype=torch.float64)
    return torch.cat((ids, letterbox.undo(detections[:, :4]), detections[:, 4:]), dim=1)


def score_detections(
    rows: Tensor,
    ground_truth: Mapping[str, Any],
    category_ids: Sequence[int] | None = None,
    *,
    skipped: Sequence[tuple[str, str]] = (),
    protocol: Protocol = COCO_PROTOCOL,
) -> EvaluationResult:
    """Compute the figures of the gathered detections of all ranks.

    Args:
        rows: (D, 7) as `collect_detections` gives, in any order of the images.
        ground_truth: The dataset's annotations as a COCO document.
        category_ids: The dataset's category id of each class index; None: the ground truth's categories in their order.
        skipped: (key, reason) of images that could not be read.
        protocol: Numbers of detections, sizes and classes that are evaluated.

    Returns:
        The figures; equal however many ranks took part.

    Raises:
        UserError: A detection belongs to no image of the ground truth.
    """
    if category_ids is None:
        category_ids = [category["id"] for category in ground_truth["categories"]]
    detections = Detections.from_tensor(rows, category_ids)
    average_precision = coco_average_precision(ground_truth, detections, protocol)
    return EvaluationResult(
        average_precision=average_precision,
        ground_truth=ground_truth,
        detections=detections,
        skipped=tuple(skipped),
    )


def evaluate(
    model: nn.Module,
    dataset: ShardDataset,
    *,
    image_size: int,
    classes: Sequence[tuple[int, str]] | None = None,
    batch_size: int = 16,
    device: str | torch.device = "cpu",
    confidence: float = EVALUATION_CONFIDENCE,
    iou: float = EVALUATION_IOU,
    max_detections: int = EVALUATION_MAX_DETECTIONS,
    protocol: Protocol = COCO_PROTOCOL,
    rectangular: bool = False,
    precision: Precision = "fp32",
    augment: bool = False,
    num_threads: int = 1,
    on_batch: Callable[[EvaluationBatch], None] | None = None,
) -> EvaluationResult:
    """Evaluate a model on a dataset, in this process.

    Args:
        model: A detector of yolofleet.models on `device`.
        dataset: The shards; every image is evaluated once.
        image_size: Long side of the network's input in pixels.
        classes: (category id, name) of each class index of the model, if they may differ from the dataset's;
            `category_ids_for` maps them.
        batch_size: Images that pass through the network together.
        device: Where the model lies.
        confidence: Lowest score that counts.
        iou: Overlap above which the worse of two boxes of a class is suppressed.
        max_detections: Kept per image.
        protocol: Numbers of detections, sizes and classes that are evaluated.
        rectangular: Pad images of like shape only as far as they need; as the published evaluation does, and faster.
        precision: fp32 computes in the precision of the weights, fp16 with a copy of them in half precision.
        augment: Whether each image passes at several scales, once mirrored (test-time augmentation).
        num_threads: Threads that decode images.
        on_batch: Called with each batch after it is done, for progress.

    Returns:
        Figures, classes, detections and what was skipped.

    Raises:
        UserError: Model and dataset have no class in common, or the dataset cannot be read.
    """
    ids = category_ids_for(dataset.classes if classes is None else classes, dataset.classes)
    strides: Sequence[int] = model.strides  # type: ignore[assignment]
    stream = EvaluationStream(
        dataset,
        image_size=image_size,
        stride=max(strides),
        batch_size=batch_size,
        rectangular=rectangular,
        num_threads=num_threads,
    )
    skipped: list[tuple[str, str]] = []

    def after_batch(batch: EvaluationBatch) -> None:
        skipped.extend(batch.skipped)
        if on_batch is not None:
            on_batch(batch)

    rows = collect_detections(
        model,
        stream,
        device,
        confidence=confidence,
        iou=iou,
        max_detections=max_detections,
        classes=[index for index, category_id in enumerate(ids) if category_id is not None],
        precision=precision,
        augment=augment,
        on_batch=after_batch,
    )
    known_ids = [-1 if category_id is None else category_id for category_id in ids]
    return score_detections(rows, dataset.annotations(), known_ids, skipped=skipped, protocol=protocol)


def category_ids_for(
    model_classes: Sequence[tuple[int, str]], dataset_classes: Sequence[tuple[int, str]]
) -> list[int | None]:
    """Map each class of a model to the class of a dataset with the same id and name, or else the same name.

    Args:
        model_classes: (category id, name) of each class index.
        dataset_classes: (category id, name).

    Returns:
        The dataset's category id of each class index; None for a class that the dataset does not have.

    Raises:
        UserError: No class is in both.
    """
    pairs = set(dataset_classes)
    by_name = {name: category_id for category_id, name in reversed(dataset_classes)}
    ids = [category_id if (category_id, name) in pairs else by_name.get(name) for category_id, name in model_classes]
    if all(category_id is None for category_id in ids):
        raise UserError(
            f"model and dataset have no class in common: the model knows {_format_names(model_classes)}, "
            f"the dataset has {_format_names(dataset_classes)}"
        )
    return ids


def classes_unknown_to(
    model_classes: Sequence[tuple[int, str]], dataset_classes: Sequence[tuple[int, str]]
) -> list[tuple[int, str]]:
    """Return the dataset's classes that the model does not know: none of their objects can be detected."""
    known = set(category_ids_for(model_classes, dataset_classes))
    return [entry for entry in dataset_classes if entry[0] not in known]


def _format_names(classes: Sequence[tuple[int, str]]) -> str:
    return and_more([name for _, name in classes], 6)
