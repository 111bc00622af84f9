"""The page of a run, from its directory alone: how it stands, what it trained, its curves, what to try next.

It can be made at any time and anew, while the run goes and after it: `yolofleet report RUN`. A run that ends writes its
last evaluation beside it (`run_record.EVALUATION_KEY`), and the page shows it, too.
"""

from __future__ import annotations

from collections.abc import Mapping

from yolofleet.core.durations import describe_duration
from yolofleet.core.redaction import redact
from yolofleet.core.text import plural, share_text
from yolofleet.evaluation.report import evaluation_sections, fit_to_page, image_section
from yolofleet.reports.page import Markup, Section, bullets, render_page, text
from yolofleet.tracking.goodput import status_after
from yolofleet.tracking.run_advice import advice
from yolofleet.tracking.run_curves import curves
from yolofleet.tracking.run_directory import REPORT_PREFIX, RunDirectory
from yolofleet.tracking.run_facts import model_name, run_facts
from yolofleet.tracking.run_record import RunRecord, read_run

PAGE_KEY = f"{REPORT_PREFIX}/index.html"
STATES = {"RUNNING": "is training", "FINISHED": "is done", "FAILED": "failed", "KILLED": "was stopped"}


def write_run_page(run: RunDirectory) -> str:
    """Write the page of a run anew, and return where it lies.

    A run that an older yolofleet released has its evaluation in its page alone: that one is left as it is.
    """
    record = read_run(run)
    if record.evaluation is not None and "diagnosis" not in record.evaluation:
        from yolofleet.tracking.run_diagnosis import add_diagnosis  # only once, and it reads the validation set

        if add_diagnosis(run, record.evaluation):
            record = read_run(run)
    if record.evaluation is not None or not record.release:
        run.storage.put(PAGE_KEY, render_run(record).encode())
    return f"{run.url}/{PAGE_KEY}"


def render_run(record: RunRecord, *, live: bool = False, links: Mapping[str, str] | None = None) -> str:
    """Return the page of a run.

    Args:
        record: What its directory holds.
        live: Whether a server renders it anew while the run goes.
        links: Where else to look; None: what lies around the page's file.
    """
    images, drawn = fit_to_page(record.images, record.outcomes, (record.evaluation or {}).get("diagnosis"))
    sections: list[Section | None] = [
        Section(title="What to try next", body=_advice(record), note="Rules of thumb, each with its reason."),
        *(evaluation_sections(record.evaluation, drawn) if record.evaluation else ()),
        image_section(images),
        Section(title="Training", note=_curves_note(record), body=curves(record)),
        Section(title="Facts", body=run_facts(record)),
        Section(title="History", body=_history(record)),
    ]
    return render_page(
        f"Run {record.name}",
        sections,
        summary=redact(sentence(record)),
        links=_links(record) if links is None else links,
        live=live,
    )


def sentence(record: RunRecord) -> str:
    """Return in one or two sentences how a run stands, for someone who knows nothing of it."""
    status = status_after(record.events)
    state = STATES.get(status or "", "has not started")
    if status == "FINISHED" and any(event.get("kind") == "ended_early" for event in record.events):
        state = "ended early"
    parts = [f"{model_name(record)} {state}"]
    if record.num_steps:
        parts.append(f"at step {record.step:,} of {record.num_steps:,} ({share_text(record.step / record.num_steps)})")
    if record.starts:
        workers = int(record.starts[-1].get("workers", 1))
        parts.append(f"after {describe_duration(record.summary.seconds_trained)} on {plural(workers, 'worker')}")
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


def _history(record: RunRecord) -> Markup:
    lines = record.summary.history
    return bullets(map(redact, lines)) if lines else text("Nothing unusual happened.")


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
