"""Suppression: equal to the published detections, and to a greedy loop on anything."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from yolofleet.evaluation import nms
from yolofleet.evaluation.nms import box_iou, non_maximum_suppression, suppress

GOLDEN = Path(__file__).parents[1] / "golden" / "nms"


def greedy(boxes: Tensor, labels: Tensor | None, iou: float, max_kept: int) -> list[int]:
    """The textbook loop, one box at a time."""
    kept: list[int] = []
    overlaps = box_iou(boxes, boxes)
    for i in range(len(boxes)):
        same = [j for j in kept if labels is None or labels[j] == labels[i]]
        if not any(overlaps[j, i] > iou for j in same):
            kept.append(i)
    return kept[:max_kept]


def crowded_boxes(seed: int, num_boxes: int, num_objects: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.rand(num_objects, 2, generator=generator) * 200
    chosen = torch.randint(num_objects, (num_boxes,), generator=generator)
    corner = centres[chosen] + torch.randn(num_boxes, 2, generator=generator) * 6
    return torch.cat((corner, corner + 30 + torch.rand(num_boxes, 2, generator=generator) * 20), dim=1)


@pytest.mark.parametrize("case", ["eval80", "demo80", "nc1", "degenerate"])
def test_detections_equal_the_published_ones(case: str) -> None:
    golden = np.load(GOLDEN / f"{case}.npz")
    options = json.loads(str(golden["meta_json"]))["kw"]
    source = golden if "prediction" in golden.files else np.load(GOLDEN / "eval80.npz")
    detections = non_maximum_suppression(
        torch.from_numpy(source["prediction"]),
        confidence=options["conf_thres"],
        iou=options["iou_thres"],
        multi_label=options.get("multi_label", False),
    )
    for number, found in enumerate(detections):
        np.testing.assert_array_equal(found.numpy(), golden[f"det_{number}"])


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**31),
    num_boxes=st.integers(0, 700),
    num_objects=st.integers(1, 30),
    iou=st.sampled_from([0.0, 0.3, 0.45, 0.65, 1.0]),
    num_classes=st.integers(0, 3),
    max_kept=st.sampled_from([1, 20, 300, 10000]),
)
def test_blocks_give_what_a_greedy_loop_gives(
    seed: int, num_boxes: int, num_objects: int, iou: float, num_classes: int, max_kept: int
) -> None:
    boxes = crowded_boxes(seed, num_boxes, num_objects)
    labels = (
        torch.randint(num_classes, (num_boxes,), generator=torch.Generator().manual_seed(seed)) if num_classes else None
    )
    expected = greedy(boxes, labels, iou, max_kept)
    assert suppress(boxes, labels, iou=iou, max_kept=max_kept).tolist() == expected
    assert nms._suppress_blocks(boxes, labels, iou, max_kept).tolist() == expected  # as on an accelerator


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    iou=st.sampled_from([0.0, 0.01, 0.45, 0.65, 0.9]),
    scale=st.sampled_from([1e-6, 1.0, 1e4, 1e9, 1e30]),
    far=st.sampled_from([0.0, 1e5, -3e6, 1e30]),
    is_wide=st.booleans(),
)
def test_boxes_of_any_size_anywhere_are_compared(
    seed: int, iou: float, scale: float, far: float, is_wide: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes = crowded_boxes(seed, 250, 9) * scale
    if is_wide:  # wide over narrow ones: the partner's left side is far to the left
        boxes[::3, 0] -= 100 * scale * torch.rand(84, generator=generator)
    boxes[::2] += far
    boxes[5::50, 2:] = boxes[5::50, :2]  # no area
    labels = torch.randint(3, (250,), generator=generator) * 1000
    assert suppress(boxes, labels, iou=iou, max_kept=10**6).tolist() == greedy(boxes, labels, iou, 10**6)


@pytest.mark.parametrize("most_pairs", [1, 7, 1000])
def test_pairs_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch, most_pairs: int) -> None:
    boxes = crowded_boxes(3, 300, 4)
    expected = suppress(boxes, None, iou=0.5, max_kept=1000).tolist()
    monkeypatch.setattr(nms, "MOST_PAIRS", most_pairs)
    assert suppress(boxes, None, iou=0.5, max_kept=1000).tolist() == expected


def test_a_long_chain_settles() -> None:
    # Every box overlaps only its neighbours: the fixpoint needs as many rounds as the chain is long.
    left = torch.arange(600, dtype=torch.float32) * 4
    boxes = torch.stack((left, torch.zeros(600), left + 10, torch.full((600,), 10.0)), dim=1)
    assert suppress(boxes, None, iou=0.3, max_kept=1000).tolist() == list(range(0, 600, 2))


def prediction(*rows: list[float]) -> Tensor:
    return torch.tensor([list(rows)])


def test_multi_label_keeps_each_class_and_single_label_the_best() -> None:
    decoded = prediction([50, 50, 20, 20, 1.0, 0.9, 0.8])
    both = non_maximum_suppression(decoded, confidence=0.5, iou=0.5)[0]
    best = non_maximum_suppression(decoded, confidence=0.5, iou=0.5, multi_label=False)[0]
    agnostic = non_maximum_suppression(decoded, confidence=0.5, iou=0.5, class_agnostic=True)[0]
    torch.testing.assert_close(both, torch.tensor([[40.0, 40, 60, 60, 0.9, 0], [40, 40, 60, 60, 0.8, 1]]))
    torch.testing.assert_close(best, both[:1])
    torch.testing.assert_close(agnostic, both[:1])


def test_only_the_classes_asked_for_come_back() -> None:
    decoded = prediction([50, 50, 20, 20, 1.0, 0.9, 0.8, 0.1], [90, 90, 20, 20, 1.0, 0.2, 0.3, 0.7])
    several = non_maximum_suppression(decoded, confidence=0.05, iou=0.5, classes=[1, 2])[0]
    assert several[:, 5].tolist() == [1, 2, 1, 2]
    # The best class is chosen first: a box whose best class is not wanted gives nothing.
    best = non_maximum_suppression(decoded, confidence=0.05, iou=0.5, classes=[1, 2], multi_label=False)[0]
    assert best[:, 5].tolist() == [2]
    assert non_maximum_suppression(decoded, confidence=0.05, iou=0.5, classes=[])[0].shape == (0, 6)


def test_classes_do_not_collide_however_large_the_boxes() -> None:
    # With the usual 4096 px a class, a box 4096 px right of another one of the next class would suppress it.
    decoded = prediction([4196, 100, 50, 50, 1.0, 0.9, 0.0], [100, 100, 50, 50, 1.0, 0.0, 0.8])
    assert len(non_maximum_suppression(decoded, confidence=0.5, iou=0.5)[0]) == 2


def test_what_is_not_finite_is_no_candidate() -> None:
    nan, inf = float("nan"), float("inf")
    decoded = prediction(
        [nan, 50, 20, 20, 1.0, 0.9, 0.1],
        [50, 50, inf, 20, 1.0, 0.9, 0.1],
        [50, 50, 20, 20, nan, 0.9, 0.1],
        [50, 50, 20, 20, 1.0, nan, 0.8],
    )
    assert non_maximum_suppression(decoded, confidence=0.5, iou=0.5)[0][:, 4:].tolist() == [
        [pytest.approx(0.8), 1.0],
    ]


def test_too_many_candidates_leave_the_best_and_ties_keep_their_order() -> None:
    far_apart = [[100.0 * i, 50, 20, 20, 1.0, 0.9 if i == 7 else 0.5, 0.1] for i in range(20)]
    kept = non_maximum_suppression(prediction(*far_apart), confidence=0.2, iou=0.5, max_candidates=4)[0]
    assert kept[:, 0].tolist() == [690.0, -10.0, 90.0, 190.0]


def test_the_bounds_are_the_published_ones_unless_given() -> None:
    parameters = inspect.signature(non_maximum_suppression).parameters
    defaults = {name: entry.default for name, entry in parameters.items() if entry.default is not entry.empty}
    assert defaults == {
        "max_detections": 300,
        "multi_label": True,
        "class_agnostic": False,
        "classes": None,
        "max_candidates": 30000,
    }


def test_a_candidate_must_exceed_the_confidence_twice() -> None:
    """Objectness and score, each strictly; a detector of one class has its objectness for a score."""
    decoded = prediction(
        [50, 50, 20, 20, 0.5, 1.0, 0.0], [90, 50, 20, 20, 0.75, 0.5, 0.0], [150, 50, 20, 20, 0.75, 0.75, 0.0]
    )
    assert non_maximum_suppression(decoded, confidence=0.5, iou=0.5)[0][:, 4].tolist() == [0.5625]
    assert non_maximum_suppression(decoded, confidence=0.375, iou=0.5)[0][:, 4].tolist() == [0.5625, 0.5]
    one_class = prediction([50, 50, 20, 20, 0.5, 0.1], [90, 50, 20, 20, 0.75, 0.1])
    assert non_maximum_suppression(one_class, confidence=0.5, iou=0.5)[0][:, 4].tolist() == [0.75]


def test_overlap_of_pairs_by_hand() -> None:
    first = torch.tensor([[0.0, 0, 10, 10], [0, 0, 0, 0]])
    second = torch.tensor([[5.0, 0, 15, 20], [20, 20, 30, 30], [0, 0, 0, 0]])
    found = box_iou(first, second)
    assert found[0].tolist() == [pytest.approx(50 / 250), 0.0, 0.0]
    assert found[1, :2].tolist() == [0.0, 0.0] and found[1, 2].isnan()


def test_an_empty_batch_and_a_image_without_detections() -> None:
    assert non_maximum_suppression(torch.zeros(0, 10, 85), confidence=0.1, iou=0.5) == []
    assert non_maximum_suppression(torch.zeros(1, 10, 85), confidence=0.1, iou=0.5)[0].shape == (0, 6)
    with pytest.raises(ValueError, match="5 \\+ C"):
        non_maximum_suppression(torch.zeros(1, 10, 5), confidence=0.1, iou=0.5)
