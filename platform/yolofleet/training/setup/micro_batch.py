"""``micro_batch_size: auto``: the largest micro-batch that fits, found once and kept in the run's ``job.yaml``.

The memory forecast proposes a size among the divisors of the global batch; two training steps on the job's own data
prove it, in a process of their own (``python -m yolofleet.training.setup.micro_batch``): where the system ends a
process that takes too much, it ends that one. The limits are the GPU's memory; on a CPU the address space that this
process may take (RLIMIT_AS), what is left in its cgroup, and the memory that is free on the machine.
"""

from __future__ import annotations

import json
import math
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from yolofleet.core.byte_sizes import format_bytes
from yolofleet.core.errors import UserError, WorkError
from yolofleet.core.terminal import note
from yolofleet.data.dataset import ShardDataset
from yolofleet.models.memory import TrainingMemory, training_memory
from yolofleet.models.wiring import wire
from yolofleet.specs.job import JobSpec
from yolofleet.specs.yaml_document import parse_yaml
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.loop.schedule import MultiScale
from yolofleet.training.setup.builders import open_dataset, trained_table

SAFE_SHARE = 0.95
"""Of a limit; the rest is for what two steps do not show."""
EXIT_OUT_OF_MEMORY = 76
CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
Kind = Literal["device", "address_space", "resident"]
PARTS = ("weights", "gradients", "momentum", "average", "exchange", "activations")
STEPS = 2
"""The second one has all moments of the optimiser."""


@dataclass(frozen=True)
class Limit:
    """What a worker may take of one kind of memory."""

    name: str
    kind: Kind
    room_bytes: int


@dataclass(frozen=True)
class Choice:
    """The micro-batch that was found."""

    size: int
    sentence: str


