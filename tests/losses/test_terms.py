"""The terms of the loss: gradients, settings, degenerate input."""

from __future__ import annotations

import copy
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from losses.scenes import GAINS, STRIDES, make_loss, make_predictions, make_targets
from yolofleet.core.errors import UserError
from yolofleet.losses import DetectionLoss
from yolofleet.losses.boxes import complete_iou, read_boxes
from yolofleet.losses.candidates import Candidates
from yolofleet.losses.levels import make_levels, read_predictions
from yolofleet.losses.matching import compute_class_cost, compute_published_class_cost
from yolofleet.losses.terms import (
    LossSettings,
    _compute_background_entropy,
    cap_coarse_cells,
    compute_box_fit,
    compute_box_term,
    compute_class_term,
    compute_cross_entropy,
    compute_level_weights,
    compute_objectness_cap,
    compute_objectness_term,
)

SIZE = (96, 128)


def test_gradient_equals_finite_differences_with_the_assignment_held_fixed() -> None:
    """In float64; held fixed are the positives, the objectness targets and the alpha of CIoU, as in the gradient."""
    size, sizes = (64, 64), [(8, 8), (4, 4), (2, 2)]
    predictions = make_predictions(1, batch_size=1, image_size=size, num_classes=3, dtype=torch.float64)
    predictions = [level.requires_grad_() for level in predictions]
    targets = make_targets(1, 16, batch_size=1, num_classes=3).double()
    loss = make_loss(3, hyperparameters={"fl_gamma": 1.5, "label_smoothing": 0.1, "cls_pw": 1.3, "obj_pw": 0.8})
    loss(predictions, targets, size).total.backward()

    levels = make_levels(loss.anchors, loss.strides, tuple(sizes), 1, torch.device("cpu"), torch.float64)
    boxes, found = loss.match(predictions, targets, size)
    positives = found.lead
    cells = [3 * height * width for height, width in sizes]
    fixed = compute_box_fit(
        read_predictions(predictions, positives.cell, positives.level_sizes)[0], positives, boxes, levels
    )
    target = fixed.quality.detach().clamp(min=0)

    def total(levels_: list[torch.Tensor]) -> float:
        rows, objectness = read_predictions(levels_, positives.cell, positives.level_sizes)
        fit = compute_box_fit(rows, positives, boxes, levels, fixed.alpha)
        weights, settings_ = compute_level_weights(positives, [1.0] * 3, torch.float64), loss.settings
        terms = (
            settings_.box_gain * compute_box_term(fit.quality, weights)
            + settings_.objectness_gain
            * compute_objectness_term(objectness, rows[:, 4], target, positives, cells, loss.balance, settings_)
            + settings_.class_gain
            * compute_class_term(rows[:, 5:], boxes.label[positives.box], weights, settings_, None)
        )
        return terms.item()

    assert len(positives) > 10
    step = 1e-6
    with torch.no_grad():
        for level in predictions:
            assert level.grad is not None
            flat, gradient = level.detach().view(-1), level.grad.flatten()
            strongest = gradient.abs().topk(25).indices
            some = torch.cat([strongest, torch.arange(0, len(flat), len(flat) // 25)])
            for index in some.tolist():
                value = flat[index].item()
                flat[index] = value + step
                above = total(predictions)
                flat[index] = value - step
                below = total(predictions)
                flat[index] = value
                assert (above - below) / (2 * step) == pytest.approx(gradient[index].item(), rel=1e-5, abs=1e-9)


box_strategy = st.tuples(
    st.integers(0, 1),
    st.integers(0, 4),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1) | st.sampled_from([1e-9, 1e-4]),
    st.floats(0, 1) | st.sampled_from([1e-9, 1e-4]),
)


@given(
    boxes=st.lists(box_strategy, max_size=12),
    spread=st.sampled_from([0.0, 1.0, 100.0]),
    assigner=st.sampled_from(["none", "coarse_to_fine"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=60)
def test_loss_and_gradient_are_finite(
    boxes: list[tuple[float, ...]], spread: float, assigner: str, dtype: torch.dtype
) -> None:
    predictions = make_predictions(0, image_size=SIZE, heads=2, spread=spread, dtype=dtype)
    predictions = [level.requires_grad_() for level in predictions]
    result = make_loss(assigner=assigner)(predictions, torch.tensor(boxes).view(-1, 6), SIZE)
    result.total.backward()
    assert result.total.dtype == torch.float32
    assert result.total.isfinite()
    for level in predictions[: 6 if assigner == "coarse_to_fine" else 3]:
        assert level.grad is not None
        assert level.grad.dtype == dtype
        assert level.grad.isfinite().all()


def test_order_of_the_targets_does_not_matter() -> None:
    predictions, targets = make_predictions(3, image_size=SIZE), make_targets(3, 25)
    loss = make_loss()
    wanted = loss(predictions, targets, SIZE).total
    shuffled = targets[torch.randperm(25, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(loss(predictions, shuffled, SIZE).total, wanted)


def test_total_has_the_published_scale_and_empty_images_only_objectness() -> None:
    predictions = make_predictions(4, image_size=SIZE)
    result = make_loss()(predictions, torch.zeros(0, 6), SIZE)
    assert result.box == result.classification == 0
    torch.testing.assert_close(result.total, 2 * result.objectness)
    assert result.num_positives == 0


def test_auxiliary_terms_count_a_quarter() -> None:
    predictions, targets = make_predictions(5, image_size=SIZE, heads=1) * 2, make_targets(5, 20)
    lead = make_loss(assigner="lead", auxiliary_weight=0.0)(predictions, targets, SIZE).total
    both = make_loss(assigner="lead")(predictions, targets, SIZE).total
    torch.testing.assert_close(both, lead * 1.25)


def test_constraint_lowers_only_coarse_cells() -> None:
    predictions, targets = make_predictions(6, image_size=SIZE, heads=2), make_targets(6, 20)
    for level in predictions:
        level[..., 4] = -9.0  # then cross-entropy grows with the target
    free = make_loss(assigner="coarse_to_fine")(predictions, targets, SIZE)
    capped = make_loss(assigner="coarse_to_fine", constraint=True)(predictions, targets, SIZE)
    assert capped.objectness < free.objectness
    assert (capped.box, capped.classification) == (free.box, free.classification)
    for assigner in ("none", "lead", "independent"):
        results = [make_loss(assigner=assigner, constraint=on)(predictions, targets, SIZE) for on in (False, True)]
        assert results[0].total == results[1].total


def test_the_cap_falls_by_half_a_cell_to_nothing_at_two_cells() -> None:
    distance = torch.tensor([0.0, 0.5, 1.0, 1.6, 2.0, 3.0])
    torch.testing.assert_close(compute_objectness_cap(distance), torch.tensor([1.0, 0.75, 0.5, 0.2, 0.0, 0.0]))


def test_the_objectness_target_of_a_coarse_cell_is_capped_by_its_distance() -> None:
    # The object's centre is 0.9 cells right of and 0.4 below the corner of its cell; one neighbour is coarse only.
    targets = torch.tensor([[0, 1, 4.9 / 16, 4.4 / 12, 0.1, 0.15]])
    loss = make_loss(assigner="coarse_to_fine", matching="fixed", constraint=True)
    boxes, found = loss.match(make_predictions(6, 1, SIZE, heads=2), targets, SIZE)
    assert found.auxiliary is not None
    grids = ((12, 16), (6, 8), (3, 4))
    levels = make_levels(loss.anchors, loss.strides, grids, 1, torch.device("cpu"), torch.float32)
    caps = cap_coarse_cells(found.lead, found.auxiliary, boxes, levels)
    cells = {
        (row, column): cap
        for row, column, prior, cap in zip(
            *(field.tolist() for field in (found.auxiliary.row, found.auxiliary.column, found.auxiliary.prior, caps)),
            strict=True,
        )
        if prior < 3  # of the finest level
    }
    fine = {(4, 4): 1.0, (4, 5): 1.0, (3, 4): 1.0}
    coarse = {(4, 3): 1 - math.hypot(1.4, 0.1) / 2, (5, 4): 1 - math.hypot(0.4, 1.1) / 2}
    assert cells == pytest.approx(fine | coarse, abs=1e-5)


def test_class_weights_scale_the_class_term() -> None:
    predictions, targets = make_predictions(7, image_size=SIZE), make_targets(7, 20)
    plain = make_loss()(predictions, targets, SIZE)
    doubled = make_loss(class_weights=[2.0] * 5)(predictions, targets, SIZE)
    torch.testing.assert_close(doubled.classification, 2 * plain.classification)
    assert doubled.box == plain.box


def test_focal_cross_entropy_is_the_paper_s_for_hard_targets() -> None:
    logits, target = torch.linspace(-4, 4, 9), torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    p = torch.where(target > 0, logits.sigmoid(), 1 - logits.sigmoid())
    alpha = torch.where(target > 0, 0.25, 0.75)
    torch.testing.assert_close(compute_cross_entropy(logits, target, 1.0, 2.0), -alpha * (1 - p) ** 2 * p.log())
    plain = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    torch.testing.assert_close(compute_cross_entropy(logits, target, 1.0, 0.0), plain)


@pytest.mark.parametrize("gamma", [0.0, 1.5])
def test_objectness_term_is_the_mean_over_all_cells(gamma: float) -> None:
    predictions, targets = make_predictions(10, image_size=SIZE), make_targets(10, 30)
    loss = make_loss(matching="fixed", hyperparameters={"fl_gamma": gamma, "obj_pw": 1.7})
    boxes, found = loss.match(predictions, targets, SIZE)
    rows, objectness = read_predictions(predictions, found.lead.cell, found.lead.level_sizes)
    wanted = torch.linspace(0, 1, len(rows))
    dense = torch.zeros_like(objectness)
    for cell, target in zip(found.lead.cell.tolist(), wanted.tolist(), strict=True):
        dense[cell] = target  # the slots of a cell are in the published order: the last one stays
    cells = [level.shape[:4].numel() for level in predictions]
    parts = torch.split(compute_cross_entropy(objectness, dense, 1.7, gamma), cells)
    expected = sum(part.mean() * balance for part, balance in zip(parts, (4.0, 1.0, 0.4), strict=True))
    term = compute_objectness_term(objectness, rows[:, 4], wanted, found.lead, cells, (4.0, 1.0, 0.4), loss.settings)
    torch.testing.assert_close(term, expected)
    assert len(boxes) == 30


def test_complete_iou_of_simple_boxes() -> None:
    box = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    assert complete_iou(box, box).quality.item() == pytest.approx(1.0, abs=1e-6)
    apart = torch.tensor([[3.0, 0.0, 2.0, 2.0]])  # no overlap; enclosing diagonal 25 + 4, centre distance 9
    assert complete_iou(box, apart).quality.item() == pytest.approx(-9 / 29, abs=1e-6)
    nothing = torch.zeros(1, 4, requires_grad=True)
    quality = complete_iou(nothing, box).quality
    quality.sum().backward()
    assert math.isfinite(quality.item())
    assert nothing.grad is not None
    assert nothing.grad.isfinite().all()


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"assigner": "simota"}, "no assigner 'simota'"),
        ({"matching": "greedy"}, "matching is 'greedy'"),
        ({"relaxation": 2.0}, "relaxation is 2.0"),
        ({"auxiliary_weight": -1.0}, "auxiliary_weight is -1.0"),
        ({"class_weights": [1.0]}, "class_weights has shape"),
        ({"hyperparameters": {"anchor_t": 0.5}}, "anchor_t is 0.5"),
        ({"hyperparameters": {"label_smoothing": 2}}, "label_smoothing is 2"),
    ],
)
def test_wrong_settings_are_named(settings_: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, UserError), match=message):
        make_loss(**settings_)


def test_wrong_input_is_named() -> None:
    predictions, targets = make_predictions(8, image_size=SIZE), make_targets(8, 3)
    with pytest.raises(ValueError, match="needs auxiliary levels"):
        make_loss(assigner="lead")(predictions, targets, SIZE)
    with pytest.raises(ValueError, match="2 levels predicted"):
        make_loss()(predictions[:2], targets, SIZE)
    with pytest.raises(ValueError, match="expected at"):
        make_loss()(predictions, targets, (96, 96))
    with pytest.raises(ValueError, match=r"targets must be \(N, 6\)"):
        make_loss()(predictions, targets[:, :5], SIZE)
    with pytest.raises(ValueError, match="they are a ndarray"):
        make_loss()(predictions, targets.numpy(), SIZE)  # type: ignore[arg-type]
    for nothing in ([], [level[:0] for level in predictions]):
        with pytest.raises(ValueError, match="nothing to learn from"):
            make_loss()(nothing, targets, SIZE)
    targets[1, 1] = 19
    with pytest.raises(ValueError, match="target row 1 has class index 19; the class indices here are 0 to 4"):
        make_loss()(predictions, targets, SIZE)
    targets[1, :2] = torch.tensor([2.0, 0.0])
    with pytest.raises(ValueError, match="target row 1 has image index 2"):
        make_loss()(predictions, targets, SIZE)


@pytest.mark.parametrize("gamma", [0.5, 1.5])
def test_the_focal_gradient_is_finite_where_scores_saturate(gamma: float) -> None:
    predictions = [level.mul_(100.0).requires_grad_() for level in make_predictions(4, image_size=SIZE)]
    result = make_loss(hyperparameters={"fl_gamma": gamma})(predictions, make_targets(4, 6), SIZE)
    result.total.backward()
    assert result.total.isfinite()
    assert all(level.grad is not None and level.grad.isfinite().all() for level in predictions)


def test_one_loss_serves_inference_mode_and_threads_and_can_be_copied() -> None:
    loss, size = make_loss(), SIZE
    cases = [(make_predictions(seed, image_size=size), make_targets(seed, 4 + 5 * seed)) for seed in range(4)]
    wanted = [make_loss()(*case, size).total for case in cases]
    with torch.inference_mode():
        assert loss(*cases[3], size).total == wanted[3]
    for other in (loss, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert other(*cases[0], size).total == wanted[0]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: loss(*cases[number % 4], size).total, range(80)))
    assert found == wanted * 20


