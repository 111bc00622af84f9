"""What a changing number of workers does to the AP of a run: nothing that another seed would not do.

    python benchmarks/training/world_change.py --out FOLDER [--seeds 3] [--json]

Trains a narrow YOLOv7-tiny on drawn images, once for each seed with one worker, and once more with the first seed
under 1, 3, 2 and 4 workers in turn, each group going on from the checkpoint of the one before. Samples are the same at
every step; sums are not added up in the same order, and training makes much of little. ``difference`` is how far the
AP of the changed run lies from the undisturbed one of its seed, ``spread`` the standard deviation between seeds. What
is finished in FOLDER is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
WORKER = ROOT / "tests" / "system" / "leaving_worker.py"
NUM_IMAGES = 500
NUM_STEPS = 1200
LEGS = ((1, 300), (3, 600), (2, 900), (4, NUM_STEPS))
JOB: dict[str, Any] = {
    "model": {"name": "yolov7-tiny", "transition_width": 0.5, "hidden_width": 0.5},
    "recipe": "tiny",
    "hyperparameters": {
        "lr0": 0.04,
        "warmup_epochs": 1.0,
        "warmup_min_steps": 100,
        "mosaic": 0.5,
        "mixup": 0.0,
        "paste_in": 0.0,
        "ema_decay": 0.998,
        "ema_ramp_steps": 100,
    },
    "global_batch_size": 16,
    "micro_batch_size": 4,
    "record_samples": True,
    "evaluation": {"every_epochs": 1000.0},
    "checkpoint": {"every_steps": 300, "keep": 1},
}


def run(*command: str, folder: Path) -> None:
    """Run a command that must succeed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command], cwd=folder, check=True, stdout=sys.stderr, env=environment)


def drawn(folder: Path) -> None:
    """Draw the images and build their shards, unless they are there."""
    if (folder / "val" / "manifest.json").exists():
        return
    run("-m", "yolofleet", "data", "synth", "images", "--images", str(NUM_IMAGES), "--seed", "1", folder=folder)
    for part in ("train", "val"):
        run("-m", "yolofleet", "data", "shard", f"images/instances_{part}.json", "images/images", part, folder=folder)


def trained(name: str, seed: int, legs: tuple[tuple[int, int], ...], folder: Path) -> float:
    """Train through the legs, from wherever the run stands, and return the AP of its end."""
    directory = folder / "runs" / name
    num_images = json.loads((folder / "train" / "manifest.json").read_text())["num_samples"]
    data = {"train": str(folder / "train"), "val": str(folder / "val"), "image_size": 128}
    epochs = NUM_STEPS * JOB["global_batch_size"] / num_images
    job = JOB | {"name": name, "seed": seed, "data": data, "epochs": epochs, "storage": str(folder / "runs")}
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(job))
    for num_workers, last_step in legs:
        if not (directory / f"checkpoints/step-{last_step}/COMMITTED").exists() and final_ap(directory) is None:
            torchrun = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_workers}")
            run(*torchrun, str(WORKER), str(file), str(last_step), folder=folder)
    ap = final_ap(directory)
    if ap is None:
        raise SystemExit(f"{directory}: has no evaluation of step {NUM_STEPS}")
    return ap


def final_ap(directory: Path) -> float | None:
    """Return the AP of the last step, None before it."""
    log = directory / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return next((float(row["val_AP"]) for row in rows if row["step"] == NUM_STEPS and "val_AP" in row), None)


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    drawn(arguments.out)
    changed = trained("changing", 0, LEGS, arguments.out)
    undisturbed = [trained(f"seed-{seed}", seed, ((1, NUM_STEPS),), arguments.out) for seed in range(arguments.seeds)]
    result = {
        "ap_changing": changed,
        "ap_undisturbed": undisturbed,
        "difference": abs(changed - undisturbed[0]),
        "spread": statistics.stdev(undisturbed) if len(undisturbed) > 1 else None,
        "workers": [workers for workers, _ in LEGS],
    }
    if arguments.json:
        print(json.dumps(result, indent=1))
        return
    for name, value in result.items():
        print(f"{name:<16} {value}")


if __name__ == "__main__":
    main()
