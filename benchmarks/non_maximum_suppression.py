"""Suppression against torchvision's and OpenCV's batched ones and a greedy loop, on the same candidates, in one run.

    python benchmarks/non_maximum_suppression.py [--json] [--rounds 5]

One image, 80 classes, IoU 0.65, at most 300 detections, one thread, processor milliseconds, medians over rounds in
which the peers take turns. Candidates crowd around 40 objects, as at confidence 0.001. `whole` is the step from decoded
predictions (25,200 boxes x 80 classes, a 640 px image) to detections, with that many candidates above confidence.
`unlimited` keeps all that is not suppressed. torchvision is no dependency of the project, and the CUDA build of it does
not load beside the CPU build of torch: where it cannot be imported its columns are null.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import cv2
import torch
from torch import Tensor

from yolofleet.evaluation.nms import box_iou, non_maximum_suppression, suppress

try:
    from torchvision.ops import batched_nms
except (ImportError, RuntimeError):  # not there, or built for another torch
    batched_nms = None

NUM_CLASSES, NUM_OBJECTS, NUM_BOXES = 80, 40, 25_200
IOU, CONFIDENCE, MAX_DETECTIONS = 0.65, 0.001, 300


def candidates(number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (K, 4), scores (K,) in descending order and labels (K,), crowded around a few objects."""
    generator = torch.Generator().manual_seed(number)
    centre = torch.rand(NUM_OBJECTS, 2, generator=generator) * 640
    size = torch.rand(NUM_OBJECTS, 2, generator=generator) * 150 + 10
    label = torch.randint(NUM_CLASSES, (NUM_OBJECTS,), generator=generator)
    chosen = torch.randint(NUM_OBJECTS, (number,), generator=generator)
    middle = centre[chosen] + torch.randn(number, 2, generator=generator) * 10
    half = size[chosen] * torch.exp(torch.randn(number, 2, generator=generator) * 0.2) / 2
    stray = torch.rand(number, generator=generator) < 0.3
    labels = torch.where(stray, torch.randint(NUM_CLASSES, (number,), generator=generator), label[chosen])
    scores = torch.rand(number, generator=generator).pow(3).sort(descending=True).values
    return torch.cat((middle - half, middle + half), dim=1), scores, labels


def greedy_loop(boxes: Tensor, labels: Tensor) -> Tensor:
    """The usual loop in torch: take the best box, drop what it suppresses, go on; stops at the limit."""
    left = torch.arange(len(boxes))
    kept = []
    while len(left) and len(kept) < MAX_DETECTIONS:
        best = left[0]
        kept.append(int(best))
        overlapping = box_iou(boxes[best][None], boxes[left])[0] > IOU
        left = left[~(overlapping & (labels[left] == labels[best])) & (left != best)]
    return torch.tensor(kept)


def opencv(boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
    """OpenCV's suppression by class; it has no limit, so the best ones are taken afterwards."""
    corner_size = torch.cat((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), dim=1)
    kept = cv2.dnn.NMSBoxesBatched(corner_size.numpy(), scores.numpy(), labels.int().numpy(), 0.0, IOU)
    return torch.as_tensor(sorted(int(index) for index in kept)[:MAX_DETECTIONS])


def torchvision_batched(boxes: Tensor, scores: Tensor, labels: Tensor, limit: int | None) -> Tensor:
    """Torchvision's suppression by class, which has no limit either."""
    return batched_nms(boxes, scores, labels, IOU)[:limit]


def decoded_with(number: int) -> Tensor:
    """Decoded predictions (1, 25200, 85) of which about `number` box and class pairs pass the confidence."""
    boxes, scores, labels = candidates(number)
    rows = torch.randperm(NUM_BOXES, generator=torch.Generator().manual_seed(1))[: min(number, NUM_BOXES)]
    decoded = torch.zeros(1, NUM_BOXES, 5 + NUM_CLASSES)
    for start in range(0, number, len(rows)):  # more candidates than boxes: further classes of the same boxes
        part = slice(start, min(start + len(rows), number))
        count = part.stop - part.start
        decoded[0, rows[:count], :4] = torch.cat(
            ((boxes[part, :2] + boxes[part, 2:]) / 2, boxes[part, 2:] - boxes[part, :2]), dim=1
        )
        decoded[0, rows[:count], 4] = 1
        decoded[0, rows[:count], 5 + (labels[part] + start // len(rows)) % NUM_CLASSES] = scores[part] + 2 * CONFIDENCE
    return decoded


def milliseconds(cases: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median processor milliseconds of each case, taken in turns."""
    spent: dict[str, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        case()
    for _ in range(rounds):
        for name, case in cases.items():
            start = time.process_time()
            case()
            spent[name].append((time.process_time() - start) * 1000)
    return {name: round(statistics.median(values), 2) for name, values in spent.items()}


def measured(number: int, rounds: int) -> dict[str, float | int | bool | None]:
    """One row of the table."""
    boxes, scores, labels = candidates(number)
    decoded = decoded_with(number)
    ours = suppress(boxes, labels, iou=IOU, max_kept=MAX_DETECTIONS)
    equal = torch.equal(ours, greedy_loop(boxes, labels))
    cases: dict[str, Callable[[], object]] = {
        "yolofleet": lambda: suppress(boxes, labels, iou=IOU, max_kept=MAX_DETECTIONS),
        "unlimited": lambda: suppress(boxes, labels, iou=IOU, max_kept=number),
        "greedy_loop": lambda: greedy_loop(boxes, labels),
        "opencv": lambda: opencv(boxes, scores, labels),
        "whole": lambda: non_maximum_suppression(decoded, confidence=CONFIDENCE, iou=IOU),
    }
    if batched_nms is not None:
        equal &= torch.equal(ours, torchvision_batched(boxes, scores, labels, MAX_DETECTIONS))
        cases["torchvision"] = lambda: torchvision_batched(boxes, scores, labels, None)
    spent = milliseconds(cases, rounds)
    row: dict[str, float | int | bool | None] = {"candidates": number, "kept": len(ours), "equal": equal, **spent}
    for peer in ("greedy_loop", "opencv", "torchvision"):
        row[f"times_faster_than_{peer}"] = round(spent[peer] / spent["yolofleet"], 2) if peer in spent else None
    row["times_faster_than_torchvision_unlimited"] = (
        round(spent["torchvision"] / spent["unlimited"], 2) if "torchvision" in spent else None
    )
    return row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows = [measured(number, arguments.rounds) for number in (10, 100, 300, 1_000, 3_000, 10_000, 30_000)]
    if arguments.json:
        print(json.dumps(rows))
        return
    print("candidates  kept  equal   ours ms   loop    opencv  torchvision (times faster)   unlimited ms (torchvision)")
    for row in rows:
        print(
            f"{row['candidates']:10} {row['kept']:5} {row['equal']!s:>6} {row['yolofleet']:9} "
            f"{row['times_faster_than_greedy_loop']:6} {row['times_faster_than_opencv']:8} "
            f"{row['times_faster_than_torchvision']!s:>12} "
            f"{row['unlimited']:28} ({row['times_faster_than_torchvision_unlimited']})"
        )


if __name__ == "__main__":
    main()
