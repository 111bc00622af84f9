"""A replicate's figures are those of the drawn images, and the intervals separate a real difference from noise."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from evaluation.reference_figures import random_problem
from yolofleet.core.errors import UserError
from yolofleet.evaluation.average_precision import coco_average_precision
from yolofleet.evaluation.bootstrap import (
    Difference,
    _differences,
    draw_images,
    match_images,
    paired_bootstrap,
    sample_figures,
)
from yolofleet.evaluation.detections import Detections
from yolofleet.evaluation.protocol import COCO_PROTOCOL


def problem(seed: int, num_images: int = 12) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A random problem whose scores are all different: among equal ones a replicate has no order of its own."""
    truth, records = random_problem(seed, num_images)
    scores = np.random.default_rng(seed).permutation(len(records)) / max(1, len(records))
    return truth, [{**record, "score": float(score)} for record, score in zip(records, scores, strict=True)]


def drawn(truth: dict[str, Any], records: list[dict[str, Any]], weights: Any) -> tuple[Any, Any]:
    """The drawn images written out: an image that is drawn twice is two images, side by side in the order of ids."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for position, image_id in enumerate(sorted(image["id"] for image in truth["images"])):
        for copy in range(int(weights[position])):
            number = position * 1000 + copy + 1
            images.append({"id": number})
            for source, target in ((truth["annotations"], annotations), (records, found)):
                target += [{**entry, "image_id": number} for entry in source if entry["image_id"] == image_id]
    return {**truth, "images": images, "annotations": annotations}, found


@pytest.mark.parametrize("seed", range(4))
def test_a_replicate_has_the_figures_of_the_draw_images(seed: int) -> None:
    truth, records = problem(seed)
    matches = match_images(truth, Detections.from_records(records))
    weights = np.concatenate((np.ones((12, 1), int), draw_images(12, 6, seed)), axis=1)
    samples = sample_figures(matches, weights)
    for replicate in range(weights.shape[1]):
        result = coco_average_precision(*drawn(truth, records, weights[:, replicate]))
        for name, value in zip(COCO_PROTOCOL.figure_names, samples.figures[:, replicate].tolist(), strict=True):
            expected = result.figures[name]
            assert (np.isnan(value) and expected is None) or value == pytest.approx(expected, abs=1e-12), name
        for entry, value in zip(result.per_class, samples.per_class[:, replicate].tolist(), strict=True):
            assert (np.isnan(value) and entry.ap is None) or value == pytest.approx(entry.ap, abs=1e-12), entry.name


def test_the_draws_are_images_with_replacement_and_repeatable() -> None:
    weights = draw_images(50, 200, seed=3)
    assert weights.shape == (50, 200) and (weights.sum(axis=0) == 50).all()
    assert 0.3 < (weights == 0).mean() < 0.45  # 1/e of the images are left out
    assert (weights == draw_images(50, 200, seed=3)).all() and (weights != draw_images(50, 200, seed=4)).any()


def test_a_detector_does_not_differ_from_itself() -> None:
    truth, records = problem(7, num_images=30)
    same = Detections.from_records(records)
    differences = paired_bootstrap(truth, same, same, num_replicates=50)
    assert {(entry.difference, entry.low, entry.high) for entry in differences.figures} == {(0.0, 0.0, 0.0)}


def test_a_real_loss_is_told_from_noise_and_noise_from_a_loss() -> None:
    truth, records = problem(11, num_images=60)
    random = np.random.default_rng(0)
    better = [
        {"image_id": entry["image_id"], "category_id": entry["category_id"], "bbox": entry["bbox"], "score": 1.0}
        for entry in truth["annotations"]
    ] + [{**record, "score": record["score"] * 0.9} for record in records]
    differences = paired_bootstrap(
        truth, Detections.from_records(better), Detections.from_records(records), num_replicates=200
    )
    loss = differences.figure("AP")
    assert loss.difference is not None and loss.high is not None and loss.low is not None
    assert loss.low < loss.difference < loss.high < 0
    shaken = [{**record, "score": record["score"] + float(random.normal(0, 1e-3))} for record in records]
    noise = paired_bootstrap(
        truth, Detections.from_records(records), Detections.from_records(shaken), num_replicates=200
    ).figure("AP")
    assert noise.low is not None and noise.high is not None and noise.low <= 0 <= noise.high
    assert noise.high - noise.low < loss.high - loss.low


def test_an_interval_is_that_of_the_percentiles_around_the_measured_difference() -> None:
    """Of replicates that are all too high by 0.3, with nan where a replicate had nothing to measure."""
    values = np.linspace(-0.1, 0.1, 1001)
    first = np.append(np.zeros(1001), np.nan)[None]
    second = np.append(0.5 + values, np.nan)[None]
    (entry,) = _differences(["AP"], [np.array([[0.4]]), np.array([[0.6]])], [first, second], 0.9)
    assert (entry.first, entry.second, entry.difference) == (0.4, 0.6, pytest.approx(0.2))
    assert (entry.low, entry.high) == (pytest.approx(0.2 - 0.09), pytest.approx(0.2 + 0.09))


def test_a_figure_needs_a_measurement_and_replicates_that_have_one() -> None:
    spread, nothing, one, none = np.zeros((1, 5)), np.full((1, 5), np.nan), np.ones((1, 1)), np.full((1, 1), np.nan)
    for exact, samples in ((one, nothing), (none, spread), (none, nothing)):
        (entry,) = _differences(["AP"], [exact] * 2, [samples] * 2, 0.9)
        assert (entry.first, entry.second, entry.difference, entry.low, entry.high) == (None,) * 5


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_of_a_mean_is_the_textbook_one(confidence: float) -> None:
    """With one object an image recall is a mean over images: its paired difference has a known standard error."""
    num_images, random = 200, np.random.default_rng(2)
    truth, objects = one_object_an_image(num_images, 1, random)
    is_found = random.random((2, num_images)) < np.array([[0.8], [0.6]])
    found = [[entry for entry, kept in zip(objects, row, strict=True) if kept] for row in is_found]
    differences = paired_bootstrap(
        truth, *map(Detections.from_records, found), num_replicates=800, confidence=confidence
    )
    recall = differences.figure("AR_1")
    by_image = is_found[1].astype(float) - is_found[0]
    error = NormalDist().inv_cdf((1 + confidence) / 2) * by_image.std() / num_images**0.5
    assert recall.difference == pytest.approx(by_image.mean())
    assert recall.low == pytest.approx(by_image.mean() - error, abs=0.15 * error)
    assert recall.high == pytest.approx(by_image.mean() + error, abs=0.15 * error)


def one_object_an_image(
    num_images: int, num_classes: int, random: np.random.Generator
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A dataset of one object an image, and detections that find each with a score between 0 and 1."""
    classes = (random.integers(num_classes, size=num_images) + 1).tolist()
    shared = [
        {"image_id": number, "category_id": label, "bbox": [0.0, 0.0, 50.0, 50.0]}
        for number, label in enumerate(classes, 1)
    ]
    truth = {
        "images": [{"id": entry["image_id"]} for entry in shared],
        "categories": [{"id": number + 1, "name": str(number)} for number in range(num_classes)],
        "annotations": [{**entry, "id": entry["image_id"]} for entry in shared],
    }
    return truth, [{**entry, "score": float(random.random())} for entry in shared]


