"""What MLflow has of a run, and what people see there: readable tags, a description, metrics in groups, images, models.

All of it comes from the run directory, so a mirror can be rebuilt. Digests stay in ``facts.json``, an artifact of the
run. Images are those that each evaluation left; each kept checkpoint that was evaluated becomes a model with its
figures once the run has ended: four requests for each.
"""

from __future__ import annotations

import io
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from yolofleet.core.redaction import redact, redact_values
from yolofleet.core.text import plural
from yolofleet.tracking.goodput import status_after
from yolofleet.tracking.json_lines import Row
from yolofleet.tracking.mlflow_store import experiment_id, open_client
from yolofleet.tracking.run_directory import EVALUATION_IMAGES, RunDirectory

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

IDENTITY_TAG = "yolofleet.run_id"
LOCATION_TAG = "yolofleet.run_directory"
PARENT_TAG = "mlflow.parentRunId"
MADE_TAG = "yolofleet.made_at_ns"
"""When a run was made in MLflow, which may be long after it began: of two that are made at once the older one stays."""
CHECKPOINT_TYPE = "checkpoint"
LONGEST_PARAM = 6000
LONGEST_NAME = 250
DESCRIPTION_TAG = "mlflow.note.content"
LONGEST_TAG = 5000
LONGEST_DIGEST = 36
"""Characters that MLflow takes of a dataset's digest."""
SYSTEM: tuple[str, ...] = (
    "samples_per_second",
    "teraflops_per_second",
    "model_flops_utilization",
    "slowest_rank",
    "epoch",
)
SYSTEM += ("slowest_rank_excess", "non_finite_steps", "worker_hours", "gpu_hours", "cost")
SCHEDULE = ("learning_rate", "momentum", "gradient_norm")
OLD_NAMES = ("loss", "val_AP")
"""Metrics of a run that an older yolofleet mirrored; such a run keeps its names."""
STATUSES = {None: "not started", "RUNNING": "training", "FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped"}
MOST_IMAGE_BYTES = 16 << 20
FIGURES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")


def find_run(client: MlflowClient, experiment: str, identity: str) -> Run | None:
    """Return the MLflow run of a run directory, the oldest if there are several, or None."""
    found = client.search_runs([experiment], f"tags.`{IDENTITY_TAG}` = '{identity}'")
    return min(found, key=lambda run: (_made_at_ns(run), run.info.run_id), default=None)


def _made_at_ns(run: Run) -> int:
    """Return when a run was made; an older yolofleet made it when it began."""
    return int(run.data.tags.get(MADE_TAG, run.info.start_time * 1_000_000))


def delete_mlflow_run(run: RunDirectory, tracking_uri: str, experiment: str) -> None:
    """Delete what MLflow holds of a run directory; the directory itself is left alone."""
    client = open_client(tracking_uri)
    while (found := find_run(client, experiment_id(client, experiment), run.identity)) is not None:
        client.delete_run(found.info.run_id)


def create_run(client: MlflowClient, experiment: str, run: RunDirectory, parent_run_id: str | None) -> Run:
    """Create the MLflow run of a run directory; two processes that do so at once end with the same one."""
    tags = {IDENTITY_TAG: run.identity, LOCATION_TAG: run.url, MADE_TAG: str(time.time_ns())}
    if parent_run_id is not None:
        tags[PARENT_TAG] = parent_run_id
    events = run.events()
    began = unix_milliseconds(str(events[0].get("time", ""))) if events else None  # it may be sent long after it ran
    made = client.create_run(experiment, start_time=began or None, run_name=run.name, tags=tags)
    found = find_run(client, experiment, run.identity)
    if found is None or found.info.run_id == made.info.run_id:
        return made
    client.delete_run(made.info.run_id)
    return found


def last_steps(run: Run) -> dict[str, int]:
    """Return for each metric of an MLflow run the last step that the server holds."""
    return {metric.key: int(metric.step) for metric in run.data.to_proto().metrics}


def numbers(row: Row) -> Iterator[tuple[str, float]]:
    """Yield the names and values of a metrics row that MLflow can draw: its numbers, except step and time."""
    for key, value in row.items():
        if key not in ("step", "time") and isinstance(value, int | float) and not isinstance(value, bool):
            yield valid_name(key), float(value)


