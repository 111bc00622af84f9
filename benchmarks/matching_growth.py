"""How time and memory of label assignment grow with boxes and with images; a table and a plot.

    python benchmarks/matching_growth.py [--out benchmarks/matching_growth.svg] [--json]

640 px, 80 classes, the yolov7 anchors, one thread. Time is process CPU time (lowest of seven), memory is the highest
rise of the process's resident size during the assignment, each case in a process of its own.

Every box of an image may take any candidate of the image, and candidates grow with boxes, so pairs of boxes and
candidates grow linearly with images but with the square of the boxes on one image. An image with many boxes is
therefore compared by blocks of candidates. Time and memory are to be no worse than linear in images and in boxes.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from matching import make_loss, make_predictions, make_targets

BOXES = (5, 20, 60, 120, 250, 500, 1000, 2000)  # on one image
IMAGES = (1, 2, 4, 8, 16, 32)  # with 60 boxes each


def measure_one(batch_size: int, num_boxes: int) -> dict[str, float]:
    """Measure one case in this process."""
    torch.set_num_threads(1)
    predictions = [level.detach() for level in make_predictions(batch_size)]
    loss, targets = make_loss(), make_targets(batch_size, num_boxes)
    offered = torch.cat(make_loss(matching="fixed").assign(predictions, targets, (640, 640)))[:, 0]
    small = make_targets(batch_size, 1)
    loss.assign(predictions, small, (640, 640))  # what the first call alone needs
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(7):
        start = time.process_time()
        positives = loss.assign(predictions, targets, (640, 640))
        seconds.append(time.process_time() - start)
    rise = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "images": batch_size,
        "boxes_an_image": num_boxes,
        "pairs": float(offered.bincount().sum() * num_boxes),
        "milliseconds": min(seconds) * 1000.0,
        "megabytes": rise / 1024.0,
        "positives": float(sum(len(level) for level in positives)),
    }


def measure_all() -> list[dict[str, float]]:
    """Measure every case in its own process, for its memory."""
    cases = [(1, boxes) for boxes in BOXES] + [(images, 60) for images in IMAGES]
    rows = []
    for case in cases:
        command = [sys.executable, __file__, "--one", *map(str, case)]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return rows


def plot(rows: list[dict[str, float]], out: Path) -> None:
    """Draw time and memory over boxes and over images, with lines of slope 1."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(9, 7), layout="constrained")
    boxes, images = rows[: len(BOXES)], rows[len(BOXES) :]
    panels = (
        (axes[0][0], images, "images", "images of 60 boxes", "milliseconds"),
        (axes[1][0], images, "images", "images of 60 boxes", "megabytes"),
        (axes[0][1], boxes, "boxes_an_image", "boxes on one image", "milliseconds"),
        (axes[1][1], boxes, "boxes_an_image", "boxes on one image", "megabytes"),
    )
    for axis, cases, key, label, unit in panels:
        x, y = [case[key] for case in cases], [max(case[unit], 0.01) for case in cases]
        axis.loglog(x, y, marker="o", label="measured")
        axis.loglog(x, [y[-1] * value / x[-1] for value in x], linestyle=":", label="linear")
        axis.set_xlabel(label)
        axis.set_ylabel(unit)
        axis.legend()
    figure.savefig(out)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=2, type=int, metavar=("IMAGES", "BOXES"), help="measure one case, print JSON")
    parser.add_argument("--out", type=Path, help="draw the growth into this file")
    parser.add_argument("--json", action="store_true", help="print only JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure_one(*arguments.one)))
        return
    rows = measure_all()
    if arguments.out:
        plot(rows, arguments.out)
    if arguments.json:
        print(json.dumps(rows))
    else:
        print("images  boxes an image       pairs  milliseconds  megabytes")
        for row in rows:
            print(
                "{images:6.0f}  {boxes_an_image:14.0f}  {pairs:10.0f}  {milliseconds:12.2f}  {megabytes:9.1f}".format(
                    **row
                )
            )


if __name__ == "__main__":
    main()