def test_one_class_has_no_class_term() -> None:
    predictions, targets = make_predictions(9, image_size=SIZE, num_classes=1), make_targets(9, 5, num_classes=1)
    assert make_loss(1)(predictions, targets, SIZE).classification == 0


def test_strides_and_anchors_must_agree() -> None:
    with pytest.raises(ValueError, match="anchors must be positive"):
        DetectionLoss(anchors=[[[1, 2]]], strides=STRIDES, num_classes=5, hyperparameters=GAINS)
    with pytest.raises(ValueError, match=r"strides are \[0\]"):
        DetectionLoss(anchors=[[[1, 2]]], strides=[0], num_classes=5, hyperparameters=GAINS)
    with pytest.raises(ValueError, match="num_classes is 0"):
        DetectionLoss(anchors=[[[1, 2]]], strides=[8], num_classes=0, hyperparameters=GAINS)
    with pytest.raises(ValueError, match="class_weights are"):
        make_loss(class_weights=[1, 1, -1, 1, 1])
    with pytest.raises(ValueError, match="lack obj"):
        DetectionLoss(anchors=[[[1, 2]]], strides=[8], num_classes=5, hyperparameters={"box": 1, "cls": 1})


@pytest.mark.parametrize("side", [2, 3])
def test_boxes_without_area_or_finite_sides_are_left_out_unless_asked_for(side: int) -> None:
    targets = torch.tensor([[0.0, 1, 0.5, 0.5, 0.2, 0.3], [0, 2, 0.5, 0.5, 0.2, 0.3], [1, 0, 0.1, 0.1, 0.1, 0.1]])
    targets[1, 2 + side] = 0.0
    assert read_boxes(targets, 2, 3, torch.float64, keep_degenerate=False).label.tolist() == [1, 0]
    assert read_boxes(targets, 2, 3, torch.float64, keep_degenerate=True).label.tolist() == [1, 2, 0]
    targets[1, 2 + side] = math.nan
    assert read_boxes(targets, 2, 3, torch.float64, keep_degenerate=False).label.tolist() == [1, 0]


