"""The twelve figures equal pycocotools' to the last digit, and the odd cases have answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.reference_figures import CATEGORY_IDS, evaluate_with_pycocotools, random_problem
from yolofleet.core.errors import UserError
from yolofleet.evaluation.average_precision import coco_average_precision
from yolofleet.evaluation.detections import Detections, detection_boxes, ground_truth_boxes
from yolofleet.evaluation.precision_recall import (
    precision_at_recall,
    precision_recall,
)
from yolofleet.evaluation.protocol import COCO_PROTOCOL
from yolofleet.evaluation.reference_ap import reference_average_precision

GOLDEN = Path(__file__).parents[1] / "golden" / "average_precision.npz"


@settings(max_examples=12)
@given(seed=st.integers(0, 2**31), crowds=st.booleans())
def test_the_twelve_figures_are_those_of_pycocotools(seed: int, crowds: bool) -> None:
    ground_truth, detections = random_problem(seed, crowds=crowds)
    if not detections:
        return
    reference = evaluate_with_pycocotools(ground_truth, detections)
    ours = coco_average_precision(ground_truth, detections)
    theirs = [None if value == -1 else float(value) for value in reference.stats]
    assert list(ours.figures) == list(COCO_PROTOCOL.figure_names)
    assert list(ours.figures.values()) == theirs
    precision = reference.eval["precision"]
    for position, entry in enumerate(ours.per_class):
        measured = precision[:, :, position, 0, 2]
        assert entry.ap == (float(np.mean(measured)) if (measured > -1).all() else None)


@pytest.mark.slow
def test_a_thousand_random_sets_equal_pycocotools_bit_by_bit() -> None:
    """Whatever the annotation ids are: pycocotools gets its own numbering, see `reference_average_precision`."""
    for seed in range(1000):
        ground_truth, records = random_problem(seed, crowds=seed % 3 > 0, max_detections=40 if seed % 10 else 300)
        numbers = np.random.default_rng(seed).integers(0, 20, len(ground_truth["annotations"])).tolist()
        annotations = [{**entry, "id": n} for entry, n in zip(ground_truth["annotations"], numbers, strict=True)]
        detections = Detections.from_records(records)
        given = {**ground_truth, "annotations": annotations if seed % 2 else ground_truth["annotations"]}
        assert coco_average_precision(given, detections).figures == reference_average_precision(given, detections), seed


def test_precision_at_recall_has_the_published_area() -> None:
    """The published AP joins the 101 recall levels by straight lines where COCO's has steps: 1 percent at the most."""
    golden = np.load(GOLDEN)
    for position, label in enumerate(golden["default/classes"]):
        rows = np.flatnonzero(golden["pred_cls"] == label)
        rows = rows[np.argsort(-golden["conf"][rows], kind="stable")]
        num_objects = int((golden["target_cls"] == label).sum())
        hits = golden["tp"][rows]
        areas = precision_at_recall(hits.T, ~hits.T, num_objects).mean(axis=1)
        np.testing.assert_allclose(areas, golden["default/ap"][position], rtol=0, atol=0.01)


def test_the_curves_are_the_arrays_of_pycocotools() -> None:
    ground_truth, records = random_problem(12)
    judge = evaluate_with_pycocotools(ground_truth, records).eval
    image_ids = np.array(sorted(image["id"] for image in ground_truth["images"]))
    category_ids = np.array(CATEGORY_IDS)
    truth = ground_truth_boxes(ground_truth["annotations"], image_ids, category_ids)
    found, scores = detection_boxes(Detections.from_records(records), image_ids, category_ids)
    curves = precision_recall(truth, found, scores, num_images=len(image_ids), num_classes=len(category_ids))
    np.testing.assert_array_equal(curves.precision, judge["precision"][..., 2])
    np.testing.assert_array_equal(curves.recall, judge["recall"])


def test_the_last_class_counts_like_the_others() -> None:
    ground_truth, detections = random_problem(3)
    ground_truth["categories"] = ground_truth["categories"][:-1]  # the last one never has an object
    detections = [entry for entry in detections if entry["category_id"] != CATEGORY_IDS[-1]]
    theirs = [float(value) for value in evaluate_with_pycocotools(ground_truth, detections).stats]
    assert list(coco_average_precision(ground_truth, detections).figures.values()) == theirs


