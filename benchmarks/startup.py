"""From the command to the first step of the quickstart, and what a local run takes of the memory.

    python benchmarks/startup.py [--rounds 3] [--before FOLDER] [--json]

``yolofleet train jobs/quickstart.yaml`` on drawn images, in turn: in its own process with one worker, on Ray with one
worker, and on Ray as it comes, with two. ``--before`` names another checkout of the project, whose code is run in the
same turns: the figures before and after a change. Each run is stopped after its third step. Medians over the rounds of

- ``starting_seconds``: until Ray is asked for the workers (empty without Ray),
- ``ready_seconds``: until the model, the data and the group of the first worker are ready,
- ``first_step_seconds``: until the first step is done,
- ``memory_gib``: most memory of all processes together, pages that several share counted once (PSS),
- ``processes``: most processes at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
POLL_SECONDS = 0.25
LAST_STEP = 3
LIMIT_SECONDS = 300.0
WAYS = {
    "process, 1 worker": ["--launcher", "process", "cluster.workers=1"],
    "ray, 1 worker": ["cluster.workers=1"],
    "ray, 2 workers": [],
}


def environment(code: Path) -> dict[str, str]:
    """Return the environment in which a checkout's code is run."""
    return os.environ | {"PYTHONPATH": str(code / "platform")}


def draw(folder: Path) -> None:
    """Make the quickstart's data."""
    command = [sys.executable, "-m", "yolofleet", "data"]
    images = folder / "demo" / "images"
    steps = [["synth", str(images), "--images", "300", "--image-size", "160"]]
    for part in ("train", "val"):
        target = str(folder / "demo" / "shards" / part)
        steps.append(["shard", str(images / f"instances_{part}.json"), str(images / "images"), target])
    for step in steps:
        subprocess.run([*command, *step], env=environment(ROOT), check=True, capture_output=True)


def rows(log: Path) -> list[dict[str, Any]]:
    """Return the whole rows of a log that is being written."""
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def memory(process: psutil.Process) -> tuple[int, int]:
    """Return the memory in bytes and the number of a process and all that it has started."""
    sizes = []
    for part in [process, *process.children(recursive=True)]:
        with suppress(psutil.Error):
            sizes.append(int(part.memory_full_info().pss))
    return sum(sizes), len(sizes)


def measure(folder: Path, code: Path, way: list[str]) -> dict[str, float]:
    """Run the quickstart to its third step, and return the figures."""
    run = Path(tempfile.mkdtemp(dir=folder, prefix="run-")) / "quickstart"
    overrides = [f"storage={run.parent}", "log_every_steps=1"]
    began = time.time()
    process = psutil.Popen(
        [sys.executable, "-m", "yolofleet", "train", str(code / "jobs" / "quickstart.yaml"), *way, *overrides],
        cwd=folder,
        env=environment(code),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    most_bytes = most_processes = 0
    try:
        while (done := [row for row in rows(run / "metrics.jsonl") if "loss" in row])[LAST_STEP - 1 :] == []:
            if process.poll() is not None or time.time() - began > LIMIT_SECONDS:
                process.kill()
                raise SystemExit(f"{' '.join(way) or 'quickstart'}: no step; it printed:\n{process.stderr.read()}")
            taken, count = memory(process)
            most_bytes, most_processes = max(most_bytes, taken), max(most_processes, count)
            time.sleep(POLL_SECONDS)
        logs = [run / "events.driver.jsonl", run / "events.jsonl"]  # of the driver, where Ray is used, and of the loop
        events = {row["kind"]: _seconds(row) - began for log in logs for row in reversed(rows(log))}
        first = _seconds(done[0]) - began
    finally:
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=60)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    figures = {"ready_seconds": events["start"], "first_step_seconds": first}
    if "starting" in events:
        figures["starting_seconds"] = events["starting"]
    return figures | {"memory_gib": most_bytes / 2**30, "processes": most_processes}


def _seconds(row: dict[str, Any]) -> float:
    return datetime.fromisoformat(row["time"]).timestamp()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", type=Path, help="another checkout, measured in the same turns")
    parser.add_argument("--json", action="store_true", help="print only JSON")
    arguments = parser.parse_args()
    codes = {"now": ROOT} if arguments.before is None else {"before": arguments.before.resolve(), "now": ROOT}
    measured: dict[tuple[str, str], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="startup-") as name:
        folder = Path(name)
        draw(folder)
        for _ in range(arguments.rounds):
            for way, options in WAYS.items():
                for code, path in codes.items():
                    measured.setdefault((way, code), []).append(measure(folder, path, options))
    table = [
        {"way": way, "code": code}
        | {key: round(statistics.median(one[key] for one in figures), 2) for key in figures[0]}
        for (way, code), figures in measured.items()
    ]
    if arguments.json:
        print(json.dumps(table, indent=1))
        return
    keys = ["way", "code", "starting_seconds", "ready_seconds", "first_step_seconds", "memory_gib", "processes"]
    for row in [dict(zip(keys, keys, strict=True)), *table]:
        print("  ".join(f"{row.get(key, ''):<{max(len(key), 18 if key == 'way' else 6)}}" for key in keys))


if __name__ == "__main__":
    main()