def valid_name(name: str) -> str:
    """Return the name with what MLflow forbids in names replaced by ``_``."""
    return re.sub(r"[^/\w.\- :]", "_", name)[:LONGEST_NAME]


def flat_params(document: Mapping[str, Any], prefix: str = "", longest: int = LONGEST_PARAM) -> dict[str, str]:
    """Return a document's leaves as text by dotted path: ``{"data": {"side": 640}}`` -> ``{"data.side": "640"}``.

    What is None is left out; a text longer than ``longest`` is cut.
    """
    leaves: dict[str, str] = {}
    for key, value in document.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            leaves |= flat_params(value, f"{path}.", longest)
        elif value is not None:
            leaves[valid_name(path)] = _text(redact_values(value))[:longest]
    return leaves


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def grouped_name(name: str) -> str:
    """Return a metric's name with its group, as MLflow's charts are put together: ``val/AP``, ``loss/box``."""
    if name.startswith("val_loss"):
        return f"loss/{name}"
    if name.startswith("val_"):
        return f"val/{name.removeprefix('val_')}"
    if name == "loss":
        return "loss/total"
    if name.startswith("loss_"):
        return f"loss/{name.removeprefix('loss_')}"
    if name in SCHEDULE:
        return f"schedule/{name}"
    if name in SYSTEM or name.startswith("skipped_") or name.endswith("_share"):
        return f"system/{name}"
    return name


