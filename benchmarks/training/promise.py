"""One run, trained four times: by one, two and four workers, and by one that is killed three times.

    python benchmarks/training/promise.py --out FOLDER [--steps 400] [--picture docs/images/promise.svg] [--json]

Trains a narrow YOLOv7-tiny on drawn images, in double precision and gently: another number of workers adds the same
numbers up in another order, and training makes much of the rounding (from 1e-16 to 1e-4 in sixteen steps here).
``largest_difference`` is that of the loss to the first run's over all steps, ``same_samples`` whether the network saw
the same pixels in the same order. What is finished in FOLDER is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from world_change import drawn, run

from yolofleet.core.errors import WorkError

JOB: dict[str, Any] = {
    "model": {"name": "yolov7-tiny", "transition_width": 0.25, "hidden_width": 0.25},
    "recipe": "tiny",
    "hyperparameters": {
        "lr0": 0.01,
        "warmup_epochs": 3.0,
        "warmup_bias_lr": 0.01,
        "warmup_momentum": 0.5,
        "momentum": 0.8,
        "mixup": 0.0,
        "paste_in": 0.0,
    },
    "assignment": {"matching": "fixed"},
    "precision": "fp64",
    "global_batch_size": 16,
    "micro_batch_size": 4,
    "record_samples": True,
    "log_every_steps": 1,
    "evaluation": {"every_epochs": 1000.0},
    "checkpoint": {"every_steps": 50, "keep": 2},
}
RUNS = {"1 worker": 1, "2 workers": 2, "4 workers": 4, "killed three times": 1}
SHOWN = 20
"""A drawn point is the mean of so many steps: a micro-batch of another image has another loss."""
WIDTH, HEIGHT, GAP = 270, 190, 24
TEXT, LINE, FIRST = "#788391", "#2f81f7", "#8a94a0"
"""Colours that are seen on white and on black."""


def rows_of(directory: Path, log: str) -> list[dict[str, Any]]:
    """Return the rows of a log of the run; none where it has not begun."""
    path = directory / f"{log}.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def losses_of(directory: Path) -> dict[int, float]:
    """Return the loss of every step."""
    return {int(row["step"]): float(row["loss"]) for row in rows_of(directory, "metrics") if "loss" in row}


def trained(name: str, num_workers: int, kills: int, num_steps: int, folder: Path) -> Path:
    """Train a run to its end, killing it where asked, and return its directory."""
    directory = folder / "runs" / name.replace(" ", "-")
    num_images = json.loads((folder / "train" / "manifest.json").read_text())["num_samples"]
    data = {"train": str(folder / "train"), "val": str(folder / "val"), "image_size": 128}
    job = JOB | {"name": directory.name, "data": data, "storage": str(folder / "runs")}
    file = folder / f"{directory.name}.yaml"
    file.write_text(yaml.safe_dump(job | {"epochs": num_steps * JOB["global_batch_size"] / num_images}))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_workers}"]
    command = [sys.executable, *(torchrun if num_workers > 1 else []), "-m", "yolofleet.training", str(file)]
    chance = random.Random(0)
    for number in range(kills):
        target = chance.randrange(num_steps * (number + 1) // (kills + 2), num_steps * (number + 2) // (kills + 2))
        if len(losses_of(directory)) < target:
            kill_at(command, directory, target)
    if len(losses_of(directory)) < num_steps:
        run(*command[1:], folder=folder)
    return directory


def kill_at(command: list[str], directory: Path, step: int) -> None:
    """Start the run and kill all of its processes at a step."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=sys.stderr, env=environment, start_new_session=True)
    while max(losses_of(directory), default=0) < step:
        if process.poll() is not None:
            raise WorkError(f"{directory}: ended with {process.returncode} before step {step}")
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def samples_of(directory: Path) -> dict[tuple[int, int], str]:
    """Return the digest of the pixels that the network saw, by step and micro-batch."""
    logs = sorted((directory / "samples").glob("*.jsonl"))
    found = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    return {(row["step"], row["micro_batch"]): row["digest"] for row in found}


def draw(curves: dict[str, list[float]], differences: dict[str, float]) -> str:
    """Return one panel a run beside each other: its loss over the first one's, and the largest difference."""
    width = len(curves) * (WIDTH + GAP) + GAP
    low, high = min(map(min, curves.values())), max(map(max, curves.values()))
    height = (HEIGHT - 20) / (high - low)  # pixels for a loss of 1
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT + 70}" font-family="sans-serif" '
        f'font-size="15" fill="{TEXT}" role="img"><title>The loss of one run, trained four times</title>'
    ]
    first = next(iter(curves.values()))
    for column, (name, curve) in enumerate(curves.items()):
        left = GAP + column * (WIDTH + GAP)
        parts.append(f'<text x="{left}" y="22" font-weight="bold" font-size="17">{name}</text>')
        floor = 34 + HEIGHT
        parts.append(f'<path d="M{left} 34V{floor}H{left + WIDTH}" fill="none" stroke="{TEXT}"/>')
        for values, colour, stroke in ((first, FIRST, 6), (curve, LINE, 2)):
            points = " ".join(
                f"{left + WIDTH * index / (len(values) - 1):.1f},{floor - 10 - height * (value - low):.1f}"
                for index, value in enumerate(values)
            )
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{stroke}"/>')
        note = f"apart by at most {differences[name]:.1g} in a step"
        if column == 0 or differences[name] == 0:
            note = "equal to the first, bit by bit" if column else f"loss, {high:.2f} down to {low:.2f}"
        parts.append(f'<text x="{left}" y="{floor + 24}">{note}</text>')
    return "".join(parts) + "</svg>\n"


def main() -> None:
    """Train what is missing, compare, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    drawn(arguments.out)
    runs = {
        name: trained(name, workers, 3 if "killed" in name else 0, arguments.steps, arguments.out.absolute())
        for name, workers in RUNS.items()
    }
    losses = {name: list(losses_of(directory).values()) for name, directory in runs.items()}
    first = losses["1 worker"]
    differences = {
        name: max(abs(one - other) for one, other in zip(first, values, strict=True)) for name, values in losses.items()
    }
    samples = [samples_of(directory) for directory in runs.values()]
    starts = {name: [row["kind"] for row in rows_of(run, "events")].count("start") for name, run in runs.items()}
    if arguments.picture is not None:
        curves = {
            name: [sum(values[at : at + SHOWN]) / SHOWN for at in range(0, len(values) - SHOWN + 1, SHOWN // 4)]
            for name, values in losses.items()
        }
        arguments.picture.write_text(draw(curves, differences))
    result = {
        "largest_difference": differences,
        "same_samples": all(found == samples[0] for found in samples),
        "starts": starts,
    }
    print(json.dumps(result, indent=1) if arguments.json else "\n".join(f"{k:<20} {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
