"""The page of a run, from its directory alone: how it stands, what it trained, its curves, what to try next.

It can be made at any time and anew, while the run goes and after it: `yolofleet report RUN`. A run that ends writes its
last evaluation beside it (`EVALUATION_KEY`), and the page shows it, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import Any

from yolofleet.core.durations import format_duration
from yolofleet.core.errors import UserError
from yolofleet.core.redaction import redact
from yolofleet.evaluation.report import CONFIDENCE, evaluation_sections
from yolofleet.models.profile import Profile, profile
from yolofleet.models.zoo import resolve
from yolofleet.reports.page import Markup, Section, bullets, facts, figure, grid, render_page, text
from yolofleet.specs.hyperparameters import recipe
from yolofleet.specs.job import JobSpec
from yolofleet.specs.yaml_document import parse_yaml
from yolofleet.storage import ObjectNotFoundError
from yolofleet.tracking.goodput import RunSummary, format_event, summarize_run
from yolofleet.tracking.json_lines import Row, seconds_of
from yolofleet.tracking.run_advice import advice
from yolofleet.tracking.run_curves import curves
from yolofleet.tracking.run_directory import JOB_KEY, REPORT_PREFIX, RunDirectory, status_after

PAGE_KEY = f"{REPORT_PREFIX}/index.html"
EVALUATION_KEY = f"{REPORT_PREFIX}/evaluation.json"
RELEASE_KEY = f"{REPORT_PREFIX}/release.json"
IMAGES_PREFIX = f"{REPORT_PREFIX}/images/"
NAMES_KEY = f"{IMAGES_PREFIX}names.json"
MOST_IMAGES = 12
STATES = {"RUNNING": "is training", "FINISHED": "is done", "FAILED": "failed", "KILLED": "was stopped"}


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What a run directory holds that its page shows."""

    name: str
    url: str
    job_text: str
    facts: Mapping[str, Any]
    rows: list[Row]
    events: list[Row]
    evaluation: Mapping[str, Any] | None
    """Of the released model."""
    release: Mapping[str, Any]
    images: Mapping[str, bytes]
    image_names: Mapping[str, str]
    """Names of the images in their dataset."""

    @cached_property
    def job(self) -> JobSpec | None:
        """The job as it was started; None where this yolofleet cannot read it."""
        try:
            source = f"{self.url}/{JOB_KEY}"
            return JobSpec.parse(parse_yaml(self.job_text, source=source), source=source)
        except UserError:
            return None

    @cached_property
    def summary(self) -> RunSummary:
        """Failures, goodput, cost."""
        return summarize_run(self.events, self.rows)

    @cached_property
    def evaluations(self) -> list[Row]:
        """The rows of evaluations that measured AP, by step."""
        return [row for row in self.rows if isinstance(row.get("val_AP"), int | float)]

    @property
    def best(self) -> Row | None:
        """The row of the best evaluation, the first of equal ones."""
        return max(self.evaluations, key=lambda row: float(row["val_AP"]), default=None)

    @property
    def step(self) -> int:
        """The newest step."""
        return max((int(row.get("step", 0)) for row in self.rows), default=0)

    @property
    def num_steps(self) -> int | None:
        """The steps of the whole run."""
        planned = [event["num_steps"] for event in self.events if "num_steps" in event]
        return int(planned[-1]) if planned else None

    @cached_property
    def starts(self) -> list[Row]:
        """Its starts, oldest first."""
        return [event for event in self.events if event.get("kind") == "start"]

    @cached_property
    def model(self) -> Profile | None:
        """Parameters and operations of its model; None where its table cannot be read here."""
        if self.job is None:
            return None
        try:
            table = resolve(self.job.model)
            num_classes = int(self.facts.get("num_classes") or len((self.evaluation or {}).get("per_class", ())) or 80)
            return profile(table, num_classes=num_classes, image_size=self.job.data.image_size)
        except UserError:
            return None


def read_run(run: RunDirectory) -> RunRecord:
    """Read what a page shows of a run.

    Raises:
        UserError: A file of it is damaged.
    """
    keys = sorted(e.key for e in run.storage.list(IMAGES_PREFIX) if e.key.endswith(".jpg"))[-MOST_IMAGES:]
    return RunRecord(
        name=run.name,
        url=run.url,
        job_text=run.job_text() or "",
        facts=run.facts(),
        rows=run.metrics(),
        events=run.events(),
        evaluation=_document(run, EVALUATION_KEY),
        release=_document(run, RELEASE_KEY) or {},
        images={key.removeprefix(IMAGES_PREFIX): run.storage.get(key) for key in keys},
        image_names=_document(run, NAMES_KEY) or {},
    )


def write_run_page(run: RunDirectory) -> str:
    """Write the page of a run anew, and return where it lies."""
    run.storage.put(PAGE_KEY, render_run(read_run(run)).encode())
    return f"{run.url}/{PAGE_KEY}"


