"""``yolofleet train JOB --plan``: everything that the command would do; nothing is started, and nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from yolofleet.core.byte_sizes import format_bytes
from yolofleet.core.errors import UserError
from yolofleet.core.registered_names import MODELS_PREFIX
from yolofleet.core.text import plural
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.loop.milestones import Milestones
from yolofleet.training.loop.non_finite import skipped_windows
from yolofleet.training.loop.schedule import EARLIER_EPOCHS, Schedule
from yolofleet.training.setup.micro_batch import forecast
from yolofleet.training.setup.preflight import check_job
from yolofleet.training.setup.worker_cpus import with_cpus

if TYPE_CHECKING:
    from yolofleet.specs.job import JobSpec
    from yolofleet.training.setup.preflight import Readiness

CURVE_COLUMNS = 60
BARS = "▁▂▃▄▅▆▇█"
NEWEST_ROWS = 20
"""Rows of metrics that say how fast a run is."""


def plan_run(spec: JobSpec, tracking_uri: str | None, launcher: str = "ray") -> dict[str, Any]:
    """Return what training a job would do, as plain values.

    Raises:
        UserError: The job cannot be trained as it is.
    """
    ready = check_job(with_cpus(spec, RunDirectory.open(spec.storage, spec.name), launcher=launcher), record=False)
    job, run, num_samples = ready.job, ready.run, len(ready.train)
    schedule = Schedule.of_run(job, num_samples, _facts(ready))
    milestones = Milestones.of_job(job, num_samples)
    done = ready.done_steps
    end = done if ready.finished else ready.num_steps
    images_per_second = _images_per_second(run)
    hours = None if images_per_second is None else (end - done) * job.global_batch_size / images_per_second / 3600
    cost = None if hours is None or job.cluster.price_per_hour is None else hours * job.cluster.price_per_hour
    memory = forecast(job, len(ready.train.classes), job.resolved_micro_batch_size, job.cluster.most_workers)
    samples = [ready.num_steps * column // CURVE_COLUMNS for column in range(CURVE_COLUMNS)]
    return {
        "name": job.name,
        "run_directory": run.url,
        "finished": ready.finished,
        "steps": ready.num_steps,
        "done_steps": done,
        "steps_per_epoch": schedule.steps_per_epoch,
        "epochs": job.epochs,
        "stop": None if job.stop is None else job.stop.document(),
        "warmup_steps": schedule.warmup_steps,
        "single_images_from_step": schedule.first_single_images(done, end),
        "evaluations": milestones.num_evaluations(done, end),
        "checkpoints": milestones.num_saves(done, end),
        "initial_weights": job.initial_weights,
        "initial_version": _initial_version(ready, tracking_uri),
        "train_images": num_samples,
        "val_images": len(ready.val),
        "global_batch_size": job.global_batch_size,
        "micro_batch_size": job.resolved_micro_batch_size,
        "micro_batches": job.num_micro_batches,
        "workers": [job.cluster.fewest_workers, job.cluster.most_workers],
        "gpus_per_worker": job.cluster.gpus_per_worker,
        "cpus_per_worker": job.cluster.worker_cpus,
        "strategy": job.strategy,
        "precision": job.precision,
        "images_per_second": images_per_second,
        "hours": None if hours is None else float(f"{hours:.3g}"),
        "cost": None if cost is None else round(cost * _newest_workers(run), 2),
        "memory": {**asdict(memory), "total": memory.total, "use": job.memory},
        "learning_rate": [{"step": step, "learning_rate": schedule.at(step).learning_rate} for step in samples],
        "skipped": [*_skipped(ready, tracking_uri)],
        "writes": [*_writes(job, run, tracking_uri)],
        "not_checked": [*_not_checked(ready, tracking_uri)],
        "changes": list(ready.changes),
        "notes": list(ready.notes),
    }


def _facts(ready: Readiness) -> dict[str, Any]:
    """Return the facts of the run as they would be once it starts."""
    facts = ready.run.facts()
    if ready.raised_from is None:
        return facts
    return facts | {EARLIER_EPOCHS: [*facts.get(EARLIER_EPOCHS, []), [ready.raised_from, ready.done_steps]]}


def _initial_version(ready: Readiness, tracking_uri: str | None) -> str | None:
    """Return the registered version that the run started from, or would start from; None where it is none, or unknown.

    Raises:
        UserError: There is no such version.
    """
    weights = ready.job.initial_weights
    if weights is None or not weights.startswith(MODELS_PREFIX):
        return None
    if (facts := ready.run.facts().get("initial_weights")) is not None:
        parent: str | None = facts.get("parent")
        return parent
    from yolofleet.cli.model_argument import find_weights
    from yolofleet.registry.versions import RegistryError
    from yolofleet.tracking.mlflow_store import TrackingError, TrackingFailureError

    try:
        return find_weights(weights, tracking_uri)[1].uri
    except RegistryError as error:
        raise UserError(f"initial_weights {weights}: {error}") from error
    except (TrackingError, TrackingFailureError):
        return None  # the start asks MLflow, and a plan says that it was not asked


def _images_per_second(run: RunDirectory) -> float | None:
    """Return the pace of the run's newest steps; None before any."""
    paces = [float(row["samples_per_second"]) for row in run.metrics() if row.get("samples_per_second")][-NEWEST_ROWS:]
    return sorted(paces)[len(paces) // 2] if paces else None


def _newest_workers(run: RunDirectory) -> int:
    """Return the workers of the run's newest start, which its pace is that of."""
    return next((int(event["workers"]) for event in reversed(run.events()) if event.get("kind") == "start"), 1)


def _skipped(ready: Readiness, tracking_uri: str | None) -> Iterator[str]:
    """Yield what a run might do and this one does not."""
    job = ready.job
    if ready.finished:
        yield "training: the run is finished"
    elif ready.done_steps:
        yield f"steps 1 to {ready.done_steps}: they are done"
    yield from (f"steps {first + 1} to {end}: they were non-finite" for first, end in skipped_windows(ready.run))
    if job.tracking.register_as is None:
        yield "registration: tracking.register_as is not set"
    if tracking_uri is None:
        yield "MLflow: tracking.uri is not set"
    if not job.release_onnx:
        yield "ONNX: release_onnx is false"
    if job.notify is None:
        yield "notification: notify is not set"


def _writes(job: JobSpec, run: RunDirectory, tracking_uri: str | None) -> Iterator[str]:
    """Yield where the run writes."""
    yield f"{run.url}: metrics, events, {plural(job.checkpoint.keep, 'checkpoint')} and the best, model, report"
    if tracking_uri is not None:
        name = job.tracking.register_as
        yield f"{tracking_uri}: experiment {job.tracking.experiment}" + (f", model {name}" if name else "")
    if job.data.cache is not None:
        yield f"{job.data.cache.path}: shards, at most {format_bytes(job.data.cache.max_bytes)}"


def _not_checked(ready: Readiness, tracking_uri: str | None) -> Iterator[str]:
    """Yield what the start looks at, and a plan does not."""
    if ready.job.initial_weights is not None and not ready.run.exists():
        yield f"{ready.job.initial_weights}: whether its weights fit"
    if tracking_uri is not None:
        yield f"{tracking_uri}: whether MLflow answers"


def plan_lines(plan: dict[str, Any]) -> Iterator[str]:
    """Yield the plan as text."""
    yield f"plan of run '{plan['name']}': nothing is started, nothing is written"
    rates = [entry["learning_rate"] for entry in plan["learning_rate"]]
    fewest, most = plan["workers"]
    memory = plan["memory"]
    parts = [f"{part} {format_bytes(memory[part])}" for part in ("activations", "weights", "gradients", "momentum")]
    pace = "not known before the first steps"
    if plan["hours"] is not None:
        pace = f"{plan['hours']:.2f} at the {plan['images_per_second']:.1f} images/s of its newest steps"
        pace += "" if plan["cost"] is None else f", for {plan['cost']:.2f}"
    devices = plural(plan["gpus_per_worker"], "GPU", form="g") if plan["gpus_per_worker"] else "no GPU"
    single = plan["single_images_from_step"]
    closing = "" if single is None else f"; single images from step {single:,}"
    weights, version = plan["initial_weights"], plan["initial_version"]
    limits = ", ".join(f"{key} {value}" for key, value in (plan["stop"] or {}).items())
    lines = {
        "steps": f"{plan['steps']:,} ({plural(plan['epochs'], 'epoch', form='g')} of {plan['steps_per_epoch']:.1f}), "
        f"{plan['done_steps']:,} of them done",
        "early end": limits or "no: stop is not set",
        "hours": pace,
        "data": f"{plural(plan['train_images'], 'image')} to train on, {plan['val_images']:,} to evaluate with",
        "weights": "random"
        if weights is None
        else weights + (f", which is {version}" if version not in (None, weights) else ""),
        "batch": f"{plural(plan['global_batch_size'], 'image')} in {plural(plan['micro_batches'], 'micro-batch')} of "
        f"{plan['micro_batch_size']}",
        "workers": f"{fewest if fewest == most else f'{fewest} to {most}'}, each with {devices} and "
        f"{plural(plan['cpus_per_worker'], 'CPU', form='g')}; {plan['strategy']}, {plan['precision']}",
        "memory": f"{format_bytes(memory['total'])} a worker by the forecast, memory: {memory['use']} "
        f"({', '.join(parts)}, ...)",
        "evaluations": f"{plan['evaluations']:,}, and {plural(plan['checkpoints'], 'checkpoint')}",
        "learning rate": f"{curve(rates)} {min(rates):.2g} to {max(rates):.2g}",
        "": f"warm-up of {plural(plan['warmup_steps'], 'step')}" + closing,
    }
    yield from (f"  {name:<14} {text}" for name, text in lines.items())
    for title in ("skipped", "writes", "not_checked", "changes", "notes"):
        name = title.replace("_", " ")
        yield from (f"  {name if number == 0 else '':<14} {line}" for number, line in enumerate(plan[title]))


def curve(values: list[float]) -> str:
    """Draw values as a row of bars, the largest at full height."""
    top = max(values, default=0.0) or 1.0
    return "".join(BARS[min(len(BARS) - 1, int(value / top * len(BARS)))] for value in values)
