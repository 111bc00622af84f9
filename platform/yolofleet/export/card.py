"""The card of an exported file: metadata on how to prepare images for it and how to read its output.

A file may be far from the detector that it was exported from, so everything that its use needs lies inside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from yolofleet.evaluation.detector_package import DetectorCard, DetectorClass, Share
from yolofleet.export.settings import ExportError, InputShape, Thresholds
from yolofleet.specs.base import Spec

if TYPE_CHECKING:
    from onnx import ModelProto

KEY = "yolofleet"
FORMAT = 1


class SuppressionFacts(Spec):
    """The thresholds of the suppression inside a file."""

    confidence: Share
    iou: Share
    max_detections: Annotated[int, Field(ge=1)]
    multi_label: bool


class ExportCard(Spec):
    """The metadata of an exported file, under the key `yolofleet`."""

    format: Annotated[int, Field(ge=1, le=FORMAT)] = FORMAT
    model: str
    """Name of the block table."""
    classes: Annotated[tuple[DetectorClass, ...], Field(min_length=1)]
    image_size: Annotated[int, Field(ge=32, le=16384)]
    """Long side in pixels that the detector was trained for; images are letterboxed to it with grey 114."""
    strides: Annotated[tuple[int, ...], Field(min_length=1)]
    dynamic: bool
    """Whether batch and size of the input may be any; sides are multiples of the largest stride."""
    confidence: Share
    iou: Share
    max_detections: Annotated[int, Field(ge=1)]
    suppression: SuppressionFacts | None = None
    """Given where suppression is inside."""
    quantized: bool = False
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Digest of the weights of the detector package that it was exported from."""


def make_card(
    card: DetectorCard,
    strides: tuple[int, ...],
    shape: InputShape,
    thresholds: Thresholds | None,
    *,
    quantized: bool = False,
) -> ExportCard:
    """Return the card of a file that is exported from a detector package."""
    facts = None
    if thresholds is not None:
        facts = SuppressionFacts(
            confidence=thresholds.confidence,
            iou=thresholds.iou,
            max_detections=thresholds.max_detections,
            multi_label=thresholds.multi_label,
        )
    return ExportCard(
        model=card.model.name,
        classes=card.classes,
        image_size=shape.image_size,
        strides=strides,
        dynamic=shape.dynamic,
        confidence=card.confidence,
        iou=card.iou,
        max_detections=card.max_detections,
        suppression=facts,
        quantized=quantized,
        weights_sha256=card.weights_sha256,
    )


def put_card(model: ModelProto, card: ExportCard) -> None:
    """Write the card into an ONNX model."""
    entry = next((entry for entry in model.metadata_props if entry.key == KEY), None) or model.metadata_props.add()
    entry.key, entry.value = KEY, json.dumps(card.document())


def read_card(metadata: Mapping[str, str], source: str) -> ExportCard:
    """Read the card from a file's metadata.

    Raises:
        ExportError: There is none.
    """
    if KEY not in metadata:
        raise ExportError(f"{source} holds no description of its classes and input: 'yolofleet export' writes one")
    try:
        document = json.loads(metadata[KEY])
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{source}: its description is not JSON: {error}") from error
    return ExportCard.parse(document, source=source)
