"""How many files of the package a reader opens on four journeys: the files and functions that are entered on them.

    python benchmarks/journeys.py [--json] [--only tar_to_loss|yaml_to_step|ray|promote]

- `tar_to_loss`: one micro-batch of four images, from the bytes of a tar shard to the loss, with mosaic, mixup and
  paste; the network itself is left out.
- `yaml_to_step`: `yolofleet train --launcher process`, from the command to the end of the first training step.
- `ray`: the same with Ray's launcher, in the driver and in every worker; only the files that `yaml_to_step` lacks.
- `promote`: a trained run is released and registered by the command that trained it, then `registry verify` and
  `registry promote` make it the champion.

Every thread counts; the column `main thread` says how many of the files the main thread enters. Each journey runs in a
fresh process, so that no cache of another journey hides a function, on data that is drawn on the spot.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

# All that is named of the package. Only `tar_to_loss`, which is a part of a command, needs more than the command line.
import yolofleet
from journey_trace import Function, Trace, end_worker_traces, trace_ray_workers
from yolofleet.cli.main import main as yolofleet_command
from yolofleet.models import build_model
from yolofleet.specs.job import JobSpec
from yolofleet.training.loop.schedule import Schedule
from yolofleet.training.loop.update import Precision
from yolofleet.training.setup.builders import build_loss, open_dataset, training_stream

METRICS = "metrics.jsonl"
RELEASE_RECORD = "report/release.json"
"""Without it the command that trained a run releases it again."""

PACKAGE = Path(yolofleet.__file__).parent
JOB = Path(__file__).parents[1] / "jobs" / "quickstart.yaml"
IMAGE_SIZE = 128
OVERRIDES = (
    "data.train=shards/train",
    "data.val=shards/val",
    f"data.image_size={IMAGE_SIZE}",
    "epochs=1",
    "cluster.workers=1",
    "log_every_steps=1",
)
ENDLESS = ("epochs=10000", "evaluation.every_epochs=10000", "checkpoint.every_steps=1000000")
SECONDS_AFTER_FIRST_STEP = 6.0
"""How long Ray's journey goes on after its first step: the driver publishes the state of the workers every 5 s."""
FIRST_STEP_SECONDS = 300.0
"""How long Ray's first step may take."""
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@dataclass(frozen=True)
class Journey:
    """What was entered on a journey.

    Attributes:
        functions: File and name of each function.
        num_jumps: How often a function of one file led to a function of another; None on Ray, where it is not counted.
        num_main_thread_files: Files that the main thread entered; None on Ray, where it is not counted.
    """

    functions: frozenset[Function]
    num_jumps: int | None = None
    num_main_thread_files: int | None = None

    @classmethod
    def of(cls, trace: Trace) -> Journey:
        """Return the journey that one process traced."""
        return cls(frozenset(trace.functions), trace.num_jumps, len(trace.main_thread_files))

    @property
    def files(self) -> list[str]:
        """The files, in order."""
        return sorted({file for file, _ in self.functions})

    @property
    def num_lines(self) -> int:
        """Lines in the files."""
        return sum(len((PACKAGE / file).read_text().splitlines()) for file in self.files)

    def beyond(self, other: Journey) -> Journey:
        """Return the part of this journey in files that another journey does not enter."""
        return Journey(frozenset(entry for entry in self.functions if entry[0] not in set(other.files)))


def run(*arguments: str) -> None:
    """Run a command that must succeed."""
    if code := yolofleet_command(list(arguments)):
        raise SystemExit(f"yolofleet {' '.join(arguments)}: exit code {code}")


def draw_data() -> None:
    """Draw shards into the current folder."""
    run("data", "synth", "images", "--images", "80", "--seed", "3", "--image-size", str(IMAGE_SIZE))
    for part in ("train", "val"):
        run("data", "shard", f"images/instances_{part}.json", "images/images", f"shards/{part}")


def trace_tar_to_loss() -> Journey:
    """Trace one micro-batch up to its loss."""
    always = [f"hyperparameters.{name}=1.0" for name in ("mosaic", "mixup", "paste_in")]
    sizes = ["global_batch_size=4", "micro_batch_size=4"]
    job = JobSpec.load(JOB, [*OVERRIDES, "recipe=p5", *always, *sizes])
    hyperparameters = job.resolved_hyperparameters()
    dataset = open_dataset(job.data, job.data.train)
    model = build_model("yolov7-tiny", num_classes=len(dataset.classes)).train()
    loss = build_loss(model, hyperparameters, IMAGE_SIZE, job.assignment, dataset.manifest.class_counts)
    schedule = Schedule(hyperparameters, job.num_steps(len(dataset)), len(dataset) / job.global_batch_size)
    stream = training_stream(job, dataset, schedule)
    precision = Precision(job.precision, torch.device("cpu"))
    trace = Trace(PACKAGE)
    with trace.running():
        batches = stream.micro_batches(0, [0])
        batch = next(batches)
        images = precision.images(batch.images)
    predictions = model(images)
    with trace.running():
        total = loss(predictions, batch.targets, tuple(images.shape[-2:])).total
    if not torch.isfinite(total):
        raise SystemExit(f"the loss is {total}")
    return Journey.of(trace)


class FirstStepDoneError(BaseException):
    """Ends a training run through every handler of errors."""


