"""The measured rate of a job: the seconds of a step, and of its stages, from a trial of a few steps or from a run.

A trial trains with one worker in a temporary folder, on this machine's device, and leaves nothing behind. The worker
does what the busiest of the job's workers would do: its own micro-batches, without an exchange.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from yolofleet.core.errors import UserError, WorkError
from yolofleet.specs.cluster import ClusterSpec
from yolofleet.specs.job import CheckpointSpec, EvaluationSpec, JobSpec
from yolofleet.specs.tracking import TrackingSpec
from yolofleet.specs.yaml_document import parse_yaml
from yolofleet.tracking.json_lines import Row, seconds_of
from yolofleet.tracking.run_directory import RunDirectory

RATE_FORMAT = 1
TRIAL_STEPS = 30
ROW_STEPS = 10
"""Steps of a row of metrics in a trial; the first row warms up and does not count."""
PER_STEP = ("optimizer", "checkpoint")
"""Stages that a step has once; all others but the exchange come with every micro-batch."""
MEASURES = ("model", "image_size", "micro_batch_size", "precision", "memory", "compile")
"""What decides the time of a micro-batch."""
NEVER = 1e6
"""Epochs that no trial reaches."""


@dataclass(frozen=True)
class Rate:
    """How long a step takes."""

    seconds_per_step: float
    workers: int
    """Workers that it was measured with."""
    micro_batches: int
    """Micro-batches of the busiest of them, in one step."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds of a step in each stage, a mean over the workers; empty where that is not known."""
    measures: dict[str, Any] = field(default_factory=dict)
    """What the work of a micro-batch was: model, image size, images, precision."""
    device: str | None = None
    steps: int = 0
    """Steps that were counted."""
    covers_evaluation: bool = False
    """Whether evaluations and all that lies between two steps are in it."""
    flops_utilization: float | None = None
    """Share of the device's peak that the operations of the model reached."""

    @property
    def exchange_seconds(self) -> float:
        """Seconds of a step in which workers wait for each other's gradients."""
        return self.stages.get("exchange", 0.0)

    @property
    def seconds_once(self) -> float:
        """Seconds that a step has once, however many micro-batches it has."""
        return sum(self.stages.get(stage, 0.0) for stage in PER_STEP)

    @property
    def seconds_per_micro_batch(self) -> float:
        """Seconds that come with each micro-batch."""
        return max(0.0, self.seconds_per_step - self.seconds_once - self.exchange_seconds) / self.micro_batches

    def document(self) -> dict[str, Any]:
        """Return it as a rate file."""
        return {"format": RATE_FORMAT, **asdict(self)}

    def check_fits(self, job: JobSpec, source: str) -> None:
        """Refuse to speak for a job whose micro-batches are other work.

        Raises:
            UserError: Names what differs.
        """
        now = measured_work(job)
        different = [
            f"{key} {self.measures[key]}, not {now[key]}" for key in self.measures if self.measures[key] != now[key]
        ]
        if different:
            raise UserError(
                f"{source}: was measured for {'; '.join(different)}. Measure this job: yolofleet train JOB --measure "
                "--json > rate.json"
            )


def measured_work(job: JobSpec) -> dict[str, Any]:
    """Return what decides the time of a micro-batch."""
    model = {key: value for key, value in job.computation()["model"].items() if value is not None}
    values = (json.dumps(model, sort_keys=True), job.data.image_size, job.micro_batch_size, job.precision)
    return dict(zip(MEASURES, (*values, job.memory, job.compile), strict=True))


def parse_rate(text: str, source: str) -> Rate:
    """Read a rate file.

    Raises:
        UserError: It is none.
    """
    try:
        document = json.loads(text)
        if document.pop("format") != RATE_FORMAT:
            raise ValueError(f"its format is not {RATE_FORMAT}")
        rate = Rate(**{key: document[key] for key in document if key in {entry.name for entry in fields(Rate)}})
        if not (0 < rate.seconds_per_step < math.inf and rate.workers > 0 and rate.micro_batches > 0):
            raise ValueError("its figures are not positive")
        if not (isinstance(rate.workers, int) and isinstance(rate.micro_batches, int)):
            raise ValueError("workers and micro_batches are whole numbers")
        if any(not 0 <= seconds < math.inf for seconds in rate.stages.values()):
            raise ValueError("the seconds of its stages are none")
        if unknown := rate.measures.keys() - MEASURES:
            raise ValueError(f"what it measures is unknown: {', '.join(sorted(unknown))}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{source}: is no rate file ({error}); make one: yolofleet train JOB --measure --json > rate.json"
        ) from None
    return rate


