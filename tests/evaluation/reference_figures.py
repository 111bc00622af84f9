"""Random ground truth and detections, and the figures of pycocotools for them as a reference."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

CATEGORY_IDS = (3, 7, 44, 90)


def random_problem(
    seed: int, num_images: int = 12, crowds: bool = True, max_detections: int = 40
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Boxes of every size, some of them crowds, found more or less well, with many equal scores; some images empty."""
    rng = np.random.default_rng(seed)
    image_ids = [int(value) for value in rng.permutation(10_000)[:num_images]]
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for image_id in image_ids:
        for _ in range(int(rng.integers(0, 8)) if rng.random() > 0.2 else 0):
            size = rng.uniform(5, 250, 2)
            x, y, width, height = (float(value) for value in (*rng.uniform(0, 300, 2), *size))
            category_id = int(rng.choice(CATEGORY_IDS[:3]))  # the last category never has an object
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": [x, y, width, height],
                    "area": width * height * float(rng.uniform(0.5, 1)),
                    "iscrowd": int(crowds and rng.random() < 0.25),
                }
            )
            for _ in range(int(rng.integers(0, 4))):
                noise = rng.normal(0, 0.06, 4) * max(width, height)
                box = np.array([x, y, width, height]) + noise
                detections.append(_record(image_id, category_id, box, rng))
        for _ in range(int(rng.integers(0, max_detections))):
            box = np.concatenate((rng.uniform(0, 300, 2), rng.uniform(5, 250, 2)))
            detections.append(_record(image_id, int(rng.choice(CATEGORY_IDS)), box, rng))
    ground_truth = {
        "info": {},
        "images": [
            {"id": image_id, "width": 640, "height": 640, "file_name": f"{image_id}.jpg"} for image_id in image_ids
        ],
        "categories": [{"id": category_id, "name": f"class {category_id}"} for category_id in CATEGORY_IDS],
        "annotations": annotations,
    }
    return ground_truth, detections


def _record(image_id: int, category_id: int, box: Any, rng: np.random.Generator) -> dict[str, Any]:
    x, y, width, height = (float(value) for value in np.round(box, 3))
    score = float(np.round(rng.random(), 1))  # rounded to tenths: plenty of ties
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x, y, max(width, 1.0), max(height, 1.0)],
        "score": score,
    }


def evaluate_with_pycocotools(
    ground_truth: dict[str, Any], detections: list[dict[str, Any]], **parameters: Any
) -> COCOeval:
    """Evaluate with pycocotools directly; it summarizes only what its own parameters give."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(ground_truth)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(detections)), "bbox")
        for name, value in parameters.items():
            assert hasattr(evaluation.params, name)
            setattr(evaluation.params, name, value)
        evaluation.evaluate()
        evaluation.accumulate()
        if not parameters:
            evaluation.summarize()
    return evaluation
