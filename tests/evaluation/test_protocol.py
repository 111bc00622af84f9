"""Figures under another protocol than COCO's are those of pycocotools with the same parameters, to the last digit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.reference_figures import CATEGORY_IDS, evaluate_with_pycocotools, random_problem
from yolofleet.core.errors import UserError
from yolofleet.evaluation.average_precision import AveragePrecision, coco_average_precision
from yolofleet.evaluation.protocol import COCO_PROTOCOL, Protocol, SizeRange, parse_protocol

SIZES = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 300)), max_size=4).map(
    lambda ends: tuple(SizeRange(name=f"size{n}", low=low, high=low + more) for n, (low, more) in enumerate(ends))
)


def mean(values: Any) -> float | None:
    measured = values[values > -1]
    return float(np.mean(measured)) if measured.size else None


def expected_figures(ground_truth: Any, detections: Any, protocol: Protocol) -> tuple[dict[str, float | None], Any]:
    evaluation = evaluate_with_pycocotools(
        ground_truth,
        detections,
        maxDets=list(protocol.allowed),
        areaRng=protocol.area_ranges.tolist(),
        areaRngLbl=["all", *(size.name for size in protocol.sizes)],
        catIds=sorted(protocol.select(ground_truth["categories"])),
        useCats=int(not protocol.class_agnostic),
    )
    precision, recall = evaluation.eval["precision"][..., -1], evaluation.eval["recall"]
    figures = {"AP": mean(precision[..., 0]), "AP50": mean(precision[0, ..., 0]), "AP75": mean(precision[5, ..., 0])}
    for number, size in enumerate(protocol.sizes, start=1):
        figures[f"AP_{size.name}"] = mean(precision[..., number])
    for number, allowed in enumerate(protocol.allowed):
        figures[f"AR_{allowed}"] = mean(recall[..., 0, number])
    for number, size in enumerate(protocol.sizes, start=1):
        figures[f"AR_{size.name}"] = mean(recall[..., number, -1])
    return figures, evaluation.eval


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    max_detections=st.integers(1, 500) | st.integers(1, 12),
    sizes=SIZES,
    classes=st.sets(st.sampled_from(CATEGORY_IDS)),
    class_agnostic=st.booleans(),
    density=st.sampled_from((4, 40, 300)),
)
def test_figures_are_those_of_pycocotools_under_any_protocol(
    seed: int, max_detections: int, sizes: Any, classes: set[int], class_agnostic: bool, density: int
) -> None:
    ground_truth, detections = random_problem(seed, num_images=5, max_detections=density)
    if not detections:
        return
    protocol = Protocol(
        max_detections=max_detections,
        sizes=sizes,
        classes=tuple(f"class {number}" for number in sorted(classes)),
        class_agnostic=class_agnostic,
    )
    figures, arrays = expected_figures(ground_truth, detections, protocol)
    ours = coco_average_precision(ground_truth, detections, protocol)
    assert ours.figures == figures and list(ours.figures) == list(figures)
    assert len(ours.per_class) == arrays["precision"].shape[2]
    for position, entry in enumerate(ours.per_class):
        assert entry.ap == mean(arrays["precision"][:, :, position, 0, -1])
        assert entry.average_recall == mean(arrays["recall"][:, position, 0, -1])
    chosen = classes or set(CATEGORY_IDS)
    assert ours.num_detections == sum(entry["category_id"] in chosen for entry in detections)
    assert sum(entry.num_detections for entry in ours.per_class) == ours.num_detections
    assert sum(entry.num_objects for entry in ours.per_class) == ours.num_objects


def test_300_objects_in_one_image_need_300_detections() -> None:
    boxes = [[10 * (n % 20), 10 * (n // 20), 8, 8] for n in range(300)]
    objects = [{"image_id": 1, "category_id": 1, "bbox": box} for box in boxes]
    truth = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "bean"}], "annotations": objects}
    found = [{**entry, "score": 0.9} for entry in objects]
    few, many = (coco_average_precision(truth, found, Protocol(max_detections=most)) for most in (100, 300))
    assert few.figures["AR_100"] == pytest.approx(1 / 3) and few == coco_average_precision(truth, found)
    assert many.figures["AP"] == many.figures["AR_300"] == pytest.approx(1)
    assert (few.num_unreachable, many.num_unreachable) == (200, 0)
    assert "AR_100" not in many.figures and many.as_json()["per_class"][0]["ar_300"] == 1.0
    assert many.as_json()["protocol"]["max_detections"] == 300 and "protocol" not in few.as_json()


def test_a_detection_of_the_wrong_class_counts_only_without_classes() -> None:
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}],
    }
    wrong = [{"image_id": 1, "category_id": 2, "bbox": [0, 0, 9, 9], "score": 0.5}]

    def ap(protocol: Protocol) -> AveragePrecision:
        return coco_average_precision(truth, wrong, protocol)

    assert ap(COCO_PROTOCOL).figures["AP"] == 0.0
    agnostic = ap(Protocol(class_agnostic=True))
    assert agnostic.figures["AP"] == pytest.approx(1) and [entry.name for entry in agnostic.per_class] == ["any class"]
    assert ap(Protocol(classes=("blue",))).figures["AP"] is None  # no blue object: nothing to measure
    assert ap(Protocol(classes=("red",))).num_detections == 0


def test_options_are_read_and_wrong_ones_refused() -> None:
    assert parse_protocol(None, (), (), False) == COCO_PROTOCOL
    protocol = parse_protocol(7, ("tiny=0-16", "rest=16-"), ("person, car", "dog"), True)
    assert protocol.classes == ("person", "car", "dog") and protocol.allowed == (1, 7)
    assert protocol.area_ranges.tolist() == [[0, 1e10], [0, 256], [256, 1e10]]
    for text in ("tiny", "tiny=5", "tiny=9-3", "tiny=3-3", "=1-2", "tiny=-1-2", "1=2-3", "a b=1-2"):
        with pytest.raises(UserError, match="NAME=LOW-HIGH"):
            SizeRange.parse(text)
    with pytest.raises(UserError, match="two ranges"):
        parse_protocol(None, ("a=0-1", "a=1-2"), (), False)
    categories = [{"id": 1, "name": "person"}, {"id": 5, "name": "person"}, {"id": 7, "name": "1"}]
    assert set(Protocol(classes=("person",)).select(categories)) == {1, 5}
    assert set(Protocol(classes=("1", "5")).select(categories)) == {7, 5}  # a name before an id
    with pytest.raises(UserError, match=r"'persn' is not a class .*did you mean 'person'"):
        Protocol(classes=("persn",)).select(categories)
