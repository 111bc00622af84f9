"""pycocotools and the fast figures agree on anything, and a difference is named with both values."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.reference_figures import evaluate_with_pycocotools, random_problem
from yolofleet.evaluation.average_precision import coco_average_precision
from yolofleet.evaluation.detections import Detections
from yolofleet.evaluation.reference_ap import reference_average_precision, reference_differences, reference_name


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31), crowds=st.booleans(), num_images=st.integers(0, 12), most=st.sampled_from([1, 40]))
def test_the_fast_figures_are_those_of_the_reference(seed: int, crowds: bool, num_images: int, most: int) -> None:
    ground_truth, records = random_problem(seed, num_images=num_images, crowds=crowds, max_detections=most)
    detections = Detections.from_records(records)
    reference = reference_average_precision(ground_truth, detections)
    assert reference_differences(coco_average_precision(ground_truth, detections).figures, reference) == []


def test_the_reference_is_what_one_gets_by_hand() -> None:
    ground_truth, records = random_problem(3)
    by_hand = evaluate_with_pycocotools(ground_truth, records).stats.tolist()
    reference = reference_average_precision(ground_truth, Detections.from_records(records))
    assert [-1 if value is None else value for value in reference.values()] == by_hand


def test_nothing_found_nothing_to_find_and_ids_that_repeat() -> None:
    ground_truth, records = random_problem(3)
    detections = Detections.from_records(records)
    expected = reference_average_precision(ground_truth, detections)
    for number in (0, 1):
        same_id = [{**entry, "id": number} for entry in ground_truth["annotations"]]
        assert reference_average_precision({**ground_truth, "annotations": same_id}, detections) == expected
    assert reference_average_precision(ground_truth, Detections.from_records([]))["AP"] == 0.0
    assert set(reference_average_precision({**ground_truth, "annotations": []}, detections).values()) == {None}


def test_a_difference_names_both_figures() -> None:
    ground_truth, records = random_problem(3)
    reference = reference_average_precision(ground_truth, Detections.from_records(records))
    assert reference["AP"] is not None
    claimed = {**reference, "AP": reference["AP"] + 1e-9, "AP50": None}
    found = reference_differences(claimed, reference)
    assert len(found) == 2
    assert repr(claimed["AP"]) in found[0] and repr(reference["AP"]) in found[0] and reference_name() in found[0]
    assert "AP50 is not measured" in found[1]
