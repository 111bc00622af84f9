"""The whole-batch assignment against plain loops, and what must not change it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losses import oracle
from losses.golden_loss import anchors_of
from losses.scenes import STRIDES, make_loss, make_predictions, make_targets, positives

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


def judged(predictions: list[torch.Tensor], targets: torch.Tensor, assigner: str) -> list[list[tuple[int, ...]]]:
    lead, auxiliary = predictions[:3], predictions[3:]
    anchors = anchors_of("p5")
    if assigner == "none":
        return oracle.match(lead, targets, anchors, STRIDES, 0.5, 10)
    fine = oracle.match(lead, targets, anchors, STRIDES, 0.5, 20)
    if assigner == "lead":
        return fine + fine
    guide, reach = (auxiliary, 0.5) if assigner == "independent" else (lead, 1.0)
    return fine + oracle.match(guide, targets, anchors, STRIDES, reach, 20)


@pytest.fixture(scope="module", params=[1_000_000, 1], ids=["all with all", "by blocks"])
def comparison(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("yolofleet.losses.host_choice.CROWD", request.param)
        yield


@pytest.mark.usefixtures("comparison")
@pytest.mark.parametrize("assigner", ["none", "independent", "lead", "coarse_to_fine"])
@pytest.mark.parametrize("boxes", EDGE_BOXES.values(), ids=EDGE_BOXES.keys())
def test_edge_cases_equal_plain_loops(boxes: list[list[float]], assigner: str) -> None:
    predictions = make_predictions(3, image_size=SIZE, heads=2, dtype=torch.float64)
    targets = torch.tensor(boxes, dtype=torch.float64).view(-1, 6)
    loss = make_loss(assigner=assigner)
    assert positives(loss, predictions, targets, SIZE) == judged(predictions, targets, assigner)


@pytest.mark.usefixtures("comparison")
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
    assert positives(loss, predictions, targets, SIZE) == judged(predictions, targets, assigner)


@pytest.mark.usefixtures("comparison")
@pytest.mark.parametrize("seed", range(4))
def test_well_predicted_boxes_take_many_candidates(seed: int) -> None:
    # Boxes of the shape that anchors predict without being trained, so that k is large beside the candidates.
    predictions = make_predictions(seed, image_size=SIZE, spread=0.02, dtype=torch.float64)
    targets = make_targets(seed, 3).double()
    targets[:, 4:] = torch.tensor([[36 / 128, 75 / 96], [19 / 128, 36 / 96], [40 / 128, 40 / 96]], dtype=torch.float64)
    found = positives(make_loss(), predictions, targets, SIZE)
    assert found == judged(predictions, targets, "none")
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


@pytest.mark.usefixtures("comparison")
def test_images_do_not_see_each_other() -> None:
    predictions, targets = make_predictions(5, batch_size=4, image_size=SIZE), make_targets(5, 40, batch_size=4)
    loss = make_loss()
    together = positives(loss, predictions, targets, SIZE)
    alone: list[list[tuple[int, ...]]] = [[], [], []]
    for image in range(4):
        rows = (targets[:, 0] == image).nonzero().flatten()
        some = targets[rows].clone()
        some[:, 0] = 0
        for level, found in enumerate(positives(loss, [p[image : image + 1] for p in predictions], some, SIZE)):
            alone[level] += [(image, *place[1:4], rows[place[4]].item()) for place in found]
    assert together == [sorted(level) for level in alone]


@pytest.mark.parametrize("entries", [(1, 1), (4000, 200), (1 << 30, 1 << 30)])
def test_the_size_of_the_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch, entries: tuple[int, int]) -> None:
    predictions, targets = make_predictions(6, batch_size=3, image_size=SIZE), make_targets(6, 60, batch_size=3)
    wanted = positives(make_loss(), predictions, targets, SIZE)
    monkeypatch.setattr("yolofleet.losses.matching.HOST_ENTRIES", entries)
    assert positives(make_loss(), predictions, targets, SIZE) == wanted


def found_by_comparing(crowd: int, assigner: str, predictions: list[torch.Tensor], targets: torch.Tensor) -> object:
    size = (predictions[0].shape[2] * STRIDES[0], predictions[0].shape[3] * STRIDES[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("yolofleet.losses.host_choice.CROWD", crowd)
        return positives(make_loss(assigner=assigner), predictions, targets, size)


@given(
    seed=st.integers(0, 10_000),
    number=st.integers(1, 400),
    smallest=st.sampled_from([0.02, 0.2]),
    spread=st.sampled_from([0.02, 1.0, 8.0]),
    assigner=st.sampled_from(["none", "coarse_to_fine"]),
)
@settings(max_examples=10)
def test_comparing_by_blocks_finds_what_comparing_all_finds(
    seed: int, number: int, smallest: float, spread: float, assigner: str
) -> None:
    predictions = make_predictions(seed, image_size=(320, 320), heads=2, spread=spread, dtype=torch.float64)
    targets = make_targets(seed, number).double()
    targets[:, 4:] = targets[:, 4:].clamp(min=smallest)
    targets[number // 2 :, 2:] = targets[: number - number // 2, 2:]  # equal boxes, of equal and of other classes
    wanted = found_by_comparing(1_000_000, assigner, predictions, targets)
    assert found_by_comparing(1, assigner, predictions, targets) == wanted


@pytest.mark.parametrize("seed", range(3))
def test_comparing_by_blocks_holds_where_costs_of_neighbours_are_worlds_apart(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (256, 256)
    predictions, targets = make_predictions(seed, 1, size, 3), make_targets(seed, 230, 1, 3)
    targets[:, 1] = 0
    generator = torch.Generator().manual_seed(seed)
    for level in predictions:
        sure = torch.rand(level.shape[:-1], generator=generator) < 0.02
        level[..., 4:] = -60.0
        level[..., 4:][sure] = torch.tensor([80.0, 80.0, 20.0, 20.0])  # object, its own class, the others
    found = []
    for crowd in (1, 1_000_000):
        monkeypatch.setattr("yolofleet.losses.host_choice.CROWD", crowd)
        found.append(positives(make_loss(3), predictions, targets, size))
    assert found[0] == found[1]


@pytest.mark.parametrize("fault", [torch.nan, torch.inf])
def test_predictions_that_are_no_number_end_no_comparison(fault: float) -> None:
    predictions, targets = make_predictions(10, image_size=SIZE), make_targets(10, 40)
    for level in predictions:
        level[:, :, ::2, ::3] = fault
    wanted = found_by_comparing(1_000_000, "none", predictions, targets)
    assert found_by_comparing(1, "none", predictions, targets) == wanted


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_predictions_are_matched_in_float32(dtype: torch.dtype) -> None:
    predictions, targets = make_predictions(7, image_size=SIZE, dtype=dtype), make_targets(7, 20)
    loss = make_loss()
    wanted = positives(loss, [level.float() for level in predictions], targets, SIZE)
    assert positives(loss, predictions, targets, SIZE) == wanted


def test_two_thousand_boxes_on_one_image() -> None:
    predictions = make_predictions(8, batch_size=2, image_size=(640, 640))
    targets = make_targets(8, 2000)
    targets[:, 0] = 1
    found = make_loss().assign(predictions, targets, (640, 640))
    assert sum(len(level) for level in found) >= 1000
    assert all((level[:, 0] == 1).all() for level in found)


def test_relaxation_of_half_a_cell_makes_the_coarse_set_the_fine_one() -> None:
    predictions, targets = make_predictions(9, image_size=SIZE, heads=2), make_targets(9, 20)
    found = positives(make_loss(assigner="coarse_to_fine", relaxation=0.5), predictions, targets, SIZE)
    assert found[:3] == found[3:]
    relaxed = positives(make_loss(assigner="coarse_to_fine"), predictions, targets, SIZE)
    assert relaxed[:3] == found[:3]
    assert relaxed[3:] != found[3:]
