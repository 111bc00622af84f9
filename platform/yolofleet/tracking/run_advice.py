"""What to try next with a run: rules of thumb over what it measured, each with the figures that it rests on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from yolofleet.core.text import plural
from yolofleet.tracking.goodput import STATUS_OF_EVENT, status_after
from yolofleet.tracking.run_record import RunRecord

FEW_STEPS = 1000
STILL_RISING = 0.02
"""Share of the AP that the last quarter of the evaluations added."""
PAST_ITS_BEST = 0.9
"""Share of the best AP at the end below which a run trained too long."""
SLOW_DATA, LOW_REACH, LOW_GOODPUT = 0.2, 0.98, 0.95
FEW_OBJECTS = 50
LEAST_AP50 = 0.1
"""Below it the model has learned next to nothing yet, and the differences between its figures say nothing."""


@dataclass(frozen=True)
class Advice:
    """One thing to try."""

    what: str
    why: str


def advice(record: RunRecord) -> list[Advice]:
    """Return what to try next, the most urgent first."""
    return [entry for rule in (_ending, _numbers, _length, _speed, _fit, _classes) for entry in rule(record)]


def _ending(record: RunRecord) -> Iterator[Advice]:
    status = status_after(record.events)
    if status in ("FAILED", "KILLED"):
        ending = next(event for event in reversed(record.events) if event.get("kind") in STATUS_OF_EVENT)
        reason = str(ending.get("reason") or "")
        yield Advice(
            "Run the same command again.", f"It resumes from the newest checkpoint. It ended by: {reason or status}."
        )
    summary = record.summary
    if summary.goodput is not None and summary.goodput < LOW_GOODPUT:
        kinds = ", ".join(f"{count} {kind}" for kind, count in summary.failures.items())
        yield Advice(
            "Save checkpoints more often (checkpoint.every_steps), and look at the failures.",
            f"Goodput is {summary.goodput:.0%}; {plural(summary.steps_redone, 'step')} done twice "
            f"({kinds or 'no failure'}).",
        )


def _numbers(record: RunRecord) -> Iterator[Advice]:
    rolled = sum(event.get("kind") == "rolled_back" for event in record.events)
    broken = max((int(row.get("non_finite_steps") or 0) for row in record.rows), default=0)  # so far, in each row
    if rolled or broken:
        cure = "" if record.job is None or record.job.precision == "fp32" else ", or train in fp32"
        yield Advice(
            f"Lower the learning rate (hyperparameters.lr0){cure}.",
            f"Steps with a non-finite gradient: {broken}; returns to an earlier checkpoint: {rolled}.",
        )


def _length(record: RunRecord) -> Iterator[Advice]:
    found, steps = record.evaluations, record.num_steps or 0
    ended = status_after(record.events) != "RUNNING"
    length = f"It trained {plural(record.step, 'step')}" if ended else f"Its plan has {plural(steps, 'step')}"
    if 0 < steps < FEW_STEPS and (record.job is None or record.job.initial_weights is None):
        yield Advice(
            "Train for longer (epochs), or start from trained weights (initial_weights).",
            f"{length}: from scratch, a model learns little in fewer than {FEW_STEPS:,}.",
        )
    if len(found) < 4 or (best := record.best) is None or not ended:
        return
    top, last = float(best["val_AP"]), found[-1]
    before = max(float(row["val_AP"]) for row in found[: -max(1, len(found) // 4)])
    if best is last and top - before > STILL_RISING * top:
        yield Advice(
            "Train for longer (epochs).", f"AP was still rising: {before:.3f} to {top:.3f} in the last quarter."
        )
    if float(last["val_AP"]) < PAST_ITS_BEST * top:
        yield Advice(
            "Train for a shorter time, or add data or augmentation.",
            f"AP fell from {top:.3f} at step {best['step']:,} to {float(last['val_AP']):.3f} at step {last['step']:,}.",
        )


def _speed(record: RunRecord) -> Iterator[Advice]:
    shares = [float(row["data_wait_share"]) for row in record.rows if row.get("data_wait_share") is not None]
    if shares and (mean := sum(shares) / len(shares)) > SLOW_DATA:
        yield Advice(
            "Raise data.loader_threads or use a cache (data.cache).", f"Workers wait for data {mean:.0%} of the time."
        )
    skipped = max((int(row.get("skipped_samples") or 0) for row in record.rows), default=0)
    if skipped:
        samples = plural(skipped, "sample")
        yield Advice("Look at the dataset with yolofleet data check.", f"{samples} could not be read.")


def _fit(record: RunRecord) -> Iterator[Advice]:
    reach = record.facts.get("anchors", {}).get("recall")
    if isinstance(reach, int | float) and reach < LOW_REACH:
        yield Advice("Fit the anchors to the data (anchors: fit).", f"They reach {reach:.1%} of the boxes.")
    figures: dict[str, Any] = dict((record.evaluation or {}).get("figures", {}))
    ap50, ap75 = figures.get("AP50"), figures.get("AP75")
    if ap50 is None or ap50 < LEAST_AP50:
        return
    if ap75 is not None and ap75 < 0.5 * ap50:
        yield Advice(
            "Train for longer or with larger images: objects are found, but their boxes are inexact.",
            f"AP75 is {ap75:.3f} where AP50 is {ap50:.3f}.",
        )
    small, large = figures.get("AP_small"), figures.get("AP_large")
    if large and small is not None and small < 0.5 * large:
        size = record.job.data.image_size if record.job is not None else 0
        yield Advice(
            f"Use larger images (data.image_size, now {size}).",
            f"AP is {small:.3f} for small objects and {large:.3f} for large ones.",
        )


def _classes(record: RunRecord) -> Iterator[Advice]:
    found = [entry for entry in (record.evaluation or {}).get("per_class", ()) if entry["ap"] is not None]
    ap50 = (record.evaluation or {}).get("figures", {}).get("AP50")
    if len(found) < 2 or ap50 is None or ap50 < LEAST_AP50:
        return
    mean = sum(entry["ap"] for entry in found) / len(found)
    weak = sorted((entry for entry in found if entry["ap"] < 0.6 * mean), key=lambda entry: entry["ap"])[:3]
    for entry in weak:
        rare = entry["num_objects"] < FEW_OBJECTS
        what = f"Add images of {entry['name']}." if rare else f"Look at the labels and the misses of {entry['name']}."
        yield Advice(
            what,
            f"Its AP is {entry['ap']:.3f}, the mean {mean:.3f}, with {plural(entry['num_objects'], 'object')} to "
            "measure it.",
        )