def memory_limits(job: JobSpec) -> list[Limit]:
    """Return the limits for one worker on this machine.

    Raises:
        UserError: The job asks for GPUs, and this machine has none.
    """
    if job.cluster.gpus_per_worker > 0:
        if not torch.cuda.is_available():
            raise UserError(
                "micro_batch_size auto is proven by a step on the GPU, and this machine has none; start the run where "
                "the workers are, or give a number ('yolofleet models show MODEL' forecasts its memory)"
            )
        free, total = torch.cuda.mem_get_info()
        share = min(1.0, job.cluster.gpus_per_worker)
        return [Limit(f"GPU memory ({torch.cuda.get_device_name()})", "device", int(min(free, share * total)))]
    workers = job.cluster.most_workers
    limits = []
    if (most := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY:
        limits.append(Limit("address space (RLIMIT_AS)", "address_space", most))
    for maximum, current in CGROUPS:
        if Path(maximum).exists() and (text := Path(maximum).read_text().strip()).isdecimal() and int(text) < 2**60:
            room = int(text) - int(Path(current).read_text())
            limits.append(Limit(f"memory left in the cgroup ({maximum})", "resident", max(0, room) // workers))
    free_kilobytes = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    if free_kilobytes is not None:
        limits.append(Limit("free memory (MemAvailable)", "resident", 1024 * int(free_kilobytes[1]) // workers))
    return limits


def possible_sizes(job: JobSpec) -> dict[int, JobSpec]:
    """Return the job by each micro-batch size that it allows, smallest first.

    Raises:
        UserError: It allows none.
    """
    document, batch = job.document(), job.global_batch_size
    found: dict[int, JobSpec] = {}
    refused: UserError | None = None
    for size in (size for size in range(1, batch + 1) if batch % size == 0):
        try:
            found[size] = JobSpec.parse(document | {"micro_batch_size": size}, source="micro_batch_size auto")
        except UserError as error:
            refused = refused or error
    if not found and refused is not None:
        raise refused
    return found


def forecast(job: JobSpec, num_classes: int, micro_batch_size: int, num_workers: int = 1) -> TrainingMemory:
    """Forecast the memory of a worker at the largest image size of the job."""
    graph = wire(trained_table(job))
    side = _largest_side(job, graph.max_stride)
    found = training_memory(
        graph,
        num_classes=num_classes,
        size=(side, side),
        micro_batch_size=micro_batch_size,
        precision=job.precision if job.precision in ("fp16", "bf16") else "fp32",
        strategy=job.strategy,
        num_workers=num_workers,
        moments=1 if job.resolved_hyperparameters().optimizer == "sgd" else 2,
        memory=job.memory,
    )
    if job.precision == "fp64":  # twice the bytes of fp32
        return replace(found, **{part: 2 * getattr(found, part) for part in PARTS})
    return found


def largest_that_fits(
    sizes: Sequence[int], forecast_bytes: Callable[[int], int], spare_bytes: Callable[[int], int | None]
) -> tuple[int, int]:
    """Return the largest size that fits, and the bytes that it leaves.

    The first two sizes say how the forecast has to be read here; from then on it is asked before every trial.

    Args:
        sizes: What there is to choose from, smallest first.
        forecast_bytes: The forecast of a size.
        spare_bytes: Tries a size; returns what it leaves, below 0 where it takes too much, None where it failed.

    Raises:
        UserError: Not even the smallest fits.
    """
    first, failed = sizes[0], math.inf
    spare = at_first = spare_bytes(first)
    if spare is None or at_first is None or spare < 0:
        missing = "" if spare is None else f"; {format_bytes(-spare)} are missing"
        raise UserError(
            f"micro_batch_size auto: not even {first} fits{missing}. Lower data.image_size, or take a smaller model"
        )
    best, slope = first, 1.0
    while larger := [size for size in sizes if best < size < failed]:
        within = [size for size in larger if slope * (forecast_bytes(size) - forecast_bytes(first)) <= at_first]
        if not within and best > first:
            break
        size = within[-1] if within and best > first else larger[0]
        left = spare_bytes(size)
        if left is None or left < 0:
            failed = size
        else:
            best, spare = size, left
        if left is not None:
            slope = max((at_first - left) / max(1, forecast_bytes(size) - forecast_bytes(first)), 1e-9)
    return best, spare


def choose(job: JobSpec, train: ShardDataset) -> Choice:
    """Find the largest micro-batch of a job that fits one worker here.

    Raises:
        UserError: None fits, or there is no such device here.
        WorkError: The trial failed for another reason.
    """
    limits = memory_limits(job)
    sizes = possible_sizes(job)
    note("micro_batch_size auto: training two steps with each of a few sizes, to find the largest that fits")
    workers = job.cluster.most_workers
    exchange = forecast(job, len(train.classes), 1, workers).exchange
    tightest: dict[int, Limit] = {}

    def spare_bytes(size: int) -> int | None:
        if (taken := _take_steps(job, size, len(train))) is None:
            return None
        left = {limit: int(SAFE_SHARE * limit.room_bytes) - taken[limit.kind] - exchange for limit in limits}
        tightest[size] = min(left, key=lambda limit: left[limit])
        return left[tightest[size]]

    size, _ = largest_that_fits([*sizes], lambda size: forecast(job, len(train.classes), size).activations, spare_bytes)
    limit = tightest[size]
    sentence = (
        f"micro_batch_size {size}: the largest that fits here, by {STEPS} training steps; the limit is "
        f"{format_bytes(limit.room_bytes)} of {limit.name}"
    )
    return Choice(size, sentence)


def with_proposed_size(job: JobSpec, train: ShardDataset) -> JobSpec:
    """Return a job of ``micro_batch_size: auto`` with the largest size that the forecast allows; nothing is tried."""
    room = SAFE_SHARE * min(limit.room_bytes for limit in memory_limits(job))
    sizes, workers = possible_sizes(job), job.cluster.most_workers
    fitting = [size for size in sizes if forecast(job, len(train.classes), size, workers).total <= room]
    return sizes[max(fitting, default=min(sizes))]


def with_micro_batch_size(
    job: JobSpec, run: RunDirectory, train: ShardDataset, *, measure: bool = True
) -> tuple[JobSpec, tuple[str, ...]]:
    """Return a job of ``micro_batch_size: auto`` with a number: the run's own, or one that is found now.

    Returns:
        The job, and what was found out; nothing where the run had its number.
    """
    if (text := run.job_text()) is not None:
        number = parse_yaml(text, source=f"{run.url}/job.yaml")["micro_batch_size"]
        return JobSpec.parse(job.document() | {"micro_batch_size": number}, source="job"), ()
    if not measure:
        proposed = with_proposed_size(job, train)
        return proposed, (f"micro_batch_size {proposed.micro_batch_size} by the forecast; training steps decide",)
    choice = choose(job, train)
    return possible_sizes(job)[choice.size], (choice.sentence,)


def _largest_side(job: JobSpec, stride: int) -> int:
    share = job.resolved_hyperparameters().multi_scale
    limit = MultiScale(job.seed, job.data.image_size, stride, share).limit if share > 0 else job.data.image_size
    return limit // stride * stride


def _take_steps(job: JobSpec, size: int, num_samples: int) -> dict[Kind, int] | None:
    """Return the most bytes, by kind, that training in a process of its own took; None where it had not enough."""
    document = job.document()
    for key in ("initial_weights", "initial_weights_sha256", "stop", "notify", "tracking", "checkpoint", "evaluation"):
        document.pop(key, None)
    cluster = {key: document["cluster"][key] for key in ("gpus_per_worker", "cpus_per_worker")}
    side = _largest_side(job, wire(trained_table(job)).max_stride)
    document |= {
        "name": "micro-batch",
        "global_batch_size": size,
        "micro_batch_size": size,
        "batch_norm_workers": 1,
        "strategy": "ddp",
        "cluster": cluster,
        "release_onnx": False,
        "epochs": STEPS * size / num_samples,
        "data": document["data"] | {"image_size": side},
        "hyperparameters": document["hyperparameters"] | {"multi_scale": 0.0, "image_weights": 0.0},
    }
    with tempfile.TemporaryDirectory(prefix="yolofleet-micro-batch-") as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-m", __name__],
                input=json.dumps(document | {"storage": folder}),
                capture_output=True,
                text=True,
                timeout=job.cluster.hang_timeout_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise WorkError(
                f"micro_batch_size auto: the trial with {size} took longer than cluster.hang_timeout_seconds = "
                f"{job.cluster.hang_timeout_seconds:g}; allow more, or give a number"
            ) from error
    if done.returncode == EXIT_OUT_OF_MEMORY or done.returncode < 0:
        return None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise WorkError(f"micro_batch_size auto: the trial with {size} failed: {last}; give a number")
    found: dict[Kind, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def _train_steps(document: dict[str, Any]) -> dict[Kind, int]:
    """Train, and return the most bytes that this process took by kind."""
    from yolofleet.training.loop.out_of_memory import FOLDER
    from yolofleet.training.loop.train import train
    from yolofleet.training.loop.worker_group import WorkerGroup
    from yolofleet.training.setup.preparation import prepare
    from yolofleet.training.supervision.worker import local_device, use_worker_threads

    job = JobSpec.parse(document, source="job")
    device = local_device(job)
    use_worker_threads(job, device)
    with RunDirectory.open(job.storage, job.name) as run:
        prepare(job, run, open_dataset(job.data, job.data.train), done_steps=0).keep(run)
        train(job, run, WorkerGroup(device=device), evaluate=lambda model: None, report=run.append_metrics)
        if run.storage.list(FOLDER):  # it got through only by taking less
            raise MemoryError
    status = Path("/proc/self/status").read_text()
    kilobytes = {name: int(number) for name, number in re.findall(r"^(Vm\w+):\s+(\d+) kB", status, re.MULTILINE)}
    reserved = 0
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        reserved = torch.cuda.max_memory_reserved() + total - free - torch.cuda.memory_reserved()
    return {"device": reserved, "address_space": 1024 * kilobytes["VmPeak"], "resident": 1024 * kilobytes["VmHWM"]}


def main() -> int:
    """Read a job on the input, train it, print what it took."""
    from yolofleet.training.loop.out_of_memory import is_out_of_memory

    try:
        taken = _train_steps(json.load(sys.stdin))
    except Exception as error:
        if is_out_of_memory(error):
            return EXIT_OUT_OF_MEMORY
        raise
    sys.stdout.write(json.dumps(taken) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
