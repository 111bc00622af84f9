"""Reference figures: COCO average precision as pycocotools computes it, to check the figures of a registered version.

It takes about fifty times as long as `coco_average_precision`, which training uses, and shares no code with it.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from yolofleet.evaluation.average_precision import Figures
from yolofleet.evaluation.detections import Detections
from yolofleet.evaluation.protocol import COCO_PROTOCOL

TOLERANCE = 1e-12
"""Both sum the same numbers in the same order; this leaves room for another build of NumPy."""


def reference_average_precision(ground_truth: Mapping[str, Any], detections: Detections) -> Figures:
    """Compute the twelve figures with pycocotools' `COCOeval`.

    Args:
        ground_truth: A COCO document, as `coco_average_precision` takes it.
        detections: Of images of that document.

    Returns:
        The figures by name; None, where pycocotools gives -1: there was nothing to measure.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints what it does
        truth, detected = COCO(), COCO()
        for part, annotations in ((truth, ground_truth["annotations"]), (detected, detections.records())):
            # Numbered from 1: to pycocotools, id 0 means "not matched", and ids must be unique.
            part.dataset = {**ground_truth, "annotations": [_complete(*e) for e in enumerate(annotations, start=1)]}
            part.createIndex()
        evaluation = COCOeval(truth, detected, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {
        name: None if value == -1 else float(value)
        for name, value in zip(
            COCO_PROTOCOL.figure_names, evaluation.stats[: len(COCO_PROTOCOL.figure_names)], strict=True
        )
    }


def reference_name() -> str:
    """Return the name and version of the package that computes the reference."""
    return f"pycocotools {metadata.version('pycocotools')}"


def reference_differences(figures: Figures, reference: Figures, tolerance: float = TOLERANCE) -> list[str]:
    """Return a sentence for each figure that the reference does not confirm.

    Args:
        figures: The figures claimed.
        reference: Those of `reference_average_precision` for the same detections.
        tolerance: The largest difference allowed.
    """
    return [
        f"{name} is {_format(figures.get(name))}, {reference_name()} computes {_format(value)}"
        for name, value in reference.items()
        if not _equal(figures.get(name), value, tolerance)
    ]


def _complete(number: int, annotation: Mapping[str, Any]) -> dict[str, Any]:
    """Return an annotation or a detection with every field that pycocotools reads."""
    width, height = annotation["bbox"][2:]
    return {"area": width * height, "iscrowd": 0, **annotation, "id": number}


def _equal(figure: float | None, reference: float | None, tolerance: float) -> bool:
    if figure is None or reference is None:
        return figure is reference
    return abs(figure - reference) <= tolerance


def _format(value: float | None) -> str:
    return "not measured" if value is None else repr(value)
