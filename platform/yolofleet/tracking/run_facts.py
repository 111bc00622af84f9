"""The facts of a run, for its page: model, training, data, software, cost, and what differs from the recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from yolofleet.core.durations import describe_duration
from yolofleet.core.redaction import redact
from yolofleet.core.text import plural
from yolofleet.reports.page import Markup, facts, grid
from yolofleet.specs.hyperparameters import recipe
from yolofleet.tracking.json_lines import seconds_of
from yolofleet.tracking.run_record import RunRecord


def run_facts(record: RunRecord) -> Markup:
    """Return all facts of a run, in groups."""
    parts = {
        "Model": _model_facts(record),
        "Training": _training_facts(record),
        "Data": _data_facts(record),
        "Software and cost": _cost_facts(record),
        "Hyper-parameters that differ from the recipe": dict(_changed_parameters(record)),
    }
    shown = [
        Markup("<div><h3>{}</h3>{}</div>").format(
            title, facts({k: redact(str(v)) for k, v in found.items() if v is not None})
        )
        for title, found in parts.items()
        if found
    ]
    return grid(shown, "facts")


def model_name(record: RunRecord) -> str:
    """Return the name of its model, with the factors that change it."""
    if record.job is None:
        return "This run"
    choice = record.job.model
    factors = (("depth", None if choice.depth == 1.0 else choice.depth), ("width", choice.transition_width))
    changed = ", ".join(f"{name} {value:g}" for name, value in factors if value is not None)
    return f"{choice.name or choice.spec}{f' ({changed})' if changed else ''}"


def _model_facts(record: RunRecord) -> dict[str, object]:
    if record.job is None:
        return {"job": "is of another version of yolofleet, which this one cannot read"}
    choice, cost = record.job.model, record.model
    found: dict[str, object] = {"model": choice.name or choice.spec, "depth": f"{choice.depth:g}"}
    found |= {f.replace("_", " "): f"{v:g}" for f in ("transition_width", "hidden_width") if (v := getattr(choice, f))}
    if cost is not None:
        found |= {
            "parameters": f"{cost.parameters_deployed / 1e6:.2f} M deployed, {cost.parameters / 1e6:.2f} M in training",
            "GFLOPs": f"{cost.gflops_deployed:.2f} deployed, {cost.gflops:.2f} in training, at {cost.image_size} px",
            "classes": cost.num_classes,
        }
    found["anchors"] = record.release.get("anchors")
    found["released step"] = record.facts.get("released_step")
    found["registered as"] = record.release.get("model")
    return found


def _training_facts(record: RunRecord) -> dict[str, object]:
    job, starts = record.job, record.starts
    if job is None or not starts:
        return {}
    newest, newest_rows = starts[-1], (record.events[-1], *record.rows[-1:])
    gpus = float(newest.get("gpus_per_worker") or 0)
    devices = f"{gpus:g} GPU each" if gpus else "CPU"
    hosts = next((e["hosts"] for e in reversed(record.events) if e.get("kind") == "workers" and e.get("hosts")), None)
    return {
        "started": str(starts[0]["time"])[:19].replace("T", " ") + " UTC",
        "duration": describe_duration(max(map(seconds_of, newest_rows)) - seconds_of(starts[0])),
        "trained": describe_duration(record.summary.seconds_trained),
        "workers": f"{newest.get('workers', 1)}, {newest.get('device') or devices}",
        "hosts": ", ".join(sorted(set(map(str, hosts)))) if hosts else None,
        "precision": job.precision,
        "strategy": job.strategy,
        "batch": f"{plural(job.global_batch_size, 'image')} a step, {job.micro_batch_size} in one pass",
        "image size": f"{job.data.image_size} px",
        "epochs": f"{job.epochs:g}",
        "recipe": job.recipe,
        "seed": job.seed,
    }


def _data_facts(record: RunRecord) -> dict[str, object]:
    job, digests = record.job, record.facts.get("contents", {})
    if job is None:
        return {}
    return {
        "training set": job.data.train,
        "its manifest": str(digests.get("train", "-"))[:16],
        "validation set": job.data.val,
        "manifest of it": str(digests.get("val", "-"))[:16],
        "block table": str(digests.get("model", "-"))[:16],
        "evaluation": ", ".join(map(str, record.facts.get("evaluation", {}).values())) or None,
        **{f"skipped in {part}": _skips(found) for part, found in record.release.get("skipped", {}).items()},
    }


def _cost_facts(record: RunRecord) -> dict[str, object]:
    summary, environment = record.summary, record.facts.get("environment", {})
    return {
        **{str(name): value for name, value in environment.items()},
        "goodput": None if summary.goodput is None else f"{summary.goodput:.1%}",
        "starts": summary.starts,
        "failures": ", ".join(f"{kind} {count}" for kind, count in summary.failures.items()) or "none",
        "worker hours": f"{summary.worker_hours:.3g}",
        "GPU hours": f"{summary.gpu_hours:.3g}",
        "cost": summary.cost if summary.cost is not None else "not known: the job names no cluster.price_per_hour",
        "cost at its end": summary.forecast_cost,
    }


def _changed_parameters(record: RunRecord) -> Iterator[tuple[str, object]]:
    """Yield the hyper-parameters that a job changes, with what the recipe says."""
    if record.job is None:
        return
    before, now = recipe(record.job.recipe), record.job.resolved_hyperparameters()
    for name in type(now).model_fields:
        if getattr(now, name) != getattr(before, name, None):
            yield name, f"{getattr(now, name)} instead of {getattr(before, name, None)}"


def _skips(document: Mapping[str, Any]) -> str:
    """Return how many images were left out of how many, and why."""
    if not document.get("skipped"):
        return "none"
    reasons = [f"{reason} x {found['count']}" for reason, found in sorted(document["reasons"].items())]
    return f"{document['skipped']} of {document['seen']}: {', '.join(reasons)}"