def f1_over_threshold(judge: Any, label: int, num_objects: int) -> dict[float, float]:
    """F1 of one class at IoU 0.50 from pycocotools' matches, by each score as the threshold."""
    found = [
        (score, match > 0)
        for image in judge.evalImgs
        if image and image["category_id"] == label and image["aRng"] == judge.params.areaRng[0]
        for score, match, ignored in zip(image["dtScores"], image["dtMatches"][0], image["dtIgnore"][0], strict=True)
        if not ignored
    ]
    return {
        threshold: 2
        * sum(hit for score, hit in found if score >= threshold)
        / (sum(score >= threshold for score, _ in found) + num_objects)
        for threshold, _ in found
    }


@settings(max_examples=6)
@given(seed=st.integers(0, 2**31))
def test_classes_curves_and_counts_are_those_of_pycocotools_too(seed: int) -> None:
    ground_truth, detections = random_problem(seed)
    if not detections:
        return
    judge = evaluate_with_pycocotools(ground_truth, detections)
    ours = coco_average_precision(ground_truth, detections)
    annotations = ground_truth["annotations"]
    crowds = [entry for entry in annotations if entry["iscrowd"]]
    for position, entry in enumerate(ours.per_class):
        precision = judge.eval["precision"][:, :, position, 0, 2]
        recall = judge.eval["recall"][:, position, 0, 2]
        label = CATEGORY_IDS[position]
        assert (entry.category_id, entry.name) == (label, f"class {label}")
        assert entry.num_objects == sum(x["category_id"] == label and not x["iscrowd"] for x in annotations)
        assert entry.num_detections == sum(x["category_id"] == label for x in detections)
        if (precision == -1).any():
            assert (entry.ap50, entry.ap75, entry.average_recall, entry.best_f1) == (None, None, None, None)
            assert ours.curves[label] == ()
            continue
        assert ours.curves[label] == tuple(precision[0])
        assert (entry.ap50, entry.ap75, entry.average_recall) == (
            precision[0].mean(),
            precision[5].mean(),
            recall.mean(),
        )
        f1 = f1_over_threshold(judge, label, entry.num_objects)
        assert entry.best_f1 == max(f1.values(), default=0.0)
        assert entry.best_confidence == max((s for s, value in f1.items() if value == entry.best_f1 > 0), default=None)
    document = ours.as_json()
    assert document["figures"] == ours.figures and len(document["per_class"]) == len(CATEGORY_IDS)
    counts = {name: document[name] for name in ("num_images", "num_objects", "num_crowds", "num_detections")}
    assert list(counts.values()) == [12, len(annotations) - len(crowds), len(crowds), len(detections)]


def test_more_than_a_hundred_detections_an_image_are_cut_as_pycocotools_cuts() -> None:
    ground_truth, detections = random_problem(5, num_images=3, max_detections=500)
    reference = evaluate_with_pycocotools(ground_truth, detections)
    ours = coco_average_precision(ground_truth, detections)
    assert ours.figures["AP"] == float(reference.stats[0])
    assert ours.figures["AR_100"] == float(reference.stats[8])


def test_annotation_id_0_is_an_object_like_any_other() -> None:
    ground_truth, detections = random_problem(1)
    expected = coco_average_precision(ground_truth, detections)
    from_zero = [{**annotation, "id": number} for number, annotation in enumerate(ground_truth["annotations"])]
    same_id = [{**annotation, "id": 1} for annotation in ground_truth["annotations"]]
    for renumbered in (from_zero, same_id):
        assert coco_average_precision({**ground_truth, "annotations": renumbered}, detections) == expected


def perfect(ground_truth: dict[str, Any]) -> list[dict[str, Any]]:
    keys = ("image_id", "category_id", "bbox")
    return [{**{key: entry[key] for key in keys}, "score": 0.9} for entry in ground_truth["annotations"]]


