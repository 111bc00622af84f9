"""The assignment of every assigner against plain loops, and how an assigner is added."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losses import oracle
from losses.golden_loss import anchors_of
from losses.scenes import STRIDES, make_loss, make_predictions, make_targets, positives
from yolofleet.losses import Assignment, Scene, register_assigner
from yolofleet.specs.assignment import AssignmentSpec
from yolofleet.specs.base import SpecError

SIZE = (96, 128)
EDGE_BOXES = {
    "none": [],
    "one": [[0, 1, 0.5, 0.5, 0.3, 0.4]],
    "duplicates": [[0, 1, 0.4, 0.4, 0.2, 0.3]] * 3,
    "same cell, other class": [[0, 1, 0.4, 0.4, 0.2, 0.3], [0, 2, 0.4, 0.4, 0.2, 0.3], [0, 3, 0.41, 0.4, 0.21, 0.3]],
    "on borders": [[0, 0, 0.0, 0.0, 0.2, 0.2], [0, 1, 1.0, 1.0, 0.2, 0.2], [1, 2, 0.5, 1.0, 0.3, 0.1]],
    "on cell borders": [[0, 0, 0.25, 0.5, 0.2, 0.2], [0, 1, 0.5, 0.25, 0.25, 0.25]],
    "tiny and huge": [[0, 0, 0.5, 0.5, 0.004, 0.004], [0, 1, 0.5, 0.5, 1.0, 1.0], [0, 2, 0.2, 0.3, 0.9, 0.005]],
    "without area": [[0, 0, 0.5, 0.5, 0.0, 0.0], [0, 1, 0.5, 0.5, 0.2, 0.0], [0, 2, 0.5, 0.5, 0.2, 0.2]],
    "unordered images": [[1, 0, 0.3, 0.3, 0.2, 0.2], [0, 1, 0.6, 0.6, 0.2, 0.3], [1, 2, 0.7, 0.3, 0.4, 0.2]],
}


def by_plain_loops(
    predictions: list[torch.Tensor], targets: torch.Tensor, assigner: str
) -> list[list[tuple[int, ...]]]:
    lead, auxiliary = predictions[:3], predictions[3:]
    anchors = anchors_of("p5")
    if assigner == "none":
        return oracle.match(lead, targets, anchors, STRIDES, 0.5, 10)
    fine = oracle.match(lead, targets, anchors, STRIDES, 0.5, 20)
    if assigner == "lead":
        return fine + fine
    guide, reach = (auxiliary, 0.5) if assigner == "independent" else (lead, 1.0)
    return fine + oracle.match(guide, targets, anchors, STRIDES, reach, 20)


@pytest.mark.parametrize("assigner", ["none", "independent", "lead", "coarse_to_fine"])
@pytest.mark.parametrize("boxes", EDGE_BOXES.values(), ids=EDGE_BOXES.keys())
def test_edge_cases_equal_plain_loops(boxes: list[list[float]], assigner: str) -> None:
    predictions = make_predictions(3, image_size=SIZE, heads=2, dtype=torch.float64)
    targets = torch.tensor(boxes, dtype=torch.float64).view(-1, 6)
    loss = make_loss(assigner=assigner)
    assert positives(loss, predictions, targets, SIZE) == by_plain_loops(predictions, targets, assigner)


@given(
    seed=st.integers(0, 10_000),
    number=st.integers(0, 12),
    spread=st.sampled_from([0.0, 0.3, 1.0, 4.0, 30.0]),
    assigner=st.sampled_from(["none", "independent", "lead", "coarse_to_fine"]),
)
@settings(max_examples=30)
def test_random_scenes_equal_plain_loops(seed: int, number: int, spread: float, assigner: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    predictions = make_predictions(seed, image_size=SIZE, heads=2, spread=spread, dtype=torch.float64)
    for level in predictions:  # with a spread of 0 only this keeps costs apart
        level += 1e-3 * torch.randn(level.shape, generator=generator, dtype=torch.float64)
    targets = make_targets(seed, number).double()
    loss = make_loss(assigner=assigner)
    assert positives(loss, predictions, targets, SIZE) == by_plain_loops(predictions, targets, assigner)


@pytest.mark.parametrize("seed", range(4))
def test_well_predicted_boxes_take_many_candidates(seed: int) -> None:
    # Boxes of the shape that anchors predict without being trained, so that k is large beside the candidates.
    predictions = make_predictions(seed, image_size=SIZE, spread=0.02, dtype=torch.float64)
    targets = make_targets(seed, 3).double()
    targets[:, 4:] = torch.tensor([[36 / 128, 75 / 96], [19 / 128, 36 / 96], [40 / 128, 40 / 96]], dtype=torch.float64)
    found = positives(make_loss(), predictions, targets, SIZE)
    assert found == by_plain_loops(predictions, targets, "none")
    assert sum(len(level) for level in found) >= 6


def test_saturated_scores_are_chosen_and_only_the_published_code_misses_them() -> None:
    # Every class and objectness logit of one well-placed anchor is so high that sigmoid is 1 in float32.
    predictions = [level.zero_() for level in make_predictions(0, batch_size=1, image_size=SIZE)]
    targets = torch.tensor([[0, 2, 0.53, 0.53, 0.1, 0.15]])
    cell = positives(make_loss(matching="fixed"), predictions, targets, SIZE)
    image, anchor, row, column, _ = cell[0][0]
    predictions[0][image, anchor, row, column, 4] = 40.0
    predictions[0][image, anchor, row, column, 7] = 40.0
    predictions[0][image, anchor, row, column, [5, 6, 8, 9]] = -40.0
    chosen = {place[:4] for level in positives(make_loss(), predictions, targets, SIZE) for place in level}
    assert (image, anchor, row, column) in chosen
    quirky = positives(make_loss(published_quirks=True), predictions, targets, SIZE)
    assert (image, anchor, row, column) not in {place[:4] for level in quirky for place in level}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_predictions_are_matched_in_float32(dtype: torch.dtype) -> None:
    predictions, targets = make_predictions(7, image_size=SIZE, dtype=dtype), make_targets(7, 20)
    loss = make_loss()
    wanted = positives(loss, [level.float() for level in predictions], targets, SIZE)
    assert positives(loss, predictions, targets, SIZE) == wanted


def test_relaxation_of_half_a_cell_makes_the_coarse_set_the_fine_one() -> None:
    predictions, targets = make_predictions(9, image_size=SIZE, heads=2), make_targets(9, 20)
    found = positives(make_loss(assigner="coarse_to_fine", relaxation=0.5), predictions, targets, SIZE)
    assert found[:3] == found[3:]
    relaxed = positives(make_loss(assigner="coarse_to_fine"), predictions, targets, SIZE)
    assert relaxed[:3] == found[:3]
    assert relaxed[3:] != found[3:]


@register_assigner("wide", uses_auxiliary=False)
def assign_widely(scene: Scene) -> Assignment:
    """An assigner of one's own: the lead head alone, from the cells of the coarse set."""
    return Assignment(scene.choose(scene.lead, 1.0), None)


def test_an_assigner_of_one_s_own_is_registered_by_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__, ModuleType(__name__)))
    monkeypatch.setattr(sys.modules[__name__], "assign_widely", assign_widely, raising=False)
    assert AssignmentSpec.parse({"assigner": "wide"}, source="job").assigner == "wide"
    predictions, targets = make_predictions(9, image_size=SIZE), make_targets(9, 20)
    found = positives(make_loss(assigner="wide", matching="fixed"), predictions, targets, SIZE)
    fine = positives(make_loss(matching="fixed"), predictions, targets, SIZE)
    assert sum(map(len, found)) > sum(map(len, fine))


def test_an_unknown_assigner_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(SpecError, match="'coarse_to_fine' or 'wide'; did you mean 'lead'"):
        AssignmentSpec.parse({"assigner": "leed"}, source="job")
