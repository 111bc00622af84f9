"""Non-maximum suppression: exact, greedy by score, in blocks.

Greedy suppression looks sequential, yet only kept boxes can suppress. So candidates are processed in blocks of
descending score: first the boxes that the kept ones suppress leave the block, then the block is solved by iterating
`a box is kept if no kept better one suppresses it` to its fixpoint, which is the greedy result. It stops as soon as
`max_detections` are kept, which at confidence 0.001 is long before the 30,000th candidate: the classic operator always
compares all pairs, this one compares blocks with the few boxes that it keeps.

On a CPU most pairs are not even compared: boxes of one class whose left sides are far apart cannot overlap enough, and
those that are near are found in sorted order. An accelerator compares whole blocks: few and large operations.

Classes are separated by comparing class numbers, not by moving boxes 4096 px a class as is usual: in float32 that
rounds coordinates to 1/32 px at class 79, and boxes far outside the image collide with their neighbour class.

Limits: one image at a time; equal scores keep their order in the input; a non-finite box is not a candidate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Indices = NDArray[np.int64]

FIRST_BLOCK, LARGEST_BLOCK = 192, 16_384
"""On a CPU blocks double: few candidates need one, and many are met by few blocks."""
MOST_PAIRS = 2**20
"""Pairs that are compared at a time, however many boxes lie over each other."""
FAR = 2.0**21
"""Left sides are put in order as if none were further out than this (pixels)."""
ACCELERATOR_BLOCK = 1024
"""Fewer rounds: each one synchronises with the device once or twice."""


def non_maximum_suppression(
    decoded: Tensor,
    *,
    confidence: float,
    iou: float,
    max_detections: int = 300,
    multi_label: bool = True,
    class_agnostic: bool = False,
    classes: Sequence[int] | None = None,
    max_candidates: int = 30000,
) -> list[Tensor]:
    """Turn decoded predictions into detections.

    Args:
        decoded: (B, N, 5 + C): centre x, centre y, width, height in pixels, objectness and class probabilities.
        confidence: A candidate's objectness and its score (objectness x class probability) must both exceed this.
        iou: A box overlapping a better one of its class by more than this is suppressed.
        max_detections: Kept per image, best first.
        multi_label: Each class above `confidence` makes a candidate of its own; otherwise only the best class does.
        class_agnostic: Boxes suppress each other whatever their classes.
        classes: Class indices to keep (None: all).
        max_candidates: The best ones that enter suppression, per image.

    Returns:
        Per image (k, 6): x1, y1, x2, y2 in pixels, score, class index; descending score.

    Raises:
        ValueError: `decoded` is not (B, N, 5 + C) with C >= 1.
    """
    if decoded.dim() != 3 or decoded.shape[2] < 6:
        raise ValueError(f"decoded predictions are (B, N, 5 + C) with C >= 1, not {tuple(decoded.shape)}")
    detections = []
    for predictions in decoded.detach().float():  # (N, 5 + C); half precision could not tell scores apart
        boxes, scores, labels = _candidates(predictions, confidence, multi_label, classes, max_candidates)
        kept = suppress(boxes, None if class_agnostic else labels, iou=iou, max_kept=max_detections)
        detections.append(torch.cat((boxes[kept], scores[kept, None], labels[kept, None].to(boxes.dtype)), dim=1))
    return detections


def suppress(boxes: Tensor, labels: Tensor | None, *, iou: float, max_kept: int) -> Tensor:
    """Suppress boxes greedily that are already in descending order of score.

    Args:
        boxes: (K, 4) x1, y1, x2, y2.
        labels: (K,) class indices; only equal ones suppress each other. None: all do.
        iou: Strictly greater overlaps are suppressed.
        max_kept: Stop after this many.

    Returns:
        Indices of the kept boxes, ascending, at most `max_kept`.
    """
    if boxes.device.type == "cpu":
        numbers = None if labels is None else labels.numpy()
        return torch.from_numpy(_suppress_near(boxes.float().numpy(), numbers, iou, max_kept))
    return _suppress_blocks(boxes, labels, iou, max_kept)


def _suppress_near(boxes: NDArray[np.float32], labels: NDArray[np.int64] | None, iou: float, max_kept: int) -> Indices:
    """Suppress on a CPU: a box is compared with those whose left sides are near its own."""
    boxes_in_order = _BoxesInOrder(boxes, labels, iou)
    kept = none = np.empty(0, np.int64)
    start, block = 0, FIRST_BLOCK
    while start < len(boxes) and len(kept) < max_kept:
        rows = np.arange(start, min(start + block, len(boxes)))
        # 1. Drop what the boxes kept so far suppress: their decision is final, they have higher scores.
        if len(kept):
            is_left = np.ones(len(rows), bool)
            for _, suppressed in boxes_in_order.overlaps(kept, rows):
                is_left[suppressed] = False
            rows = rows[is_left]
        # 2. Decide inside the block. A box is kept if no kept better box suppresses it. The best box is decided at
        # once, and each round decides at least one more, so the fixpoint is the greedy result.
        pairs = list(boxes_in_order.overlaps(rows, rows))
        better, worse = (np.concatenate(part) for part in zip(*pairs, strict=True)) if pairs else (none, none)
        keep, before = np.ones(len(rows), bool), None
        while before is None or not np.array_equal(keep, before):  # in practice six or seven rounds
            keep, before = np.ones(len(rows), bool), keep
            keep[worse[before[better]]] = False
        kept = np.concatenate((kept, rows[keep]))
        start, block = start + block, min(2 * block, LARGEST_BLOCK)
    return kept[:max_kept]


class _BoxesInOrder:
    """Finds the boxes that overlap others by more than a threshold.

    If two boxes have an IoU above t, they share more than t of the width of each. So with w the width of a box, the
    left side of the other lies less than (1 - t) w to its right, and, as the other is less than w / t wide, less
    than (1 - t) w / t to its left. That range is searched in the sorted left sides, with a little more for rounding.
    """

    def __init__(self, boxes: NDArray[np.float32], labels: NDArray[np.int64] | None, iou: float) -> None:
        self._iou = iou
        self._sides = np.ascontiguousarray(boxes.T)  # (4, K)
        left, right = self._sides[0].astype(np.float64), self._sides[2].astype(np.float64)
        with np.errstate(all="ignore"):  # an area may be infinite: its overlaps are 0 or NaN
            self._areas = (self._sides[2] - self._sides[0]) * (self._sides[3] - self._sides[1])
        width = np.maximum(right - left, 0)
        self._left = np.clip(left, -FAR, FAR)
        if labels is not None:
            self._left += labels * (8 * FAR)  # only for the order: a class ends where the next is out of reach
        rounding = 1e-3 * (width + 1)  # of the coordinates in float32
        self._last = self._left + np.minimum((1 - iou) * width + rounding, 2 * FAR)
        self._first = self._left - np.minimum((1 - iou) / max(iou, 1e-9) * width + rounding, 2 * FAR)

    def overlaps(self, better: Indices, worse: Indices) -> Iterator[tuple[Indices, Indices]]:
        """Yield positions in `better` (P,) and `worse` (Q,) of boxes that overlap, at most `MOST_PAIRS` at a time."""
        order = np.argsort(self._left[worse], kind="stable")
        left = self._left[worse[order]]
        first = np.searchsorted(left, self._first[better])
        counts = np.searchsorted(left, self._last[better], side="right") - first
        ends = np.cumsum(counts)
        start = 0
        while start < len(better):
            done = ends[start - 1] if start else 0
            end = max(start + 1, int(np.searchsorted(ends, done + MOST_PAIRS, side="right")))
            part = slice(start, end)
            one = np.repeat(np.arange(start, end), counts[part])
            other = order[np.arange(len(one)) + np.repeat(first[part] - ends[part] + counts[part] + done, counts[part])]
            if better is worse:
                once = one < other
                one, other = one[once], other[once]
            overlapping = self._iou_of(better[one], worse[other]) > self._iou
            yield one[overlapping], other[overlapping]
            start = end

    def _iou_of(self, first: Indices, second: Indices) -> NDArray[np.float32]:
        """Return the IoU of each pair, in the operations of `box_iou`."""
        one, other = self._sides.take(first, axis=1), self._sides.take(second, axis=1)
        size = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
        np.maximum(size, 0, out=size)
        with np.errstate(all="ignore"):  # 0/0 is NaN, which is not above the threshold
            intersection = size[0] * size[1]
            iou: NDArray[np.float32] = intersection / (self._areas[first] + self._areas[second] - intersection)
            return iou


def _suppress_blocks(boxes: Tensor, labels: Tensor | None, iou: float, max_kept: int) -> Tensor:
    """Suppress on an accelerator: the same two steps, each comparing whole blocks."""
    kept = torch.empty(0, dtype=torch.long, device=boxes.device)
    for start in range(0, len(boxes), ACCELERATOR_BLOCK):
        if len(kept) >= max_kept:
            break
        rows = torch.arange(start, min(start + ACCELERATOR_BLOCK, len(boxes)), device=boxes.device)
        if len(kept):
            rows = rows[~_overlaps(boxes, labels, kept, rows, iou).any(dim=0)]
        suppresses = _overlaps(boxes, labels, rows, rows, iou).triu(diagonal=1).to(boxes.dtype)  # (R, R) better x worse
        keep = torch.ones(len(rows), dtype=torch.bool, device=boxes.device)
        while True:
            updated = (keep.to(boxes.dtype) @ suppresses) == 0
            if torch.equal(updated, keep):
                break
            keep = updated
        kept = torch.cat((kept, rows[keep]))
    return kept[:max_kept]


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the IoU of every pair: (P, 4) and (Q, 4) x1, y1, x2, y2 -> (P, Q); 0/0 gives NaN."""
    top_left = torch.maximum(first[:, None, :2], second[None, :, :2])  # (P, Q, 2)
    bottom_right = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    width, height = (bottom_right - top_left).clamp_(min=0).unbind(dim=2)
    intersection = width * height
    first_area = (first[:, 2] - first[:, 0]) * (first[:, 3] - first[:, 1])
    second_area = (second[:, 2] - second[:, 0]) * (second[:, 3] - second[:, 1])
    return intersection / (first_area[:, None] + second_area[None, :] - intersection)


