from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolofleet.data.findings import MOST_FINDINGS_KEPT, Finding, Findings, find_suspicious_labels, paired_iou
from yolofleet.data.histograms import count_content
from yolofleet.data.records import ImageRecord, ObjectClass

CLASSES = (ObjectClass(2, "disc"), ObjectClass(5, "cross"))


def record(boxes: list[list[float]], classes: list[int] | None = None, crowds: list[bool] | None = None) -> ImageRecord:
    count = len(boxes)
    return ImageRecord(
        1,
        "a.jpg",
        200,
        100,
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array(classes or [0] * count, dtype=np.int64),
        np.array(crowds or [False] * count, dtype=np.bool_),
        np.ones(count),
        (None,) * count,
    )


def found(*records: ImageRecord) -> Findings:
    findings = Findings()
    find_suspicious_labels(records, CLASSES, 0, findings)
    return findings


@pytest.mark.parametrize(
    ("boxes", "classes", "counts"),
    [
        ([[20, 20, 40, 40], [90, 20, 40, 40]], [0, 0], {}),
        ([[20, 20, 40, 40], [21, 20, 40, 40]], [0, 0], {"box_labelled_twice": 1}),
        ([[20, 20, 40, 40], [21, 20, 40, 40]], [0, 1], {}),
        ([[20, 20, 40, 40], [30, 20, 40, 40]], [0, 0], {}),
        ([[20, 20, 40, 40], [20.5, 60, 40, 20], [20.6, 20, 40, 40]], [0, 0, 0], {"box_labelled_twice": 1}),
        ([[0, 20, 40, 40]], [0], {}),
        ([[0, 0, 40, 40]], [0], {"box_on_border": 1}),
        ([[0, 20, 200, 40]], [1], {"box_on_border": 1}),
        ([[0, 20, 1, 15]], [1], {"box_on_border": 1}),
        ([[50, 20, 4, 79]], [1], {}),
        ([[50, 15, 2, 80]], [1], {"box_extreme_shape": 1}),
        ([[30, 15, 150, 5]], [1], {"box_extreme_shape": 1}),
    ],
)
def test_each_kind_of_suspicion(boxes: list[list[float]], classes: list[int], counts: dict[str, int]) -> None:
    assert found(record([]), record(boxes, classes)).counts == counts


def test_crowds_are_never_suspicious_and_labels_keep_their_position() -> None:
    boxes = [[0.0, 0.0, 200.0, 100.0], [20.0, 20.0, 40.0, 40.0], [20.0, 20.0, 40.0, 40.0]]
    findings = found(record([]), record(boxes, crowds=[True, False, False]))
    assert findings.counts == {"box_labelled_twice": 1}
    worst = findings.worst("box_labelled_twice")[0]
    assert (worst.image, sorted(worst.labels), worst.score) == (1, [1, 2], 1.0)


box = st.tuples(st.floats(0, 90), st.floats(0, 90), st.floats(0.5, 100), st.floats(0.5, 100)).map(list)


@given(st.lists(st.tuples(box, st.integers(0, 1)), max_size=12))
def test_every_pair_of_one_class_that_overlaps_almost_wholly_is_found(objects: list[tuple[list[float], int]]) -> None:
    objects += [([entry[0] + 0.01, *entry[1:]], index) for entry, index in objects[:3]]
    boxes, classes = np.array([entry for entry, _ in objects]).reshape(-1, 4), [index for _, index in objects]
    wanted = {
        (one, other)
        for one in range(len(boxes))
        for other in range(one + 1, len(boxes))
        if classes[one] == classes[other] and paired_iou(boxes[one], boxes[other]) >= 0.9
    }
    worst = found(record(boxes.tolist(), classes)).worst("box_labelled_twice")
    assert {tuple(sorted(entry.labels)) for entry in worst} == wanted


def test_the_worst_are_kept_and_all_are_counted() -> None:
    findings = Findings()
    scores = np.random.default_rng(0).permutation(1000) / 1000
    for number, score in enumerate(scores.tolist()):
        findings.add("box_on_border", Finding(score, 0, number, (0,), ""))
    kept = [entry.score for entry in findings.worst("box_on_border")]
    assert findings.counts == {"box_on_border": 1000}
    assert kept == sorted(scores.tolist(), reverse=True)[:MOST_FINDINGS_KEPT]


def test_histograms_count_every_box_and_image_once() -> None:
    records = [record([]), record([[0, 0, 20, 20], [5, 5, 10, 40]], [1, 1]), record([[1, 1, 9, 9]], crowds=[True])]
    counted = count_content(records, CLASSES)
    assert counted.class_boxes == {"2 disc": 0, "5 cross": 2} and counted.class_images == {"2 disc": 0, "5 cross": 1}
    assert {title: sum(bins.values()) for title, bins in counted.bins.items()} == {
        title: 3 if title.startswith("images") else 2 for title in counted.bins
    }
    assert counted.bins["boxes by number of image borders that they touch"]["2"] == 1
    assert (
        counted.bins["boxes by width to height"] | {"square": 1, "1:2": 1} == counted.bins["boxes by width to height"]
    )
    assert sum(sum(bins.values()) for bins in count_content([], CLASSES).bins.values()) == 0