def readable_tags(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return who started a run, where, with which command and code, under MLflow's names and under plain ones."""
    started = facts.get("started")
    if not isinstance(started, Mapping):
        return {}
    known = {key: str(started[key]) for key in ("user", "host", "command", "commit", "branch") if started.get(key)}
    names = {
        "user": "mlflow.user",
        "command": "mlflow.source.name",
        "commit": "mlflow.source.git.commit",
        "branch": "mlflow.source.git.branch",
    }
    tags = known | {names[key]: value for key, value in known.items() if key in names}
    if "command" in known:
        tags["mlflow.source.type"] = "LOCAL"
        tags["mlflow.source.name"] = " ".join(known["command"].split()[:2])  # of a path only the end would be shown
    return {key: redact(value)[:LONGEST_TAG] for key, value in tags.items()}


def describe_run(run: RunDirectory, facts: Mapping[str, Any], events: Sequence[Row], rows: Mapping[str, Any]) -> str:
    """Return the description of a run, in Markdown: what it is, how far, how good, and what it used.

    Args:
        run: The run directory.
        facts: Its facts.
        events: Its events.
        rows: The newest value of each metric.
    """
    job = run.job_document()
    model = job.get("model") or {}
    data = job.get("data") or {}
    figures = facts.get("figures") or {key.removeprefix("val_"): rows[key] for key in rows if key.startswith("val_")}
    shown = ", ".join(f"{key} {figures[key]:.4f}" for key in FIGURES if isinstance(figures.get(key), int | float))
    step = facts.get("released_step", rows.get("step"))
    what = "of the released model" if "released_step" in facts else "at the newest evaluation"
    lines = [f"**{run.name}**: {STATUSES.get(status_after(events), '')}"]
    lines[0] += f", step {step:,}" if isinstance(step, int) else ""
    if shown:
        lines.append(f"{shown} {what}")
    if model or data:
        lines.append(
            f"model `{model.get('name') or model.get('spec') or 'of the job'}`, {data.get('image_size', 640)} px"
        )
        lines.append(f"trained on `{data.get('train')}`, evaluated on `{data.get('val')}`")
    if status_after(events) == "FINISHED":
        since = max((number for number, event in enumerate(events) if event.get("kind") == "start"), default=0)
        lines += [
            f"ended early: {event.get('reason')}" for event in events[since:] if event.get("kind") == "ended_early"
        ]
    starts = sum(event.get("kind") == "start" for event in events)
    failures = sum(event.get("kind") == "failure" for event in events)
    lines.append(f"{plural(starts, 'start')}, {plural(failures, 'failure')}")
    lines.append(f"run directory `{run.url}`; the report is `report/index.html` among the artifacts")
    return redact("\n\n".join(lines))[:LONGEST_TAG]


def unix_milliseconds(time: str) -> int:
    """Return an ISO 8601 time as MLflow counts it; 0 (1970) for a row without a readable time."""
    try:
        return math.floor(datetime.fromisoformat(time).timestamp() * 1000)
    except (ValueError, OverflowError):
        return 0


def send_datasets(client: MlflowClient, found: Run, run: RunDirectory, facts: Mapping[str, Any]) -> None:
    """Name the data of a run as its inputs, once."""
    digests = facts.get("data")
    if not isinstance(digests, Mapping) or (found.inputs is not None and found.inputs.dataset_inputs):
        return
    from mlflow.entities import Dataset, DatasetInput, InputTag

    urls = run.job_document().get("data") or {}
    inputs = []
    for part, context in (("train", "training"), ("val", "validation")):
        if part in digests:
            url = str(redact_values(urls.get(part) or part))
            source = json.dumps({"uri": url, "manifest_sha256": digests[part]})
            name = url.rstrip("/").rpartition("/")[2]
            dataset = Dataset(name, str(digests[part])[:LONGEST_DIGEST], "webdataset", source)
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
    client.log_inputs(found.info.run_id, datasets=inputs)


class SentImages:
    """The images of evaluations that MLflow has of a run.

    Args:
        client: MLflow.
        run_id: The MLflow run.
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client = client
        self._run_id = run_id
        self._sent: set[tuple[str, int]] | None = None

    def send(self, run: RunDirectory, keys: Sequence[str]) -> None:
        """Send what MLflow lacks of the images among these keys of the run directory."""
        if self._sent is None:  # what an earlier pass, or an earlier process, has sent
            names = [entry.path for entry in self._client.list_artifacts(self._run_id, "images")]
            found = (re.search(r"([^/+%]+)[+%]step[+%](\d+)[+%]", name) for name in names)
            self._sent = {(match[1], int(match[2])) for match in found if match}
        from PIL import Image

        for key, name, step in _images(keys):
            if (name, step) not in self._sent:
                with Image.open(io.BytesIO(run.storage.get_at_most(key, MOST_IMAGE_BYTES))) as image:
                    self._client.log_image(self._run_id, image.convert("RGB"), key=name, step=step)
                self._sent.add((name, step))


def _images(keys: Sequence[str]) -> Iterator[tuple[str, str, int]]:
    """Yield key, name in MLflow and step of the images of all evaluations."""
    for key in keys:
        if (match := re.fullmatch(rf"{EVALUATION_IMAGES}/step-([0-9]{{1,12}})/([0-9]{{1,6}})\.jpg", key)) is not None:
            yield key, f"image-{match[2]}", int(match[1])


def send_checkpoints(client: MlflowClient, found: Run, run: RunDirectory, name_of: Callable[[str], str]) -> None:
    """Make a model of each kept checkpoint that was evaluated, with its figures, where there is none yet.

    Args:
        client: MLflow.
        found: The MLflow run.
        run: The run directory.
        name_of: Returns the name that a metric has in MLflow.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric

    listed = run.storage.list("checkpoints/")
    marks = (re.fullmatch(r"checkpoints/step-([0-9]{1,12})/COMMITTED", entry.key) for entry in listed)
    kept = {int(match[1]) for match in marks if match}
    evaluated = {row["step"]: row for row in run.metrics() if "val_AP" in row and row.get("step") in kept}
    if not evaluated:
        return
    experiment, run_id = found.info.experiment_id, found.info.run_id
    known = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
    missing = evaluated.keys() - {int(model.tags["step"]) for model in known if "step" in model.tags}
    for step in sorted(missing):
        tags = {"step": str(step), "checkpoint": f"{run.url}/checkpoints/step-{step}"}
        model = client.create_logged_model(
            experiment, name=f"step-{step}", source_run_id=run_id, tags=tags, model_type=CHECKPOINT_TYPE
        )
        figures = [(name_of(key), value) for key, value in evaluated[step].items() if key.startswith("val_")]
        at = unix_milliseconds(str(evaluated[step].get("time", "")))  # as the run's own: MLflow keeps equal rows once
        metrics = [
            Metric(key, float(value), at, step, model_id=model.model_id)
            for key, value in figures
            if isinstance(value, int | float)
        ]
        client.log_batch(run_id, metrics=metrics)
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