def perfect_and_noisy(seed: int) -> Difference:
    """AP50 of a perfect detector and of one with many false detections, few images of many classes: AP is biased."""
    random = np.random.default_rng(seed)
    truth, objects = one_object_an_image(20, 5, random)
    noise = [
        {**objects[image], "category_id": int(random.integers(5)) + 1, "bbox": [100.0, 200.0, 50.0, 50.0]}
        | {"score": float(random.random())}
        for image in random.integers(20, size=60)
    ]
    perfect, noisy = Detections.from_records(objects), Detections.from_records(objects + noise)
    return paired_bootstrap(truth, perfect, noisy, num_replicates=60, confidence=0.9, seed=seed).figure("AP50")


def covered(num_datasets: int) -> tuple[float, float]:
    """How far intervals lie to one side, as a share of their half width; how many hold the expected difference."""
    entries = [perfect_and_noisy(seed) for seed in range(num_datasets)]
    rows = np.array([(entry.difference, entry.low, entry.high) for entry in entries], dtype=float)
    difference, low, high = rows.T
    expected = difference.mean()
    lean = ((low + high) / 2 - difference).mean() / ((high - low) / 2).mean()
    return float(lean), float(((low <= expected) & (expected <= high)).mean())


def test_an_interval_leans_to_no_side_where_replicates_are_biased() -> None:
    lean, _ = covered(20)
    assert abs(lean) < 0.2  # half of the half width where intervals are not moved back


@pytest.mark.slow
def test_intervals_hold_the_difference_as_often_as_they_say() -> None:
    lean, share = covered(160)
    assert abs(lean) < 0.2
    assert share == pytest.approx(0.9, abs=0.06)  # 0.75 where intervals are not moved back


def test_what_cannot_be_measured_is_none() -> None:
    truth, records = problem(1)
    nothing = paired_bootstrap(
        {**truth, "annotations": []}, Detections.from_records(records), Detections.from_records([]), num_replicates=5
    )
    assert nothing.per_class == () and {entry.difference for entry in nothing.figures} == {None}
    with pytest.raises(UserError, match="no images"):
        match_images({**truth, "images": [], "annotations": []}, Detections.from_records([]))
