"""What people see of a run in MLflow: readable tags and a description, metrics in groups, the data as inputs.

All of it comes from the run directory, so a mirror can be rebuilt. Digests stay in ``facts.json``, which is an artifact
of the run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from yolofleet.core.redaction import redact, redact_values
from yolofleet.tracking.json_lines import Row
from yolofleet.tracking.run_directory import RunDirectory, status_after

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DESCRIPTION_TAG = "mlflow.note.content"
LONGEST_TAG = 5000
LONGEST_DIGEST = 36
"""Characters that MLflow takes of a dataset's digest."""
SYSTEM = ("samples_per_second", "data_wait_share", "epoch", "non_finite_steps")
SCHEDULE = ("learning_rate", "momentum", "gradient_norm")
OLD_NAMES = ("loss", "val_AP")
"""Metrics of a run that an older yolofleet mirrored; such a run keeps its names."""
STATUSES = {None: "not started", "RUNNING": "training", "FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped"}
FIGURES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")


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
    if name in SYSTEM or name.startswith("skipped_"):
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
    return {key: redact(value)[:LONGEST_TAG] for key, value in tags.items()}


def describe_run(run: RunDirectory, facts: Mapping[str, Any], events: Sequence[Row], rows: Mapping[str, Any]) -> str:
    """Return the description of a run, in Markdown: what it is, how far, how good, and what it used.

    Args:
        run: The run directory.
        facts: Its facts.
        events: Its events.
        rows: The newest value of each metric.
    """
    from yolofleet.tracking.goodput import summarize_run

    job = _document(run)
    model = job.get("model") or {}
    data = job.get("data") or {}
    figures = facts.get("figures") or {key.removeprefix("val_"): rows[key] for key in rows if key.startswith("val_")}
    shown = ", ".join(f"{key} {figures[key]:.4f}" for key in FIGURES if isinstance(figures.get(key), int | float))
    summary = summarize_run(events)
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
    hours = f"{summary.worker_hours:.3g} worker hours in {summary.starts} start{'' if summary.starts == 1 else 's'}"
    goodput = "" if summary.goodput is None else f", {summary.goodput:.1%} of the time not lost to failures"
    lines.append(hours + goodput)
    lines.append(f"run directory `{run.url}`; the report is `report/index.html` among the artifacts")
    return redact("\n\n".join(lines))[:LONGEST_TAG]


def unix_milliseconds(time: str) -> int:
    """Return an ISO 8601 time as MLflow counts it; 0 (1970) for a row without a readable time."""
    try:
        return math.floor(datetime.fromisoformat(time).timestamp() * 1000)
    except ValueError:
        return 0


def _document(run: RunDirectory) -> dict[str, Any]:
    from yolofleet.specs.yaml_document import parse_yaml

    return parse_yaml(run.job_text() or "", source=f"{run.url}/{run.spec_key}") or {}


def send_datasets(client: MlflowClient, found: Run, run: RunDirectory, facts: Mapping[str, Any]) -> None:
    """Name the data of a run as its inputs, once."""
    digests = facts.get("data")
    if not isinstance(digests, Mapping) or (found.inputs is not None and found.inputs.dataset_inputs):
        return
    from mlflow.entities import Dataset, DatasetInput, InputTag

    urls = _document(run).get("data") or {}
    inputs = []
    for part, context in (("train", "training"), ("val", "validation")):
        if part in digests:
            url = str(redact_values(urls.get(part) or part))
            source = json.dumps({"uri": url, "manifest_sha256": digests[part]})
            name = url.rstrip("/").rpartition("/")[2]
            dataset = Dataset(name, str(digests[part])[:LONGEST_DIGEST], "webdataset", source)
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
    client.log_inputs(found.info.run_id, datasets=inputs)
