"""Non-maximum suppression: exact, greedy by score, in blocks, in plain torch.

Greedy suppression looks sequential, yet only kept boxes can suppress. So candidates are processed in blocks of
descending score: first the boxes that the kept ones suppress leave the block (one small matrix), then the block is
solved by iterating `keep = not (keep @ suppresses)` to its fixpoint, which is the greedy result. It stops as soon as
`max_detections` are kept, which at confidence 0.001 is long before the 30,000th candidate: the classic operator always
compares all pairs, this one compares blocks with the few boxes that it keeps.

Classes are separated by comparing class numbers, not by moving boxes 4096 px a class as is usual: in float32 that
rounds coordinates to 1/32 px at class 79, and boxes far outside the image collide with their neighbour class.

Limits: one image at a time; equal scores keep their order in the input; a non-finite box is not a candidate.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CPU_BLOCK = 192  # measured: 128 to 192 are best from 300 to 30,000 candidates
ACCELERATOR_BLOCK = 1024  # fewer rounds: each one synchronises with the device once or twice


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
    block = CPU_BLOCK if boxes.device.type == "cpu" else ACCELERATOR_BLOCK
    kept = torch.empty(0, dtype=torch.long, device=boxes.device)
    for start in range(0, len(boxes), block):
        if len(kept) >= max_kept:
            break
        # 1. Drop what the boxes kept so far suppress: their decision is final, they have higher scores.
        rows = torch.arange(start, min(start + block, len(boxes)), device=boxes.device)
        if len(kept):
            rows = rows[~_overlaps(boxes, labels, kept, rows, iou).any(dim=0)]
        # 2. Decide inside the block. A box is kept if no kept better box suppresses it. The best box is decided at
        # once, and each round decides at least one more, so the fixpoint is the greedy result.
        suppresses = _overlaps(boxes, labels, rows, rows, iou).triu(diagonal=1).to(boxes.dtype)  # (R, R) better x worse
        keep = torch.ones(len(rows), dtype=torch.bool, device=boxes.device)
        while True:  # in practice six or seven rounds
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