def test_perfect_detections_are_worth_1_and_false_ones_on_an_empty_image_cost() -> None:
    ground_truth, _ = random_problem(2, crowds=False)
    detections = perfect(ground_truth)
    assert coco_average_precision(ground_truth, detections).figures["AP"] == pytest.approx(1.0)
    empty_image = {"id": 77_777, "width": 10, "height": 10}
    with_empty = {**ground_truth, "images": [*ground_truth["images"], empty_image]}
    assert coco_average_precision(with_empty, detections).figures["AP"] == pytest.approx(1.0)
    wrong = [
        {"image_id": 77_777, "category_id": category_id, "bbox": [0, 0, 5, 5], "score": 0.99}
        for category_id in CATEGORY_IDS
    ]
    assert coco_average_precision(with_empty, detections + wrong).figures["AP"] < 0.99


def test_no_detections_at_all_is_worth_0() -> None:
    ground_truth, _ = random_problem(3)
    result = coco_average_precision(ground_truth, [])
    assert result.figures["AP"] == 0.0
    assert result.figures["AR_100"] == 0.0
    assert result.per_class[-1].ap is None  # a class without objects was not measured
    assert result.num_detections == 0


def test_without_ground_truth_nothing_is_measured() -> None:
    ground_truth, detections = random_problem(4)
    for document in (
        {**ground_truth, "annotations": []},
        {**ground_truth, "annotations": [{**entry, "iscrowd": 1} for entry in ground_truth["annotations"]]},
    ):
        result = coco_average_precision(document, detections)
        assert set(result.figures.values()) == {None}
        assert all(entry.ap is None and entry.best_confidence is None for entry in result.per_class)
        assert result.num_objects == 0
    nothing = coco_average_precision({"images": [], "categories": [], "annotations": []}, [])
    assert set(nothing.figures.values()) == {None} and nothing.per_class == ()


def test_area_and_crowd_may_be_left_out() -> None:
    ground_truth, _ = random_problem(6, crowds=False)
    short = [{key: entry[key] for key in ("image_id", "category_id", "bbox")} for entry in ground_truth["annotations"]]
    result = coco_average_precision({**ground_truth, "annotations": short}, perfect(ground_truth))
    assert result.figures["AP"] == pytest.approx(1.0)
    explicit = [{**entry, "area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0} for entry in short]
    assert result == coco_average_precision({**ground_truth, "annotations": explicit}, perfect(ground_truth))


def test_the_operating_point_is_where_f1_is_best() -> None:
    ground_truth, _ = random_problem(8, crowds=False)
    good = perfect(ground_truth)
    noise = [{**entry, "bbox": [900.0, 900.0, 5.0, 5.0], "score": 0.3} for entry in good for _ in range(3)]
    result = coco_average_precision(ground_truth, good + noise)
    for entry in result.per_class:
        if entry.num_objects:
            assert entry.best_confidence == pytest.approx(0.9)
            assert entry.best_f1 == pytest.approx(1.0)
            assert len(result.curves[entry.category_id]) == 101


def test_nothing_given_is_changed() -> None:
    ground_truth, detections = random_problem(9)
    before = repr((ground_truth, detections))
    coco_average_precision(ground_truth, detections)
    assert repr((ground_truth, detections)) == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_id": 123_456}, "image_id 123456 is not an image of this dataset"),
        ({"bbox": [1, 2, 3]}, "four finite numbers"),
        ({"bbox": [1, 2, 3, float("nan")]}, "four finite numbers"),
        ({"bbox": None}, "four finite numbers"),
        ({"score": "high"}, "score is 'high'"),
        ({"score": True}, "score is True"),
    ],
)
def test_bad_records_are_named(change: dict[str, Any], words: str) -> None:
    ground_truth, detections = random_problem(10)
    detections[4] = {**detections[4], **change}
    with pytest.raises(UserError, match=f"(record|detection) 5 of {len(detections)}: .*{words}"):
        coco_average_precision(ground_truth, detections)


def test_records_without_their_keys_are_named() -> None:
    ground_truth, _ = random_problem(11)
    with pytest.raises(UserError, match="no category_id and no score"):
        coco_average_precision(ground_truth, [{"image_id": 1, "bbox": [0, 0, 1, 1]}])
    with pytest.raises(UserError, match="not an object"):
        coco_average_precision(ground_truth, ["hello"])  # type: ignore[list-item]