def _overlaps(boxes: Tensor, labels: Tensor | None, better: Tensor, worse: Tensor, iou: float) -> Tensor:
    """Return (P, Q): whether a box of `better` (P,) would suppress one of `worse` (Q,)."""
    overlapping = box_iou(boxes[better], boxes[worse]) > iou
    if labels is None:
        return overlapping
    return overlapping & (labels[better][:, None] == labels[worse][None, :])


def _candidates(
    predictions: Tensor, confidence: float, multi_label: bool, classes: Sequence[int] | None, limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes (K, 4) x1, y1, x2, y2, scores (K,) and class indices (K,) of the best K <= limit of (N, 5 + C)."""
    # 1. Rows whose objectness alone is too low cannot reach the confidence: drop them before any class is computed.
    plausible = (predictions[:, 4] > confidence) & predictions[:, :4].isfinite().all(dim=1)
    predictions = predictions.index_select(0, plausible.nonzero().squeeze(1))  # (M, 5 + C)
    # 2. The score of each class. A detector of one class is trained without a class term: its objectness is the score.
    scores = predictions[:, 4:5] if predictions.shape[1] == 6 else predictions[:, 5:] * predictions[:, 4:5]  # (M, C)
    num_classes = scores.shape[1]
    passing = scores > confidence
    if not multi_label:
        passing &= torch.zeros_like(passing).scatter_(1, scores.argmax(dim=1, keepdim=True), True)
    if classes is not None:
        passing &= torch.isin(torch.arange(num_classes), torch.tensor(list(classes))).to(passing.device)
    # 3. The best candidates over all rows and classes, by descending score.
    chosen = passing.flatten().nonzero().squeeze(1)  # positions in the flat (M x C)
    scores = scores.flatten()[chosen]
    order = _best_first(scores, limit)
    chosen, scores = chosen[order], scores[order]
    # 4. Their corners and class indices.
    rows = chosen.div(num_classes, rounding_mode="floor")
    centre, half_size = predictions[rows, :2], predictions[rows, 2:4] / 2
    return torch.cat((centre - half_size, centre + half_size), dim=1), scores, chosen - rows * num_classes


def _best_first(scores: Tensor, limit: int) -> Tensor:
    """Return the indices of the `limit` highest scores, descending; equal scores keep the input order on any device."""
    if len(scores) <= limit:
        return scores.argsort(descending=True, stable=True)
    threshold = scores.topk(limit, sorted=False).values.min()
    better = (scores > threshold).nonzero().squeeze(1)
    equal = (scores == threshold).nonzero().squeeze(1)[: limit - len(better)]
    chosen = torch.cat((better, equal)).sort().values
    return chosen[scores[chosen].argsort(descending=True, stable=True)]
