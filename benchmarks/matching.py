"""What label assignment and the loss cost, as ratios to a matrix product of the same run.

    python benchmarks/matching.py [--json] [--rounds 15]
    python benchmarks/matching.py --memory 2000

640 px, batch 16, 80 classes, the yolov7 anchors, one thread, process CPU time, medians over rounds in which the
matrix product and every case take turns, so that what else runs on the machine touches all of them alike. In its turn
a case runs three times, since the published figures are those of calls repeated; the two long ones run once.
`loss` is the forward pass with autograd recording, `step` adds the backward pass, `plain` is the loss without
matching (every candidate is a positive), `looped` is the matching in the structure of the published implementation.

`--memory` measures, in this process, the time of the matching of one image with so many boxes (lowest of three) and how
far the process's resident size rises while it runs.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from looped_matching import looped_matching
from yolofleet.losses import DetectionLoss, scaled_gains

ANCHORS = [
    [(12, 16), (19, 36), (40, 28)],
    [(36, 75), (76, 55), (72, 146)],
    [(142, 110), (192, 243), (459, 401)],
]
STRIDES = (8, 16, 32)
NUM_CLASSES = 80
GAINS = {"box": 0.05, "cls": 0.3, "obj": 0.7, "anchor_t": 4.0}

CALLS_A_TURN = 3

# The published implementation, measured the same way (medians; its matrix product took 190 ms).
PUBLISHED_SGEMM_MS = 190.0
PUBLISHED_MS = {"matching_ms_20": 66.0, "matching_ms_60": 410.0, "loss_ms_20": 92.0, "loss_ms_60": 444.0}


def make_loss(image_size: int = 640, matching: str = "dynamic") -> DetectionLoss:
    """The loss of yolov7 with its recipe's gains."""
    gains = scaled_gains(GAINS, NUM_CLASSES, len(STRIDES), image_size)
    return DetectionLoss(
        anchors=ANCHORS, strides=STRIDES, num_classes=NUM_CLASSES, hyperparameters=gains, matching=matching
    )


def make_predictions(
    batch_size: int, image_size: int = 640, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> list[Tensor]:
    """Raw predictions of a detector early in training: spread boxes, few confident cells."""
    generator = torch.Generator().manual_seed(0)
    levels = []
    for stride in STRIDES:
        side = image_size // stride
        level = torch.randn(batch_size, 3, side, side, 5 + NUM_CLASSES, generator=generator)
        level[..., 4:] -= 2.0
        levels.append(level.to(device, dtype).requires_grad_())
    return levels


def make_targets(batch_size: int, num_boxes: int) -> Tensor:
    """`num_boxes` boxes an image, sides from 1.2 % to 72 % of it: (N, 6).

    They make 72, 272 and 804 candidates an image for 5, 20 and 60 boxes; the published figures had 69, 267 and 800.
    """
    generator = torch.Generator().manual_seed(1)
    number = batch_size * num_boxes
    size = 0.012 * 60.0 ** torch.rand(number, 1, generator=generator)
    size = (size * 2.0 ** (torch.rand(number, 2, generator=generator) - 0.5)).clamp(max=1.0)
    centre = size / 2 + torch.rand(number, 2, generator=generator) * (1.0 - size)
    image = torch.arange(batch_size).repeat_interleave(num_boxes)[:, None]
    label = torch.randint(0, NUM_CLASSES, (number, 1), generator=generator)
    return torch.cat([image, label, centre, size], 1)


def user_seconds() -> float:
    """CPU time of the process outside the kernel."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


def measure(cases: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU milliseconds of each case, taken in turns; of the peer without the kernel's share.

    The peer's tables are so large that the allocator gives them back after each call. How long the kernel then takes
    to hand them out again depends on the machine and is up to ten times the arithmetic, so it is left out.
    """
    for case in cases.values():
        case()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            clock = user_seconds if name.startswith("looped") else time.process_time
            for _ in range(1 if name.startswith(("sgemm", "looped")) else CALLS_A_TURN):
                start = clock()
                case()
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) * 1000.0 for name, values in seconds.items()}


def measure_memory(num_boxes: int) -> dict[str, float]:
    """Match one image with many boxes; what the first call alone needs is not counted."""
    predictions = [level.detach() for level in make_predictions(1)]
    loss, targets = make_loss(), make_targets(1, num_boxes)
    loss.match(predictions, make_targets(1, 1), (640, 640))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(3):
        start = time.process_time()
        loss.match(predictions, targets, (640, 640))
        seconds.append(time.process_time() - start)
    rise = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"boxes": num_boxes, "milliseconds": min(seconds) * 1000.0, "megabytes": rise / 1024.0}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print only JSON")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--memory", type=int, metavar="BOXES", help="only match one image with so many boxes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory:
        print(json.dumps(measure_memory(arguments.memory)))
        return

    image_size = (640, 640)
    predictions = make_predictions(arguments.batch_size)
    detached = [level.detach() for level in predictions]
    dynamic, fixed = make_loss(), make_loss(matching="fixed")
    square = torch.randn(2048, 2048)
    cases: dict[str, Callable[[], object]] = {"sgemm_2048_ms": lambda: square @ square}
    anchors = [torch.tensor(level, dtype=torch.float32) for level in ANCHORS]
    candidates = {}
    peers: dict[str, Callable[[], object]] = {}
    for num_boxes in (5, 20, 60):
        targets = make_targets(arguments.batch_size, num_boxes)
        found = [level[:, :4] for level in fixed.assign(detached, targets, image_size)]
        candidates[str(num_boxes)] = sum(len(level) for level in found) / arguments.batch_size
        cases[f"matching_ms_{num_boxes}"] = lambda t=targets: dynamic.match(detached, t, image_size)
        cases[f"loss_ms_{num_boxes}"] = lambda t=targets: dynamic(predictions, t, image_size)
        cases[f"plain_ms_{num_boxes}"] = lambda t=targets: fixed(predictions, t, image_size)
        cases[f"step_ms_{num_boxes}"] = lambda t=targets: dynamic(predictions, t, image_size).total.backward()
        peers[f"looped_ms_{num_boxes}"] = lambda t=targets, f=found: looped_matching(
            predictions, t, f, anchors, STRIDES, image_size[0]
        )
    result: dict[str, object] = {**measure({**cases, **peers}, arguments.rounds)}
    sgemm = result["sgemm_2048_ms"]
    assert isinstance(sgemm, float)
    for num_boxes in (5, 20, 60):
        looped, matching = result[f"looped_ms_{num_boxes}"], result[f"matching_ms_{num_boxes}"]
        assert isinstance(looped, float) and isinstance(matching, float)
        result[f"matching_times_faster_than_looped_{num_boxes}"] = looped / matching
    for name, published in PUBLISHED_MS.items():
        value = result[name]
        assert isinstance(value, float)
        result[name.replace("_ms_", "_per_sgemm_")] = value / sgemm
        result[name.replace("_ms_", "_times_faster_")] = (published / PUBLISHED_SGEMM_MS) / (value / sgemm)
    result["candidates_per_image"] = candidates
    result["torch"] = torch.__version__
    if arguments.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:28} {value:10.3f}" if isinstance(value, float) else f"{name:28} {value}")


if __name__ == "__main__":
    main()
