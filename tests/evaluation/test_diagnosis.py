"""The diagnosis equals cases computed by hand, and keeps its properties on random sets."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.reference_figures import random_problem
from yolofleet.evaluation.average_precision import box_tables, coco_average_precision
from yolofleet.evaluation.confidence import calibration
from yolofleet.evaluation.detections import Detections
from yolofleet.evaluation.diagnosis import Diagnosis, diagnose
from yolofleet.evaluation.diagnosis_page import confusions, diagnosis_sections
from yolofleet.evaluation.error_types import ERROR_KINDS, IGNORED, TRUE, find_outcomes, mended_ap50
from yolofleet.evaluation.galleries import MOST_FALSE_DRAWN
from yolofleet.evaluation.precision_recall import match
from yolofleet.evaluation.protocol import Protocol

CAT, DOG = 1, 2
ALL_KINDS = range(len(ERROR_KINDS))


def case(
    objects: list[tuple[int, int, list[float]]], found: list[tuple[int, int, list[float], float]], num_images: int = 3
) -> tuple[dict[str, Any], Detections]:
    """Ground truth and detections from (image, class, box) and (image, class, box, score)."""
    document = {
        "images": [{"id": number, "width": 100, "height": 100} for number in range(1, num_images + 1)],
        "categories": [{"id": CAT, "name": "cat"}, {"id": DOG, "name": "dog"}],
        "annotations": [{"image_id": image, "category_id": label, "bbox": box} for image, label, box in objects],
    }
    records = [
        {"image_id": image, "category_id": label, "bbox": box, "score": score} for image, label, box, score in found
    ]
    return document, Detections.from_records(records)


A = [0.0, 0.0, 10.0, 10.0]
B = [40.0, 0.0, 10.0, 10.0]
A_MOVED = [5.0, 0.0, 10.0, 10.0]  # IoU 50 / 150 with A
A_NEAR = [1.0, 0.0, 10.0, 10.0]  # IoU 90 / 110 with A
FAR = [80.0, 80.0, 10.0, 10.0]


def errors(diagnosis: Diagnosis) -> dict[str, int]:
    return {entry.kind: entry.count for entry in diagnosis.errors if entry.count}


@pytest.mark.parametrize(
    ("objects", "found", "wanted"),
    [
        ([(1, CAT, A)], [(1, CAT, A, 0.9)], {}),
        ([(1, CAT, A)], [], {"missed": 1}),
        ([(1, CAT, A)], [(1, DOG, A_NEAR, 0.9)], {"classification": 1}),
        ([(1, CAT, A)], [(1, CAT, A_MOVED, 0.9)], {"localisation": 1}),
        ([(1, CAT, A)], [(1, DOG, A_MOVED, 0.9)], {"both": 1, "missed": 1}),
        ([(1, CAT, A)], [(1, CAT, FAR, 0.9)], {"background": 1, "missed": 1}),
        ([(1, CAT, A)], [(2, CAT, A, 0.9)], {"background": 1, "missed": 1}),
        ([(1, CAT, A)], [(1, CAT, A, 0.9), (1, CAT, A_NEAR, 0.8)], {"duplicate": 1}),
        ([(1, CAT, A)], [(1, CAT, A, 0.9), (1, CAT, A_MOVED, 0.8)], {"localisation": 1}),
        ([(1, CAT, A), (1, DOG, B)], [(1, DOG, A, 0.9), (1, CAT, B, 0.8)], {"classification": 2}),
    ],
)
def test_each_error_has_the_kind_that_a_person_gives_it(objects: Any, found: Any, wanted: dict[str, int]) -> None:
    assert errors(diagnose(*case(objects, found))) == wanted


def costs(diagnosis: Diagnosis) -> dict[str, float]:
    return {entry.kind: round(entry.cost or 0, 4) for entry in diagnosis.errors if entry.cost}


def test_costs_are_what_ap50_gains() -> None:
    # One cat found at 0.5 behind a false box at 0.9: precision 1/2 at every recall, AP50 0.5.
    background = diagnose(*case([(1, CAT, A)], [(1, CAT, A, 0.5), (1, CAT, FAR, 0.9)]))
    assert costs(background) == {"background": 0.5}
    # One of two cats found: precision 1 up to recall 0.5, which are 51 of the 101 levels. No dog is in the annotations.
    missed = diagnose(*case([(1, CAT, A), (1, CAT, B)], [(1, CAT, A, 0.5)]))
    assert costs(missed) == {"missed": round(50 / 101, 4)}
    # A cat found as a dog alone: AP50 of cats is 0, of dogs not measured; put right it is 1.
    wrong = diagnose(*case([(1, CAT, A)], [(1, DOG, A, 0.9)]))
    assert costs(wrong) == {"classification": 1.0}
    # A better box at 0.8 follows one at 0.9 that is off: the false one becomes the match, the other one goes.
    moved = diagnose(*case([(1, CAT, A)], [(1, CAT, A_MOVED, 0.9), (1, CAT, A, 0.8)]))
    assert costs(moved) == {"localisation": 0.5}
    # Two dogs: AP50 is (1 + 51/101) / 2 over cats and dogs, and a missed dog costs its own class alone.
    both = diagnose(*case([(1, CAT, A), (2, DOG, A), (2, DOG, B)], [(1, CAT, A, 0.9), (2, DOG, A, 0.9)]))
    assert costs(both) == {"missed": round(25 / 101, 4)}
    assert [(entry.name, entry.main_error) for entry in both.classes] == [("dog", "missed"), ("cat", None)]


def test_the_confusion_matrix_has_background_and_counts_each_box_once() -> None:
    document, detections = case(
        [(1, CAT, A), (1, DOG, B), (2, CAT, A), (3, DOG, B)],
        [(1, CAT, A, 0.9), (1, CAT, B, 0.8), (2, DOG, A, 0.9), (2, DOG, A_NEAR, 0.7), (3, DOG, FAR, 0.9)],
    )
    found = diagnose(document, detections)
    assert found.threshold == 0.9 and found.confusion.tolist() == [[1, 1, 0], [0, 0, 2], [0, 1, 0]]
    assert confusions(found.as_json()) == [("cat", "dog", 1)]


def test_classes_of_one_name_and_one_called_background_are_told_apart() -> None:
    document, detections = case([(1, CAT, A), (2, DOG, B)], [(1, DOG, A, 0.9), (2, DOG, B, 0.9), (2, CAT, B, 0.8)])
    for names in (("cat", "cat"), ("background", "cat")):
        document["categories"] = [{"id": CAT, "name": names[0]}, {"id": DOG, "name": names[1]}]
        found = diagnose(document, detections)
        assert confusions(found.as_json()) == [(found.class_names[0], found.class_names[1], 1)]
        assert len({*found.class_names, "background"}) == 3 and found.classes[0].name == f"{names[0]} (id {CAT})"


def test_curves_and_the_best_threshold() -> None:
    document, detections = case(
        [(1, CAT, A), (1, CAT, B), (2, DOG, A)],
        [(1, CAT, A, 0.9), (2, CAT, FAR, 0.6), (1, CAT, B, 0.3), (2, DOG, A, 0.305), (3, DOG, A, 0.305)],
    )
    found = diagnose(document, detections)
    curves, at = found.curves, [0, 30, 31, 60, 61, 90, 91]
    assert curves.thresholds[at].tolist() == pytest.approx([0, 0.3, 0.31, 0.6, 0.61, 0.9, 0.91])
    assert curves.precision[1, at].tolist() == pytest.approx([2 / 3, 2 / 3, 1 / 2, 1 / 2, 1, 1, np.nan], nan_ok=True)
    assert curves.recall[1, at].tolist() == [1, 1, 0.5, 0.5, 0.5, 0.5, 0]
    assert curves.f1[1, at].tolist() == pytest.approx([0.8, 0.8, 0.5, 0.5, 2 / 3, 2 / 3, 0])
    assert curves.recall[0, at].tolist() == pytest.approx([1, 1, 1 / 3, 1 / 3, 1 / 3, 1 / 3, 0])
    # All classes: F1 is 2 x 3 / (3 + 2 + 3) at 0.3. Dogs: one of two boxes of the same score is true.
    assert curves.best.tolist() == [0.3, 0.3, 0.305] and found.threshold == 0.3
    dog = next(entry for entry in found.classes if entry.name == "dog")
    assert (dog.precision, dog.recall, dog.f1) == (0.5, 1.0, pytest.approx(2 / 3))
    assert (found.num_true, found.num_false, found.num_not_found) == (3, 2, 0)


def test_calibration_by_hand() -> None:
    document, detections = case(
        [(1, CAT, A), (2, CAT, A)], [(1, CAT, A, 0.95), (1, CAT, FAR, 0.85), (2, CAT, A, 0.9), (3, CAT, A, 0.1)]
    )
    tables = box_tables(document, detections)
    outcomes = find_outcomes(tables, match(tables.truth, tables.detected))
    found = calibration(tables, outcomes)
    assert found is not None and found.counts.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 2, 1]
    assert found.precision[[0, 8, 9]].tolist() == [0, 0.5, 1]
    assert found.confidence[[0, 8, 9]].tolist() == pytest.approx([0.1, 0.875, 0.95])
    assert found.error == pytest.approx((0.1 * 1 + 0.375 * 2 + 0.05 * 1) / 4)


def test_slices_by_size_shape_and_number_of_objects() -> None:
    large, wide = [0.0, 0.0, 100.0, 100.0], [0.0, 60.0, 40.0, 10.0]
    objects = [(1, CAT, A), (2, CAT, large), (2, CAT, wide)]
    found = diagnose(*case(objects, [(1, CAT, A, 0.9), (2, CAT, wide, 0.8), (3, CAT, A, 0.7)]))
    sizes = {entry.name.split(",")[0]: entry for entry in found.sizes}
    assert [sizes[name].recall for name in ("small", "medium", "large")] == [1, None, 0]
    assert (sizes["small"].ap, sizes["large"].ap50) == (pytest.approx(1), 0)
    shapes = {entry.name: entry for entry in found.shapes}
    assert (shapes["about square"].num_objects, shapes["about square"].recall) == (2, 0.5)
    assert (shapes["wider than 3:1"].num_objects, shapes["wider than 3:1"].ap50) == (1, pytest.approx(1))
    counts = [(entry.name, entry.num_images, entry.num_objects, entry.num_false) for entry in found.object_counts[:3]]
    assert found.threshold == 0.8
    assert counts == [("0", 1, 0, 0), ("1", 1, 1, 0), ("2 to 3", 1, 2, 0)]


def test_galleries_choose_the_telling_images() -> None:
    objects = [(1, CAT, A), (2, CAT, A), (2, CAT, B), (3, DOG, [0.0, 0.0, 50.0, 50.0])]
    found = diagnose(*case(objects, [(1, CAT, A, 0.9), (2, CAT, FAR, 0.95), (2, CAT, A, 0.8)]))
    chosen = {entry.name: [(image.image_id, image.reason) for image in entry.images] for entry in found.galleries}
    assert chosen == {
        "dog (AP50 0.000, mainly objects with no box of their class on or near them)": [
            (3, "0 true, 0 false, 1 not found")
        ],
        "cat (AP50 0.442, mainly objects with no box of their class on or near them)": [
            (2, "1 true, 1 false, 1 not found")
        ],
        "Most mistakes": [(2, "1 true, 1 false, 1 not found"), (3, "0 true, 0 false, 1 not found")],
        "Most confident and wrong": [(2, "cat 0.95: no object there")],
        "Largest objects not found": [(3, "dog of 50x50 px"), (2, "cat of 10x10 px")],
        "Best": [(1, "1 true, 0 false, 0 not found"), (2, "1 true, 1 false, 1 not found")],
    }
    outcomes = [(record["outcome"], record["bbox"]) for record in found.images.boxes_of(2)]
    assert outcomes == [("not found", B), ("false", FAR), ("true", A)]
    [label] = found.label_errors
    assert (label["kind"], label["image_id"], label["label"], label["detection"]) == ("label_missing", 2, None, FAR)


def test_a_class_gallery_shows_what_concerns_the_class_alone() -> None:
    """Its boxes without its name, and a box of another class on its object; no class has one if it is the only one."""
    dog = [60.0, 0.0, 30.0, 10.0]
    boxes = [(1, CAT, FAR, 0.9), (1, DOG, A, 0.8), (1, CAT, B, 0.7), (1, DOG, dog, 0.6)]
    found = diagnose(*case([(1, CAT, A), (1, CAT, B), (1, DOG, dog)], boxes))
    own = next(image for gallery in found.galleries for image in gallery.images if gallery.name.startswith("cat "))
    assert (own.drawing, own.reason) == ("1-class-0", "1 true, 1 false, 1 not found")
    drawn = [(entry["outcome"], entry["bbox"], entry.get("label")) for entry in found.images.boxes_of(1, 0)]
    assert drawn == [
        ("not found", A, ""),
        ("false", FAR, "0.90"),
        ("false", A, None),
        ("true", B, "0.70"),
    ]
    document, detections = case([(1, CAT, A)], [(1, CAT, FAR, 0.9), (1, CAT, A, 0.8)])
    document["categories"] = document["categories"][:1]
    assert next(gallery.name for gallery in diagnose(document, detections).galleries) == "Most mistakes"


def test_without_classes_boxes_have_their_scores_alone() -> None:
    objects, boxes = [(1, CAT, A), (1, DOG, B)], [(1, DOG, A, 0.9), (1, CAT, FAR, 0.8)]
    found = diagnose(*case(objects, boxes), Protocol(class_agnostic=True))
    drawn = [(entry["outcome"], entry["label"]) for entry in found.images.boxes_of(1)]
    assert drawn == [("not found", ""), ("true", "0.90")]


def test_a_second_box_on_an_object_is_in_the_last_row_as_the_page_says() -> None:
    found = diagnose(*case([(1, CAT, A), (2, CAT, A)], [(1, CAT, A, 0.9), (1, CAT, A_NEAR, 0.8), (2, CAT, A, 0.7)]))
    assert errors(found) == {"duplicate": 1} and found.confusion[-1].tolist() == [1, 0, 0]
    (page,) = (entry for entry in diagnosis_sections(found.as_json(), {}) if entry.title == "Confusion")
    assert "the last row boxes left without an object, such as second boxes on one." in page.note


def test_images_of_one_class_stand_together() -> None:
    boxes = [(1, CAT, FAR, 0.9), (2, DOG, FAR, 0.8), (3, CAT, FAR, 0.7), (3, CAT, A, 0.65)]
    found = diagnose(*case([(3, CAT, A), (3, DOG, B)], boxes))
    wrong = next(gallery for gallery in found.galleries if gallery.name == "Most confident and wrong")
    assert [image.image_id for image in wrong.images] == [1, 3, 2]


def test_of_many_false_boxes_the_surest_are_drawn() -> None:
    false = [(1, CAT, [float(number), 50.0, 5.0, 5.0], 0.5 + number / 100) for number in range(40)]
    found = diagnose(*case([(1, CAT, A)] * 200, [(1, CAT, A, 0.5), *false]))
    drawn = [record["score"] for record in found.images.boxes_of(1) if record["outcome"] == "false"]
    assert drawn == sorted((score for *_, score in false), reverse=True)[:MOST_FALSE_DRAWN]


@pytest.mark.parametrize(("num_classes", "has_numbers"), [(12, True), (13, False)])
def test_the_matrix_has_numbers_where_there_is_room(num_classes: int, has_numbers: bool) -> None:
    document, detections = case([(1, CAT, A)], [(1, CAT, A, 0.9)])
    document["categories"] = [{"id": number, "name": f"{number}"} for number in range(1, num_classes + 1)]
    confusion = next(
        entry
        for entry in diagnosis_sections(diagnose(document, detections).as_json(), {})
        if entry.title == "Confusion"
    )
    assert ("pointer-events" in confusion.body) == has_numbers


def test_the_summary_says_what_a_manager_asks() -> None:
    objects = [(1, CAT, A), (1, CAT, B), (2, DOG, A)]
    assert diagnose(*case(objects, [(1, CAT, A, 0.9), (1, CAT, B, 0.9)])).summary == (
        "The model finds 67% of the 3 objects, and 100% of its boxes are right (confidence 0.90 and above); most is "
        "lost to objects with no box of their class on or near them (without them AP50 would be 0.500 higher); the "
        "weakest class is dog (AP50 0.000, mainly objects with no box of their class on or near them)."
    )
    many = [(1, CAT, [20.0 * number, 0.0, 10.0, 10.0]) for number in range(50)] * 20
    records = [(1 + number // 50, label, box, 0.996) for number, (_, label, box) in enumerate(many)]
    spread = [(image, label, box) for image, label, box, _ in records]
    assert diagnose(*case(spread, records[1:], 20)).summary.startswith(
        "The model finds 99.9% of the 1,000 objects, and 100% of its boxes are right (confidence 0.996 and above)"
    )
    assert diagnose(*case(objects[:1], [])).summary.startswith("The model finds none of the 1 object")
    assert diagnose(*case([], [(1, CAT, A, 0.9)])).summary.startswith("The annotations contain no objects, so")
    of_cats = diagnose(*case([(1, DOG, A)], [(1, CAT, A, 0.9)]), Protocol(classes=("cat",)))
    assert of_cats.summary.startswith("The annotations contain no objects of these classes, so")
    nothing = diagnose({"images": [], "categories": [], "annotations": []}, Detections.from_records([]))
    assert nothing.threshold is None and json.loads(json.dumps(nothing.as_json()))["errors"][0]["cost"] is None


def random_case(seed: int) -> tuple[dict[str, Any], Detections]:
    ground_truth, records = random_problem(seed)
    if seed % 2:  # annotation ids do not matter: here they are 0 and 1 alone
        ground_truth["annotations"] = [{**entry, "id": entry["id"] % 2} for entry in ground_truth["annotations"]]
    return ground_truth, Detections.from_records(records)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31))
def test_properties_on_random_sets(seed: int) -> None:
    ground_truth, detections = random_case(seed)
    figures, found = coco_average_precision(ground_truth, detections), diagnose(ground_truth, detections)
    tables = box_tables(ground_truth, detections)
    matching = match(tables.truth, tables.detected)
    outcomes = find_outcomes(tables, matching)
    # Mending nothing is AP50 to the last digit, mending everything gives 1, and no cost is above what is missing.
    as_is = mended_ap50(tables, outcomes, ())
    assert [None if np.isnan(value) else value for value in as_is] == [entry.ap50 for entry in figures.per_class]
    everything = mended_ap50(tables, outcomes, ALL_KINDS)
    assert everything[~np.isnan(as_is)] == pytest.approx(1)
    # The kinds of false detections add up to the false detections.
    counts = {entry.kind: entry.count for entry in found.errors}
    matched, ignored = matching.matched[:, 0, 0], matching.ignored[:, 0, 0]
    assert sum(counts.values()) - counts["missed"] == int((~matched & ~ignored).sum())
    unmatched = figures.num_objects - int((matched & ~ignored).sum())
    assert counts["missed"] <= unmatched <= counts["missed"] + counts["classification"] + counts["localisation"]
    # Rows of the matrix are the objects, columns the detections from the threshold on; its diagonal are the true ones.
    assert found.confusion[:-1].sum() == figures.num_objects
    assert found.confusion[:, :-1].sum() == found.num_true + found.num_false
    assert np.trace(found.confusion) == found.num_true and found.confusion[-1, -1] == 0
    # The operating point is the best of all scores, and the slices by number of objects part the dataset.
    true, counted = outcomes.kinds == TRUE, outcomes.kinds != IGNORED
    f1 = []
    for score in np.unique(tables.scores):
        above = tables.scores >= score
        f1.append(2 * (above & true).sum() / ((above & counted).sum() + figures.num_objects))
    best = 2 * found.num_true / max(2 * found.num_true + found.num_false + found.num_not_found, 1)
    assert best == pytest.approx(max(f1, default=0))
    assert sum(entry.num_objects for entry in found.object_counts) == figures.num_objects
    assert sum(entry.num_false for entry in found.object_counts) == found.num_false
    by_size = [entry.ap for entry in found.sizes]
    assert by_size == [pytest.approx(figures.figures[name]) for name in ("AP_small", "AP_medium", "AP_large")]


@settings(max_examples=10)
@given(seed=st.integers(0, 2**31))
def test_the_order_of_images_changes_nothing(seed: int) -> None:
    ground_truth, detections = random_case(seed)
    order = np.random.default_rng(seed).permutation(len(ground_truth["images"]))
    rank = {ground_truth["images"][index]["id"]: int(position) for position, index in enumerate(order)}
    by_image = np.argsort([rank[image] for image in detections.image_ids.tolist()], kind="stable")
    moved = {
        **ground_truth,
        "images": [ground_truth["images"][index] for index in order],
        "annotations": sorted(ground_truth["annotations"], key=lambda entry: rank[entry["image_id"]]),
    }
    assert diagnose(moved, detections.select(by_image)).as_json() == diagnose(ground_truth, detections).as_json()
