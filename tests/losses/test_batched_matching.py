"""The batched matching equals the plain reference: every layout, assigner, model family and crowd; ties included."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from losses.golden_loss import anchors_of
from losses.scenes import GAINS, LAYOUTS, make_loss, make_predictions, make_targets, positives, use_layout
from yolofleet.losses import DetectionLoss
from yolofleet.losses.batched_matching import select_cheapest
from yolofleet.losses.matching import MatchingInput, match_by_image, match_image
from yolofleet.specs.assignment import ASSIGNERS

SIZES = {"p5": (96, 128), "p6": (128, 192), "tiny": (96, 128)}
NUM_IMAGES, NUM_CLASSES = 3, 5


def make_scene(family: str, seed: int, counts: list[int], spread: float, dtype: torch.dtype) -> tuple[Any, Tensor]:
    """Predictions of lead and auxiliary levels, and targets: some boxes are equal, some predictions too."""
    generator = torch.Generator().manual_seed(seed)
    height, width = SIZES[family]
    strides = [8 * 2**level for level in range(len(anchors_of(family)))]
    shapes = [(NUM_IMAGES, 3, height // s, width // s, 5 + NUM_CLASSES) for s in strides]
    predictions = [spread * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes * 2]
    predictions = [level.round(decimals=1) if seed % 3 == 0 else level for level in predictions]
    targets = make_targets(seed, sum(counts), NUM_IMAGES, NUM_CLASSES)
    targets[:, 0] = torch.arange(NUM_IMAGES).repeat_interleave(torch.tensor(counts)).float()
    targets[::3, 2:] = targets[: len(targets[::3]), 2:].clone()  # equal boxes, of equal and of other classes
    return [level.to(dtype) for level in predictions], targets.to(dtype)


def find_positives(family: str, scene: tuple[Any, Tensor], layout: str, **options: Any) -> Any:
    anchors = anchors_of(family)
    loss = DetectionLoss(
        anchors=anchors,
        strides=[8 * 2**level for level in range(len(anchors))],
        num_classes=NUM_CLASSES,
        hyperparameters=GAINS,
        **options,
    )
    with pytest.MonkeyPatch.context() as patch:
        if layout == "reference":
            patch.setattr("yolofleet.losses.assigners.match_batched", match_plainly)
        use_layout(patch, layout)
        return positives(loss, *scene, SIZES[family])


def match_plainly(pairs: MatchingInput, groups: object, num_best: int, published_quirks: bool) -> Tensor:
    return match_by_image(pairs, NUM_IMAGES, num_best)


@given(
    family=st.sampled_from(["p5", "p6", "tiny"]),
    seed=st.integers(0, 10_000),
    counts=st.lists(st.sampled_from([0, 1, 2, 5, 20, 60]), min_size=NUM_IMAGES, max_size=NUM_IMAGES),
    spread=st.sampled_from([0.0, 0.3, 1.0, 8.0, 40.0]),
    assigner=st.sampled_from(ASSIGNERS.built_in()),
    matching=st.sampled_from(["dynamic", "dynamic", "dynamic", "fixed"]),
    published_quirks=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
@settings(max_examples=60)
def test_every_layout_finds_what_the_reference_finds(
    family: str, seed: int, counts: list[int], spread: float, dtype: torch.dtype, **options: Any
) -> None:
    scene = make_scene(family, seed, counts, spread, dtype)
    expected = find_positives(family, scene, "reference", **options)
    for layout in LAYOUTS:
        assert find_positives(family, scene, layout, **options) == expected, layout


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("counts", [[300, 0, 7], [60, 150, 110]])
def test_crowded_images_are_matched_as_by_the_reference(counts: list[int], layout: str) -> None:
    scene = make_scene("p5", 12, counts, 1.0, torch.float64)
    expected = find_positives("p5", scene, "reference", assigner="none")
    assert find_positives("p5", scene, layout, assigner="none") == expected
    assert sum(map(len, expected)) > 300


def test_two_thousand_boxes_on_one_image_are_matched_as_by_the_reference() -> None:
    predictions, targets = make_scene("p5", 5, [0, 2000, 0], 1.0, torch.float64)
    targets[400:, 4:] = 0.02  # too small for any anchor: boxes that compete and bring no candidates, which saves time
    expected = find_positives("p5", (predictions, targets), "reference")
    assert find_positives("p5", (predictions, targets), "cpu") == expected
    assert sum(map(len, expected)) > 500


@pytest.mark.parametrize("layout", ["reference", *LAYOUTS])
def test_a_nan_prediction_is_never_a_positive_and_changes_no_other(layout: str) -> None:
    predictions, targets = make_scene("p5", 4, [20, 3, 0], 1.0, torch.float64)
    expected = find_positives("p5", (predictions, targets), "reference")
    chosen = expected[0][0]
    predictions[0][chosen[:4]] = torch.nan
    found = find_positives("p5", (predictions, targets), layout)
    assert chosen[:4] not in [place[:4] for place in found[0]]
    assert [place for level in found for place in level if place[0] == 1] == [
        place for level in expected for place in level if place[0] == 1
    ]


@given(
    iou=st.lists(
        st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=9, max_size=9), min_size=1, max_size=6
    ),
    seed=st.integers(0, 1000),
    num_best=st.integers(1, 12),
)
def test_of_equal_costs_the_first_are_selected(iou: list[list[float]], seed: int, num_best: int) -> None:
    overlap = torch.tensor(iou)
    cost = torch.randint(0, 3, overlap.shape, generator=torch.Generator().manual_seed(seed)).float()
    selected = select_cheapest(overlap[None], cost[None], num_best)[0]
    for row, columns, costs in zip(iou, selected.tolist(), cost.tolist(), strict=True):
        k = max(1, int(sum(sorted(row, reverse=True)[:num_best])))
        cheapest = sorted(range(9), key=costs.__getitem__)[:k]
        assert sorted(column for column in columns if column < 9) == sorted(cheapest)


def test_the_reference_counts_k_selects_and_settles_conflicts() -> None:
    iou = torch.tensor([[0.9, 0.8, 0.6, 0.0], [0.3, 0.2, 0.1, 0.0]])
    cost = torch.tensor([[1.0, 2.0, 3.0, 9.0], [0.5, 7.0, 8.0, 9.0]])
    # The first box has k = 2 (of 2.3), the second k = 1; both select the first candidate, cheaper for the second.
    assert match_image(iou, cost, 10).tolist() == [1, 0, 2, 2]
    assert match_image(iou, cost, 1).tolist() == [1, 2, 2, 2]


def test_memory_is_bounded_with_two_thousand_boxes_on_one_image() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "matching.py"
    command = [sys.executable, str(script), "--memory", "2000"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert json.loads(printed)["megabytes"] < 400


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_do_not_see_each_other(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (96, 128)
    predictions, targets = make_predictions(5, batch_size=4, image_size=size), make_targets(5, 40, batch_size=4)
    loss = make_loss()
    alone: list[list[tuple[int, ...]]] = [[], [], []]
    for image in range(4):
        rows = (targets[:, 0] == image).nonzero().flatten()
        some = targets[rows].clone()
        some[:, 0] = 0
        for level, found in enumerate(positives(loss, [p[image : image + 1] for p in predictions], some, size)):
            alone[level] += [(image, *place[1:4], rows[place[4]].item()) for place in found]
    use_layout(monkeypatch, layout)
    assert positives(loss, predictions, targets, size) == [sorted(level) for level in alone]