def trace_yaml_to_step() -> Journey:
    """Trace the command until the second step is about to change weights: then the first one is whole, log included."""
    trace = Trace(PACKAGE)
    num_updates = 0

    def end_at_second(*_: Any) -> None:
        nonlocal num_updates
        num_updates += 1
        if num_updates == 2:
            trace.stop()
            raise FirstStepDoneError

    register_optimizer_step_pre_hook(end_at_second)
    try:
        with trace.running():
            run(*build_train_command("step", "--launcher", "process", *ENDLESS))
    except FirstStepDoneError:
        return Journey.of(trace)
    raise SystemExit("the training ended before its second step")


def trace_ray() -> Journey:
    """Trace the driver and the workers until the driver has published the first step."""
    trace = Trace(PACKAGE)
    logs = Path("traces").absolute()
    trace_ray_workers(PACKAGE, logs)
    entered: set[Function] = set()

    def end_after_first_step() -> None:
        metrics = Path("runs/ray", METRICS)
        end = time.monotonic() + FIRST_STEP_SECONDS
        while not (metrics.exists() and metrics.read_bytes()) and time.monotonic() < end:
            time.sleep(0.1)
        if metrics.exists():
            time.sleep(SECONDS_AFTER_FIRST_STEP)
            trace.stop()
            entered.update(trace.functions | end_worker_traces(logs))
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=end_after_first_step, daemon=True).start()
    with trace.running():
        yolofleet_command(build_train_command("ray", "--launcher", "ray", *ENDLESS))  # ends as Ctrl-C ends it
    if not entered:
        raise SystemExit(f"Ray's workers did no step within {FIRST_STEP_SECONDS:g} s")
    return Journey(frozenset(entered))


def trace_promote() -> Journey:
    """Trace release, registration, verification and promotion of a trained run."""
    arguments = build_train_command("promote", "--launcher", "process")
    run(*arguments, "tracking.register_as=null")  # trains, and loads every module before the tracing
    Path("runs/promote", RELEASE_RECORD).unlink()
    trace = Trace(PACKAGE)
    store = ("--tracking-uri", f"sqlite:///{Path('runs/_mlflow/mlflow.db').absolute()}")
    with trace.running():
        run(*arguments)
        run("registry", "verify", "quickstart@candidate", *store)
        run("registry", "promote", "quickstart", "--version", "1", *store)
    return Journey.of(trace)


def build_train_command(name: str, *more: str) -> list[str]:
    """Return the command that trains a small quickstart model, its run called `name`."""
    return ["train", str(JOB), *OVERRIDES, f"name={name}", "storage=runs", *more]


JOURNEYS: dict[str, Callable[[], Journey]] = {
    "tar_to_loss": trace_tar_to_loss,
    "yaml_to_step": trace_yaml_to_step,
    "ray": trace_ray,
    "promote": trace_promote,
}
SLOWEST_FIRST = ("promote", "ray", "yaml_to_step", "tar_to_loss")


def call_in_folder(folder: str, function: Callable[[], Any]) -> Any:
    """Call a function in a folder; its output goes to standard error."""
    os.chdir(folder)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # processes in the background ignore it
    return function()


def trace_journeys(names: set[str]) -> dict[str, Journey]:
    """Trace journeys, each in a process of its own and two at a time."""
    os.environ.update(ENVIRONMENT)
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        os.environ.pop(name, None)
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="yolofleet-journeys-") as folder,
        ProcessPoolExecutor(2, mp_context=spawn, max_tasks_per_child=1) as pool,
    ):
        pool.submit(call_in_folder, folder, draw_data).result()
        wanted = names | ({"yaml_to_step"} if "ray" in names else set())
        found = {name: pool.submit(call_in_folder, folder, JOURNEYS[name]) for name in SLOWEST_FIRST if name in wanted}
        journeys: dict[str, Journey] = {name: found[name].result() for name in JOURNEYS if name in wanted}
    if "ray" in names:
        journeys["ray"] = journeys["ray"].beyond(journeys["yaml_to_step"])
    return {name: journey for name, journey in journeys.items() if name in names}


def build_document(journeys: dict[str, Journey]) -> dict[str, Any]:
    """Return the figures of all journeys, and the files of each."""
    document: dict[str, Any] = {}
    for name, journey in journeys.items():
        document |= {
            f"{name}_files": len(journey.files),
            f"{name}_lines": journey.num_lines,
            f"{name}_functions": len(journey.functions),
            f"{name}_jumps": journey.num_jumps,
            f"{name}_main_thread_files": journey.num_main_thread_files,
            f"{name}_list": journey.files,
        }
    return document


def format_table(journeys: dict[str, Journey]) -> str:
    """Return the figures as a table."""
    lines = [f"{'journey':<13} {'files':>6} {'lines':>7} {'functions':>10} {'jumps':>7} {'main thread':>12}"]
    for name, journey in journeys.items():
        jumps = "-" if journey.num_jumps is None else f"{journey.num_jumps:,}"
        main_thread = "-" if journey.num_main_thread_files is None else f"{journey.num_main_thread_files} files"
        figures = f"{len(journey.files):>6} {journey.num_lines:>7,} {len(journey.functions):>10}"
        lines.append(f"{name:<13} {figures} {jumps:>7} {main_thread:>12}")
    return "\n".join(lines)


def main() -> None:
    """Trace the journeys and print what they enter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print only JSON")
    parser.add_argument("--only", choices=JOURNEYS, help="trace one journey")
    arguments = parser.parse_args()
    journeys = trace_journeys({arguments.only} if arguments.only else set(JOURNEYS))
    print(json.dumps(build_document(journeys), indent=1) if arguments.json else format_table(journeys))


if __name__ == "__main__":
    main()
