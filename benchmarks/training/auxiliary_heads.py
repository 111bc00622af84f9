"""Table 6 in the small: what guides the auxiliary heads, and what that is worth, on drawn shapes.

    python benchmarks/training/auxiliary_heads.py --out FOLDER [--seeds 3] [--json]

Trains a narrow YOLOv7-W6 with each of the four assigners and every seed, a few minutes a run, in the same sample order;
the run directories below FOLDER make every run go on where it was stopped. Reported is
AP of the averaged weights after the last step on images never trained on: mean and standard deviation over the
seeds, and the difference to ``none`` paired by seed. With so small a model and so short a training the order of the
paper's table (its AP at full size stands beside) need not come out; what comes out is printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

PAPER_AP = {"none": 55.6, "independent": 55.8, "lead": 55.9, "coarse_to_fine": 55.9}
"""Table 6: YOLOv7-E6 on COCO val at 1280 pixels; ``none`` is its base without auxiliary heads."""
JOB: dict[str, Any] = {
    "model": {"name": "yolov7-w6", "depth": 0.5, "transition_width": 0.25, "hidden_width": 0.25},
    "data": {"train": "shards/train", "val": "shards/val", "image_size": 128, "loader_threads": 1},
    "recipe": "p6",
    "hyperparameters": {
        "lr0": 0.05,
        "lrf": 0.05,
        "obj": 17.0,  # the published gain is scaled by the image's area against 640 px, and would vanish at 128
        "cls": 3.0,  # and this one by the number of classes against 80
        "warmup_epochs": 1.0,
        "warmup_min_steps": 60,
        "mosaic": 0.0,
        "mixup": 0.0,
        "paste_in": 0.0,
        "ema_decay": 0.995,
        "ema_ramp_steps": 100,
    },
    "epochs": 15,
    "global_batch_size": 8,
    "micro_batch_size": 8,
    "evaluation": {"every_epochs": 5},
    "checkpoint": {"every_steps": 100, "keep": 1},
    "storage": "runs",
}


def yolofleet(*arguments: str, folder: Path) -> None:
    """Run a command of ours to its end."""
    subprocess.run([sys.executable, "-m", "yolofleet", *arguments], cwd=folder, check=True, stdout=sys.stderr)


def make_data(folder: Path) -> None:
    """Draw the images and write their shards, unless they are there."""
    if not (folder / "shards/val/manifest.json").exists():
        yolofleet("data", "synth", "images", "--images", "800", "--seed", "6", folder=folder)
        for split in ("train", "val"):
            yolofleet(
                "data", "shard", f"images/instances_{split}.json", "images/images", f"shards/{split}", folder=folder
            )


def trained(arm: str, seed: int, folder: Path) -> dict[str, float]:
    """Train one run to its end, from wherever it stands, and return its last evaluation."""
    name = f"{arm}-{seed}"
    job = folder / f"{name}.yaml"
    job.write_text(yaml.safe_dump(JOB | {"name": name, "seed": seed, "assignment": {"assigner": arm}}))
    yolofleet("train", job.name, "--launcher", "process", folder=folder)
    rows = [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    judged = [row for row in rows if "val_AP" in row]
    return {figure: judged[-1][f"val_{figure}"] for figure in ("AP", "AP50", "AP75")}


def compared(found: dict[str, dict[int, dict[str, float]]]) -> dict[str, Any]:
    """Return mean, spread and paired difference to ``none`` of every arm."""
    table = {}
    for arm, runs in found.items():
        values = [run["AP"] for run in runs.values()]
        gains = [run["AP"] - found["none"][seed]["AP"] for seed, run in runs.items() if seed in found["none"]]
        table[arm] = {
            "AP": statistics.mean(values),
            "spread": statistics.stdev(values) if len(values) > 1 else None,
            "gain": statistics.mean(gains) if gains else None,
            "gain_spread": statistics.stdev(gains) if len(gains) > 1 else None,
            "runs": runs,
        }
    return table


def main() -> None:
    """Train what is missing, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON only")
    arguments = parser.parse_args()
    folder = arguments.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    make_data(folder)
    found: dict[str, dict[int, dict[str, float]]] = {arm: {} for arm in PAPER_AP}
    for seed in range(arguments.seeds):
        for arm, runs in found.items():
            runs[seed] = trained(arm, seed, folder)
            print(f"{arm}, seed {seed}: {runs[seed]}", file=sys.stderr, flush=True)
    table = compared(found)
    if arguments.json:
        print(json.dumps({"assigners": table, "job": JOB}, indent=1))
        return
    print(f"{'assigner':<16}{'AP':>8}{'spread':>8}{'gain':>9}{'spread':>8}   paper's AP, full size")
    for arm, row in table.items():
        spread, gain_spread = (
            f"{row[name]:.4f}" if row[name] is not None else "-" for name in ("spread", "gain_spread")
        )
        print(f"{arm:<16}{row['AP']:>8.4f}{spread:>8}{row['gain']:>+9.4f}{gain_spread:>8}   {PAPER_AP[arm]}")


if __name__ == "__main__":
    main()
