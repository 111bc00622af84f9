"""The default assignment as plain loops over images and boxes, from the paper and the written rules: the judge."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

NEIGHBOURS = ((0, 0), (1, 0), (0, 1), (-1, 0), (0, -1))


@dataclass(frozen=True)
class Candidate:
    level: int
    image: int
    anchor: int
    row: int
    column: int
    target: int


def candidates_of(
    targets: Tensor, grids: list[tuple[int, int]], anchors: Tensor, strides: list[int], reach: float
) -> list[Candidate]:
    """Candidates in the published order: by level, neighbour, anchor, target."""
    found = []
    for level, (height, width) in enumerate(grids):
        for move_x, move_y in NEIGHBOURS:
            for anchor in range(anchors.shape[1]):
                anchor_width, anchor_height = (anchors[level, anchor] / strides[level]).tolist()
                for target, (image, _, x, y, w, h) in enumerate(targets.tolist()):
                    x, w, y, h = x * width, w * width, y * height, h * height
                    if not (w > 0 and h > 0):
                        continue
                    if max(w / anchor_width, anchor_width / w, h / anchor_height, anchor_height / h) >= 4.0:
                        continue
                    if move_x == 1 and not (x % 1 < reach and x > 1):
                        continue
                    if move_y == 1 and not (y % 1 < reach and y > 1):
                        continue
                    if move_x == -1 and not ((width - x) % 1 < reach and width - x > 1):
                        continue
                    if move_y == -1 and not ((height - y) % 1 < reach and height - y > 1):
                        continue
                    column = min(max(int(x - move_x * reach), 0), width - 1)
                    row = min(max(int(y - move_y * reach), 0), height - 1)
                    found.append(Candidate(level, int(image), anchor, row, column, target))
    return found


def softplus(value: float) -> float:
    return max(value, 0.0) + math.log1p(math.exp(-abs(value)))


def class_cost(logits: list[float], objectness: float, label: int) -> float:
    """Cross-entropy of sqrt(sigmoid(class) sigmoid(object)) with the one-hot class, exact at any logit."""
    total = 0.0
    for index, logit in enumerate(logits):
        log_score = -(softplus(-logit) + softplus(-objectness)) / 2
        # 1 - y^2 = sigmoid(-c) + sigmoid(c) sigmoid(-o)
        log_rest = math.log(math.exp(-softplus(logit)) + math.exp(-softplus(-logit) - softplus(objectness)))
        total -= log_score if index == label else log_rest - math.log1p(math.exp(log_score))
    return total


def overlap(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    width = max(0.0, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(0.0, min(first[3], second[3]) - max(first[1], second[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (sum(areas) - width * height)


def match(
    guide: list[Tensor], targets: Tensor, anchors: Tensor, strides: list[int], reach: float, num_best: int
) -> list[list[tuple[int, ...]]]:
    """Positives per level as sorted (image, anchor, row, column, target)."""
    grids = [(level.shape[2], level.shape[3]) for level in guide]
    found = candidates_of(targets, grids, anchors, strides, reach)
    positives: list[list[tuple[int, ...]]] = [[] for _ in guide]
    height, width = grids[0][0] * strides[0], grids[0][1] * strides[0]
    for image in range(len(guide[0])):
        boxes = [t for t, row in enumerate(targets.tolist()) if row[0] == image and row[4] > 0 and row[5] > 0]
        pool = [candidate for candidate in found if candidate.image == image]
        if not boxes or not pool:
            continue
        overlaps, costs = [], []
        for target in boxes:
            _, label, x, y, w, h = targets[target].tolist()
            wanted = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
            overlaps.append([])
            costs.append([])
            for place in pool:
                logits = guide[place.level][image, place.anchor, place.row, place.column].tolist()
                stride = strides[place.level]
                share = [1 / (1 + math.exp(-value)) for value in logits[:4]]
                centre_x = (share[0] * 2 - 0.5 + place.column) * stride
                centre_y = (share[1] * 2 - 0.5 + place.row) * stride
                half_w = (share[2] * 2) ** 2 * anchors[place.level, place.anchor, 0].item() / 2
                half_h = (share[3] * 2) ** 2 * anchors[place.level, place.anchor, 1].item() / 2
                box = (centre_x - half_w, centre_y - half_h, centre_x + half_w, centre_y + half_h)
                iou = overlap(wanted, box)
                overlaps[-1].append(iou)
                costs[-1].append(class_cost(logits[5:], logits[4], int(label)) - 3 * math.log(iou + 1e-8))
        takers: list[list[int]] = [[] for _ in pool]
        for box in range(len(boxes)):
            wanted_number = max(1, int(sum(sorted(overlaps[box], reverse=True)[:num_best])))
            for place in sorted(range(len(pool)), key=lambda p, b=box: costs[b][p])[:wanted_number]:
                takers[place].append(box)
        for index, place in enumerate(pool):
            if takers[index]:
                taker = takers[index][0]
                if len(takers[index]) > 1:
                    taker = min(range(len(boxes)), key=lambda b, i=index: costs[b][i])
                positives[place.level].append((image, place.anchor, place.row, place.column, boxes[taker]))
    return [sorted(level) for level in positives]