def test_smoothed_class_targets_by_hand() -> None:
    logits = torch.tensor([[0.3, -1.2, 2.0]], dtype=torch.float64)
    numbers = LossSettings(box_gain=1.0, class_gain=1.0, objectness_gain=1.0, label_smoothing=0.2)
    found = compute_class_term(logits, torch.tensor([2]), torch.tensor([0.5], dtype=torch.float64), numbers, None)
    target = torch.tensor([[0.1, 0.1, 0.9]], dtype=torch.float64)
    wanted = F.binary_cross_entropy(logits.sigmoid(), target) * 0.5
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)


def test_a_level_without_positives_counts_nothing_and_gives_no_nan() -> None:
    empty = torch.zeros(3, dtype=torch.bool)
    slots = torch.zeros(3, dtype=torch.long)
    positives = Candidates((2, 1), empty, *([slots] * (len(fields(Candidates)) - 2)))
    assert compute_level_weights(positives, [4.0, 1.0], torch.float64).tolist() == [0.0, 0.0, 0.0]


def test_the_entropy_of_a_sure_background_keeps_its_logarithm() -> None:
    logit = torch.tensor([25.0], dtype=torch.float64)
    assert _compute_background_entropy(logit, 0.0).item() == 25.0 + math.log1p(math.exp(-25.0))


@given(st.integers(0, 10_000))
def test_the_published_class_cost_is_the_exact_one_where_nothing_saturates(seed: int) -> None:
    rows = 4 * torch.rand(6, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 2
    torch.testing.assert_close(compute_published_class_cost(rows), compute_class_cost(rows), rtol=1e-9, atol=1e-9)