def busiest_share(job: JobSpec, workers: int) -> int:
    """Return the micro-batches of a step that the busiest worker has."""
    return -(-job.num_micro_batches // workers)


def trial_job(job: JobSpec, folder: str) -> JobSpec:
    """Return the job of a trial: the share of the busiest worker, in a folder of its own, without end."""
    share = busiest_share(job, job.cluster.most_workers)
    changes: dict[str, Any] = {
        "name": "trial",
        "storage": folder,
        "epochs": NEVER,
        "stop": None,
        "global_batch_size": share * job.micro_batch_size,
        "batch_norm_workers": 1,
        "strategy": "ddp",
        "initial_weights": None,
        "initial_weights_sha256": None,
        "anchors": "model",
        "log_every_steps": ROW_STEPS,
        "record_samples": False,
        "release_onnx": False,
        "evaluation": EvaluationSpec(every_epochs=NEVER),
        "checkpoint": CheckpointSpec(every_steps=10**9),
        "cluster": ClusterSpec(gpus_per_worker=job.cluster.gpus_per_worker, cpus_per_worker=job.cluster.worker_cpus),
        "tracking": TrackingSpec(),
        "notify": None,
    }
    return job.model_copy(update=changes)


def measure_rate(job: JobSpec, num_steps: int = TRIAL_STEPS) -> Rate:
    """Train a few steps of a job with one worker, in this process, and return how long they took.

    Raises:
        UserError: The job does not fit its data or this machine.
        WorkError: Its steps cannot be computed.
    """
    from yolofleet.training.loop.worker_group import WorkerGroup
    from yolofleet.training.loop.worker_progress import WorkerProgress
    from yolofleet.training.setup.preflight import check_job
    from yolofleet.training.supervision.worker import local_device, run_worker

    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="yolofleet-trial-") as folder:
        trial = trial_job(job, folder)
        check_job(trial)
        progress = WorkerProgress(leave_after_step=num_steps, on_row=rows.append)
        run_worker(trial, WorkerGroup(device=local_device(trial), progress=progress))
    start = next(row for row in rows if row.get("kind") == "start")
    metrics = [row for row in rows if "samples_per_second" in row]
    return rate_of_rows(metrics[1:], start, trial, ROW_STEPS)


def rate_of_rows(rows: Sequence[Row], start: Mapping[str, Any], job: JobSpec, row_steps: int) -> Rate:
    """Return the rate that rows of metrics tell.

    Args:
        rows: Rows of training, each over as many steps.
        start: The event of the start that they belong to.
        job: What was trained.
        row_steps: Steps of each row.

    Raises:
        WorkError: There are none.
    """
    if not rows:
        raise WorkError(f"too few steps to measure; it takes at least {2 * ROW_STEPS}")
    workers = int(start.get("workers", 1))
    seconds = [row_steps * job.global_batch_size / float(row["samples_per_second"]) for row in rows]
    names = sorted({key.removesuffix("_share") for row in rows for key in row if key.endswith("_share")})
    steps = row_steps * len(rows)
    shares = {
        name: sum(row.get(f"{name}_share", 0.0) * part for row, part in zip(rows, seconds, strict=True)) / steps
        for name in names
    }
    reached = [row["model_flops_utilization"] for row in rows if "model_flops_utilization" in row]
    return Rate(
        seconds_per_step=sum(seconds) / steps,
        workers=workers,
        micro_batches=busiest_share(job, workers),
        stages=shares,
        measures=measured_work(job),
        device=start.get("device"),
        steps=steps,
        flops_utilization=sum(reached) / len(reached) if reached else None,
    )


def rate_of_run(run: RunDirectory) -> Rate:
    """Return the rate of a run since its last start, evaluations and pauses between steps included.

    Raises:
        UserError: It has not trained long enough.
    """
    events, text = run.events(), run.job_text()
    start = next((event for event in reversed(events) if event.get("kind") == "start"), None)
    if text is None or start is None:
        raise UserError(f"{run.url}: is not the directory of a run that has trained; give the folder STORAGE/NAME")
    job = JobSpec.parse(parse_yaml(text, source=f"{run.url}/job.yaml"), source=f"{run.url}/job.yaml")
    rows = [row for row in run.metrics() if "samples_per_second" in row and seconds_of(row) >= seconds_of(start)]
    if len(rows) < 2 or rows[-1]["step"] <= rows[0]["step"]:
        raise UserError(
            f"{run.url}: has too few rows of metrics since its last start to tell its rate; let it train on"
        )
    steps = rows[-1]["step"] - rows[0]["step"]
    inside = rate_of_rows(rows[1:], start, job, job.log_every_steps)
    values = asdict(inside)
    elapsed = (seconds_of(rows[-1]) - seconds_of(rows[0])) / steps
    return Rate(**{**values, "seconds_per_step": elapsed, "steps": steps, "covers_evaluation": True})
