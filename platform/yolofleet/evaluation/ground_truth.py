"""Ground truth straight from a COCO annotation file, for judging files of detections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from yolofleet.errors import UserError

NEEDED = {"images": ("id",), "categories": ("id", "name"), "annotations": ("image_id", "category_id", "bbox")}


class GroundTruthError(UserError):
    """A file is no COCO annotation file that detections can be judged by."""


def read_ground_truth(path: Path) -> dict[str, Any]:
    """Reads a COCO "instances" file as it is: nothing is dropped or repaired, as pycocotools would not either.

    Returns:
        The document, with the keys that judging needs.

    Raises:
        GroundTruthError: It cannot be read, is not JSON, or lacks what judging needs.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GroundTruthError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise GroundTruthError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise GroundTruthError(f"{path} is not a COCO annotation file: it holds a {type(document).__name__}")
    for key, fields in NEEDED.items():
        entries = document.get(key)
        if not isinstance(entries, list):
            raise GroundTruthError(f"{path} is not a COCO annotation file: '{key}' must be a list")
        for number, entry in enumerate(entries):
            problem = _problem(entry, fields)
            if problem:
                raise GroundTruthError(f"{path}: {key}[{number}] {problem}")
    return document


def _problem(entry: Any, fields: tuple[str, ...]) -> str | None:
    """What is wrong with an image, a category or an annotation, if anything is."""
    if not isinstance(entry, dict):
        return f"is {entry!r:.40}, not an object"
    for field in fields:
        if field not in entry:
            return f"has no '{field}'"
        if field.endswith("id") and not _is_id(entry[field]):
            return f"has {field} {entry[field]!r:.40}; it must be a whole number"
    if "bbox" in fields:
        bbox = entry["bbox"]
        if not isinstance(bbox, list) or len(bbox) != 4 or not all(_is_number(value) for value in bbox):
            return f"has bbox {bbox!r:.60}; it must be four numbers x, y, width, height in pixels"
        if not _is_number(entry.get("area", 0)):
            return f"has area {entry['area']!r:.40}; it must be a number"
    return None


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
