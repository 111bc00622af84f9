"""How long a one-worker trial of a search takes to begin training, against a Ray Train run from zero for the same job.

    python benchmarks/trial_startup.py [--trials 3] [--json]

Both are measured in one run on this machine, on drawn images, for a job of a few steps: from the moment that the work
is handed over until the loop's ``start`` event stands in the run directory. `first_trial_seconds` pays for loading
torch and Ray in the trial's process, `next_trial_seconds` (median) are those that follow in the same process.
`train_run_seconds` is `yolofleet train`'s way for each job: a Ray Train worker group from zero, Ray itself running
already. `startup_ratio` is theirs over ours (median of the following trials).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
TRIALS = 3


def draw(folder: Path) -> None:
    """Make a small dataset."""
    from yolofleet.cli.main import main as yolofleet

    images = folder / "images"
    yolofleet(["data", "synth", str(images), "--images", "40", "--image-size", "64"])
    for part in ("train", "val"):
        yolofleet(["data", "shard", str(images / f"instances_{part}.json"), str(images / "images"), str(folder / part)])


def job(folder: Path) -> dict[str, Any]:
    """Return a job of three steps."""
    return {
        "name": "base",
        "model": {"name": "yolov7-tiny", "transition_width": 0.25, "hidden_width": 0.25},
        "data": {"train": str(folder / "train"), "val": str(folder / "val"), "image_size": 64},
        "recipe": "tiny",
        "epochs": 0.75,
        "global_batch_size": 8,
        "micro_batch_size": 4,
        "storage": str(folder / "runs"),
    }


def started(run: Any) -> float:
    """Return when a run's loop began, in seconds since 1970."""
    event = next(event for event in run.events() if event["kind"] == "start")
    return datetime.fromisoformat(event["time"]).timestamp()


def trials(folder: Path, count: int) -> list[float]:
    """Return the start-up seconds of a search's trials, one at a time."""
    from yolofleet.search.controller import run_search
    from yolofleet.search.directory import SearchDirectory
    from yolofleet.search.engine import SegmentResult, TrialSegment
    from yolofleet.search.session import SearchSession
    from yolofleet.specs.search import SearchSpec
    from yolofleet.storage import open_storage

    document = {
        "name": "startup",
        "job": job(folder),
        "parameters": {"hyperparameters.lr0": {"log_uniform": [0.001, 0.01]}},
        "algorithm": {"name": "quasi_random"},
        "concurrency": 1,
        "budget": {"trials": count},
    }
    spec = SearchSpec.parse(document, source="benchmark")
    session = SearchSession.open(spec, source="benchmark")
    directory = SearchDirectory(open_storage(folder / "runs").child("startup"))
    directory.claim(spec)
    handed: dict[str, float] = {}

    def on_segment(kind: str, segment: TrialSegment, result: SegmentResult | None) -> None:
        if kind == "begin":
            handed[segment.run_name] = time.time()

    engine = session.engine(session.trials(directory), directory)
    cluster = session.space.base_job.cluster
    run_search(spec, cluster, engine, session.job_of(directory), session.measured_objectives, on_segment=on_segment)
    return [started(directory.trial(name)) - at for name, at in handed.items()]


def train_runs(folder: Path, count: int) -> list[float]:
    """Return the start-up seconds of Ray Train runs from zero, one after the other."""
    from yolofleet.specs.job import JobSpec
    from yolofleet.training.setup.preflight import check_job
    from yolofleet.training.supervision.launch import run_on_ray

    seconds = []
    for number in range(count):
        spec = JobSpec.parse(job(folder) | {"name": f"train-{number}"}, source="benchmark")
        ready = check_job(spec)
        begin = time.time()
        run_on_ray(spec)
        seconds.append(started(ready.run) - begin)
    return seconds


def measure(count: int) -> dict[str, Any]:
    """Measure both in one run."""
    from yolofleet.core.ray_runtime import tune_connection

    with tempfile.TemporaryDirectory(prefix="trial-startup-") as name:
        folder = Path(name)
        draw(folder)
        with tune_connection():
            theirs = train_runs(folder, count)
            ours = trials(folder, count + 1)
    following = statistics.median(ours[1:])
    return {
        "first_trial_seconds": ours[0],
        "next_trial_seconds": following,
        "train_run_seconds": statistics.median(theirs),
        "startup_ratio": statistics.median(theirs) / following,
        "trials": count,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--json", action="store_true", help="print only JSON")
    arguments = parser.parse_args()
    import contextlib
    import sys

    with contextlib.redirect_stdout(sys.stderr):
        result = measure(arguments.trials)
    if arguments.json:
        print(json.dumps(result, indent=1))
    else:
        for name, value in result.items():
            print(f"{name:<22} {value:.2f}")


if __name__ == "__main__":
    main()
