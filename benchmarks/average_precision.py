"""COCO AP of yolofleet against pycocotools and faster-coco-eval, on the same detections, in the same run.

    python benchmarks/average_precision.py [--images 500 --detections 50000] [--json]

Every judge gets the detections as COCO result records (dictionaries), which is what pycocotools takes; yolofleet is
also timed on the arrays that evaluation really hands it. Processor time, one thread. The largest difference to
pycocotools over the twelve figures is part of the result: yolofleet's must be 0.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import time
from collections.abc import Callable
from typing import Any

import faster_coco_eval
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from yolofleet.evaluation.average_precision import coco_average_precision
from yolofleet.evaluation.detections import Detections

NUM_CLASSES = 80
OBJECTS_PER_IMAGE = 7


def problem(num_images: int, num_detections: int, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ground truth with about seven objects an image, 1 % crowds, and detections of which a third hit something."""
    rng = np.random.default_rng(seed)
    num_objects = num_images * OBJECTS_PER_IMAGE
    corners = rng.uniform(0, 500, (num_objects, 2))
    sizes = np.exp(rng.uniform(np.log(8), np.log(350), (num_objects, 2)))
    boxes = np.concatenate((corners, sizes), axis=1).round(2)
    image_ids, category_ids = rng.integers(num_images, size=num_objects), rng.integers(NUM_CLASSES, size=num_objects)
    annotations = [
        {
            "id": number + 1,
            "image_id": int(image_ids[number]),
            "category_id": int(category_ids[number]),
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": int(rng.random() < 0.01),
        }
        for number, box in enumerate(boxes.tolist())
    ]
    near = rng.integers(num_objects, size=num_detections)
    hits = rng.random(num_detections) < 1 / 3
    found = boxes[near] + rng.normal(0, 0.08, (num_detections, 4)) * sizes[near].max(axis=1, keepdims=True)
    found[~hits, :2] = rng.uniform(0, 500, (int((~hits).sum()), 2))
    found[:, 2:] = np.maximum(found[:, 2:], 1)
    labels = np.where(hits, category_ids[near], rng.integers(NUM_CLASSES, size=num_detections))
    scores = np.round(rng.random(num_detections) ** 3, 5)
    records = [
        {"image_id": image_id, "category_id": label, "bbox": box, "score": score}
        for image_id, label, box, score in zip(
            image_ids[near].tolist(), labels.tolist(), found.round(3).tolist(), scores.tolist(), strict=True
        )
    ]
    images = [{"id": image_id, "width": 640, "height": 640} for image_id in range(num_images)]
    categories = [{"id": category_id, "name": str(category_id)} for category_id in range(NUM_CLASSES)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}, records


def by_pycocotools(ground_truth: dict[str, Any], records: list[dict[str, Any]]) -> list[float]:
    """The twelve figures as pycocotools gives them."""
    truth = COCO()
    truth.dataset = ground_truth
    truth.createIndex()
    return _judged(COCOeval(truth, truth.loadRes(records), "bbox"))


def by_faster_coco_eval(ground_truth: dict[str, Any], records: list[dict[str, Any]]) -> list[float]:
    """The twelve figures as faster-coco-eval gives them."""
    truth = faster_coco_eval.COCO(ground_truth)
    return _judged(faster_coco_eval.COCOeval_faster(truth, truth.loadRes(records), "bbox"))


def _judged(judge: Any) -> list[float]:
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return [float(value) for value in judge.stats[:12]]


def by_yolofleet(ground_truth: dict[str, Any], detections: Any) -> list[float]:
    """The twelve figures as yolofleet gives them."""
    figures = coco_average_precision(ground_truth, detections).figures
    return [-1.0 if value is None else value for value in figures.values()]


def timed(judge: Callable[..., list[float]], ground_truth: dict[str, Any], found: Any) -> tuple[float, list[float]]:
    """Processor seconds and figures; the judges write into their input, so each gets a copy."""
    own = (copy.deepcopy(ground_truth), copy.deepcopy(found))
    with contextlib.redirect_stdout(io.StringIO()):
        start = time.process_time()
        figures = judge(*own)
        return time.process_time() - start, figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--detections", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    ground_truth, records = problem(arguments.images, arguments.detections)
    judges: dict[str, tuple[Callable[..., list[float]], Any]] = {
        "pycocotools": (by_pycocotools, records),
        "faster-coco-eval": (by_faster_coco_eval, records),
        "yolofleet, records": (by_yolofleet, records),
        "yolofleet, arrays": (by_yolofleet, Detections.from_records(records)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in judges}
    figures: dict[str, list[float]] = {}
    for _ in range(arguments.repeats):  # interleaved, so that a busy machine is busy for all
        for name, (judge, found) in judges.items():
            duration, figures[name] = timed(judge, ground_truth, found)
            seconds[name].append(duration)
    judged = figures["pycocotools"]
    result = {
        "images": arguments.images,
        "objects": len(ground_truth["annotations"]),
        "detections": arguments.detections,
        "judges": {
            name: {
                "cpu_seconds": round(min(seconds[name]), 3),
                "times_faster_than_pycocotools": round(min(seconds["pycocotools"]) / min(seconds[name]), 2),
                "largest_difference": max(abs(a - b) for a, b in zip(figures[name], judged, strict=True)),
            }
            for name in judges
        },
    }
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{result['images']} images, {result['objects']} objects, {result['detections']} detections")
    for name, row in result["judges"].items():
        print(
            f"{name:20} {row['cpu_seconds']:8.3f} s  {row['times_faster_than_pycocotools']:6.1f} x pycocotools"
            f"  largest difference {row['largest_difference']:.1e}"
        )


if __name__ == "__main__":
    main()
