"""A replicate's figures are those of the drawn images, and the intervals tell a real difference from noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evaluation.judged import random_problem
from yolofleet.core.errors import UserError
from yolofleet.evaluation.average_precision import FIGURE_NAMES, coco_average_precision
from yolofleet.evaluation.bootstrap import drawn_images, match_images, paired_bootstrap, sample_figures
from yolofleet.evaluation.detections import Detections


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
    for place, image_id in enumerate(sorted(image["id"] for image in truth["images"])):
        for copy in range(int(weights[place])):
            number = place * 1000 + copy + 1
            images.append({"id": number})
            for source, target in ((truth["annotations"], annotations), (records, found)):
                target += [{**entry, "image_id": number} for entry in source if entry["image_id"] == image_id]
    return {**truth, "images": images, "annotations": annotations}, found


@pytest.mark.parametrize("seed", range(4))
def test_a_replicate_is_the_judgement_of_the_drawn_images(seed: int) -> None:
    truth, records = problem(seed)
    matches = match_images(truth, Detections.from_records(records))
    weights = np.concatenate((np.ones((12, 1), int), drawn_images(12, 6, seed)), axis=1)
    samples = sample_figures(matches, weights)
    for replicate in range(weights.shape[1]):
        judged = coco_average_precision(*drawn(truth, records, weights[:, replicate]))
        for name, value in zip(FIGURE_NAMES, samples.figures[:, replicate].tolist(), strict=True):
            expected = judged.figures[name]
            assert (np.isnan(value) and expected is None) or value == pytest.approx(expected, abs=1e-12), name
        for entry, value in zip(judged.per_class, samples.per_class[:, replicate].tolist(), strict=True):
            assert (np.isnan(value) and entry.ap is None) or value == pytest.approx(entry.ap, abs=1e-12), entry.name


def test_the_draws_are_images_with_replacement_and_repeatable() -> None:
    weights = drawn_images(50, 200, seed=3)
    assert weights.shape == (50, 200) and (weights.sum(axis=0) == 50).all()
    assert 0.3 < (weights == 0).mean() < 0.45  # 1/e of the images are left out
    assert (weights == drawn_images(50, 200, seed=3)).all() and (weights != drawn_images(50, 200, seed=4)).any()


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


def test_what_cannot_be_measured_is_none() -> None:
    truth, records = problem(1)
    nothing = paired_bootstrap(
        {**truth, "annotations": []}, Detections.from_records(records), Detections.from_records([]), num_replicates=5
    )
    assert nothing.per_class == () and {entry.difference for entry in nothing.figures} == {None}
    with pytest.raises(UserError, match="no images"):
        match_images({**truth, "images": [], "annotations": []}, Detections.from_records([]))