def render_run(record: RunRecord, *, live: bool = False) -> str:
    """Return the page of a run; ``live`` for one that a server renders anew while the run goes."""
    sections: list[Section | None] = [
        Section(title="What to try next", body=_advice(record), note="Rules of thumb, each with what it rests on."),
        *(evaluation_sections(record.evaluation) if record.evaluation else ()),
        _images(record),
        Section(title="Training", note=_curves_note(record), body=curves(record)),
        Section(title="Facts", body=_facts(record)),
        Section(title="History", body=_history(record)),
    ]
    return render_page(
        f"Run {record.name}", sections, summary=sentence(record), links={} if live else _links(record), live=live
    )


def sentence(record: RunRecord) -> str:
    """Return in one or two sentences how a run stands, for someone who knows nothing of it."""
    status = status_after(record.events)
    state = STATES.get(status or "", "has not started")
    parts = [f"{_model_name(record)} {state}"]
    if record.num_steps:
        step = record.num_steps if status == "FINISHED" else record.step
        parts.append(f"at step {step:,} of {record.num_steps:,} ({step / record.num_steps:.0%})")
    if record.starts:
        workers = int(record.starts[-1].get("workers", 1))
        parts.append(
            f"after {format_duration(record.summary.seconds_trained)} on {workers} worker{'' if workers == 1 else 's'}"
        )
    first = " ".join(parts) + "."
    figures = (record.evaluation or {}).get("figures", {})
    if record.evaluation and figures.get("AP") is not None:
        measured = f"The released model reaches AP {figures['AP']:.3f} (AP50 {figures['AP50']:.3f})"
    elif record.best is not None:
        measured = f"The best AP so far is {record.best['val_AP']:.3f}, at step {record.best['step']:,}"
    else:
        return f"{first} Nothing has been measured yet."
    ranked = [entry for entry in (record.evaluation or {}).get("per_class", ()) if entry["ap"] is not None]
    worst = min(ranked, key=lambda entry: entry["ap"], default=None)
    if worst is None or len(ranked) < 2:
        return f"{first} {measured}."
    return f"{first} {measured}; its weakest class is {worst['name']} (AP {worst['ap']:.3f})."


def _advice(record: RunRecord) -> Markup:
    found = [Markup("<b>{}</b> {}").format(entry.what, entry.why) for entry in advice(record)]
    return bullets(found) if found else text("Nothing stands out.")


def _curves_note(record: RunRecord) -> str:
    best = record.best
    return "" if best is None else f"Best evaluation: AP {best['val_AP']:.4f} at step {best['step']:,}."


def _facts(record: RunRecord) -> Markup:
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


def _model_name(record: RunRecord) -> str:
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
    newest = starts[-1]
    gpus = float(newest.get("gpus_per_worker") or 0)
    devices = f"{gpus:g} GPU each" if gpus else "CPU"
    hosts = next((e["hosts"] for e in reversed(record.events) if e.get("kind") == "workers" and e.get("hosts")), None)
    return {
        "started": str(starts[0]["time"])[:19].replace("T", " ") + " UTC",
        "duration": format_duration(seconds_of(record.events[-1]) - seconds_of(starts[0])),
        "trained": format_duration(record.summary.seconds_trained),
        "workers": f"{newest.get('workers', 1)}, {newest.get('device') or devices}",
        "hosts": ", ".join(sorted(set(map(str, hosts)))) if hosts else None,
        "precision": job.precision,
        "strategy": job.strategy,
        "batch": f"{job.global_batch_size} images a step, {job.micro_batch_size} in one pass",
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
        **{f"skipped in {part}": found.get("count", 0) if isinstance(found, Mapping) else found
           for part, found in record.release.get("skipped", {}).items()},
    }  # fmt: skip


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


def _images(record: RunRecord) -> Section | None:
    from PIL import Image

    if not record.images:
        return None
    shown = []
    for name, jpeg in record.images.items():
        with Image.open(BytesIO(jpeg)) as image:
            said = record.image_names.get(name, name)
            shown.append(figure(jpeg, image.size, f"{said}: ground truth and detections", said))
    note = f"Left the ground truth, right the detections from a score of {CONFIDENCE} on."
    return Section(title="Images", note=note, body=grid(shown, "images"))


def _history(record: RunRecord) -> Markup:
    lines = [line for event in record.events if (line := format_event(event)) is not None]
    return bullets(map(redact, lines)) if lines else text("Nothing out of the ordinary happened.")


def _links(record: RunRecord) -> dict[str, str]:
    """Return where else to look; a page lies in ``report/`` of its run."""
    links = {"job": "../job.yaml"}
    if "/trials/" in record.url:
        links["search"] = "../../../report/index.html"
    if record.release:
        links["model"] = "../model/"
    uri = redact(str(record.release.get("mlflow") or (record.job.tracking.uri if record.job else None) or ""))
    model = str(record.release.get("model") or "")
    if uri.startswith("http"):
        links["MLflow"] = uri
        if model:
            name, _, version = model.removeprefix("models:/").rpartition("/")
            links[f"version {name}/{version}"] = f"{uri.rstrip('/')}/#/models/{name}/versions/{version}"
    return links


def _document(run: RunDirectory, key: str) -> Mapping[str, Any] | None:
    try:
        return dict(json.loads(run.storage.get(key)))
    except ObjectNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{run.url}/{key}: is damaged ({error}); remove it and release the run again") from error
