from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolofleet.core.errors import UserError
from yolofleet.data.check import check_dataset
from yolofleet.data.content import CheckedSplit
from yolofleet.data.findings import Findings
from yolofleet.data.problems import ProblemLog
from yolofleet.data.read_source import read_source
from yolofleet.data.records import ImageRecord
from yolofleet.evaluation.detector import Detector
from yolofleet.evaluation.label_errors import LabelComparison, find_label_errors

NAMES = ["disc", "cross", "ring"]
OBJECT = [20.0, 20.0, 40.0, 40.0]
BESIDE = [35.0, 20.0, 40.0, 40.0]  # IoU 0.45 with it
ELSEWHERE = [120.0, 20.0, 40.0, 40.0]


def suspicions(
    labels: Sequence[tuple[int, list[float]]],
    detections: Sequence[tuple[int, list[float], float]],
    crowds: Sequence[bool] = (),
    known: Sequence[int] = (0, 1),
) -> list[tuple[str, float, tuple[int, ...]]]:
    count = len(labels)
    boxes = np.array([box for _, box in labels], dtype=np.float64).reshape(-1, 4)
    classes = np.array([index for index, _ in labels], dtype=np.int64)
    iscrowd = np.array(list(crowds) or [False] * count, dtype=np.bool_)
    record = ImageRecord(1, "a.jpg", 200, 100, boxes, classes, iscrowd, np.ones(count), (None,) * count)
    found = [{"bbox": box, "score": score, "category_id": index} for index, box, score in detections]
    indices = np.array([index for index, _, _ in detections], dtype=np.int64)
    comparison = LabelComparison(record, found, indices, set(known))
    listed = [(kind, round(score, 3), rows) for kind, score, rows, _, _ in comparison.suspicions(NAMES)]
    recall = np.ones((len(NAMES), 3, 2))
    unfound = comparison.count_found(recall)
    return listed + [("label_not_found", 0.0, (label,)) for label in unfound]


@pytest.mark.parametrize(
    ("labels", "detections", "wanted"),
    [
        ([(0, OBJECT)], [(0, OBJECT, 0.9)], []),
        ([(0, OBJECT)], [(0, OBJECT, 0.9), (1, ELSEWHERE, 0.8)], [("label_missing", 0.8, ())]),
        ([(0, OBJECT)], [(0, OBJECT, 0.9), (1, ELSEWHERE, 0.4)], []),
        ([(0, OBJECT)], [(1, OBJECT, 0.9)], [("label_wrong_class", 0.9, (0,))]),
        ([(0, OBJECT)], [(1, OBJECT, 0.9), (0, OBJECT, 0.3)], [("label_wrong_class", 0.6, (0,))]),
        ([(0, OBJECT)], [(1, OBJECT, 0.9), (0, OBJECT, 0.8)], []),
        ([(0, OBJECT), (1, OBJECT)], [(1, OBJECT, 0.9), (0, OBJECT, 0.2)], []),  # a rider and a horse
        ([(0, OBJECT)], [(0, BESIDE, 0.9)], [("label_misplaced", 0.491, (0,))]),
        ([(0, OBJECT)], [(0, BESIDE, 0.9), (0, OBJECT, 0.6)], []),
        ([(0, OBJECT)], [], [("label_not_found", 0.0, (0,))]),
        ([(0, OBJECT)], [(1, OBJECT, 0.1)], []),
        ([(2, OBJECT)], [(0, OBJECT, 0.9)], []),  # the model does not know this class
        ([], [], []),
    ],
)
def test_what_a_model_says_about_labels(labels: Any, detections: Any, wanted: Any) -> None:
    assert suspicions(labels, detections) == wanted


def test_a_crowd_hides_what_lies_in_it_and_is_no_label() -> None:
    region = [10.0, 10.0, 80.0, 80.0]
    assert suspicions([(0, region)], [(0, OBJECT, 0.9)], crowds=[True]) == []
    assert suspicions([(0, region)], [(1, ELSEWHERE, 0.9)], crowds=[True]) == [("label_missing", 0.9, ())]


class PerfectDetector:
    """Finds the true boxes in the order in which the images are given."""

    def __init__(self, records: Sequence[ImageRecord], classes: list[tuple[int, str]]) -> None:
        self.classes = classes
        self._records = iter(records)

    def predict(self, images: Sequence[np.ndarray], *, confidence: float) -> list[list[dict[str, Any]]]:
        found = []
        for pixels, record in zip(images, self._records, strict=False):
            assert pixels.shape[:2] == (record.height, record.width)
            boxes = zip(record.boxes.tolist(), record.classes, record.iscrowd, strict=True)
            found.append(
                [
                    {"category_id": self.classes[index][0], "category_name": "", "bbox": box, "score": 0.9}
                    for box, index, crowd in boxes
                    if not crowd
                ]
            )
        return found


@pytest.fixture
def split(drawn: Path) -> CheckedSplit:
    source, images = read_source(str(drawn / "instances.json"), str(drawn / "images"), ProblemLog())
    return CheckedSplit("drawn", check_dataset(source, images, ProblemLog()), images)


def test_planted_label_errors_come_first(split: CheckedSplit) -> None:
    from dataclasses import replace

    truth = split.report.records
    classes = [(entry.id, entry.name) for entry in split.report.classes]
    findings = Findings()
    arguments = {"max_pixels": 10**8}
    find_label_errors(PerfectDetector(truth, classes), [split], findings, **arguments)  # type: ignore[arg-type]
    assert findings.counts == {}
    wrong = next(number for number, record in enumerate(truth) if len(record.boxes) and not record.iscrowd.any())
    missing = next(number for number, record in enumerate(truth) if len(record.boxes) and number > wrong)
    records = list(truth)
    records[wrong] = replace(truth[wrong], classes=(truth[wrong].classes + 1) % 3)
    records[missing] = truth[missing].select([])
    changed = replace(split, report=replace(split.report, records=tuple(records)))
    find_label_errors(PerfectDetector(truth, classes), [changed], findings, **arguments)  # type: ignore[arg-type]
    assert {entry.image for entry in findings.worst("label_wrong_class")} == {wrong}
    assert {entry.image for entry in findings.worst("label_missing")} == {missing}
    assert set(findings.counts) == {"label_wrong_class", "label_missing"}


def test_a_model_of_other_classes_is_refused(split: CheckedSplit) -> None:
    with pytest.raises(UserError, match="no class in common"):
        find_label_errors(PerfectDetector([], [(1, "cat")]), [split], Findings(), max_pixels=10**8)  # type: ignore[arg-type]


def test_a_real_detector_is_asked_about_every_image(split: CheckedSplit, package: Path) -> None:
    findings, seen = Findings(), []
    find_label_errors(
        Detector.load(package), [split], findings, max_pixels=10**8, progress=lambda count: seen.append(count)
    )
    assert sum(seen) == split.report.num_usable
    num_labels = sum(int((~record.iscrowd).sum()) for record in split.report.records)
    assert findings.counts.get("label_not_found", 0) <= num_labels
