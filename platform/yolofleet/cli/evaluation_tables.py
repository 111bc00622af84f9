"""What ``yolofleet evaluate`` prints: the figures, the classes, and how the detections were made."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from yolofleet.core.text import and_more, plural

if TYPE_CHECKING:
    from yolofleet.evaluation.average_precision import EvaluationResult
    from yolofleet.evaluation.diagnosis import Diagnosis


def format_settings(settings: Mapping[str, Any], protocol: str) -> str:
    """Return in one line how the detections were made."""
    name = "rectangular" if settings["rectangular"] and protocol != "published" else protocol
    parts = [
        f"{name} inputs" if name != "published" else "published protocol: rectangular inputs",
        f"{settings['image_size']} px",
        f"{settings['precision']} on {settings['device']}",
        f"confidence {settings['confidence']:g}",
        f"IoU {settings['iou']:g}",
        f"{plural(settings['max_detections'], 'detection')} an image",
        *(["three scales, once mirrored"] if settings["augment"] else []),
    ]
    return ", ".join(parts)


FULL_WIDTH, NARROW_HEADINGS = 76, ("objects", "AP", "AP50", "F1", "score")
"""Columns of a window that takes every figure of the classes; the figures that a narrower one takes."""


def format_tables(result: EvaluationResult, diagnosis: Diagnosis, seconds: float) -> str:
    """Return the summary, the figures and the classes as tables, in colours where there is a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console() if sys.stdout is not None and sys.stdout.isatty() else Console(width=110)
    console.begin_capture()
    found = result.average_precision
    console.print(f"{escape(diagnosis.summary)}\n")
    console.print(
        f"[bold]{plural(found.num_images, 'image')}[/], {plural(found.num_objects, 'object')}, "
        f"{plural(found.num_crowds, 'crowd')}, {plural(found.num_detections, 'detection')}, {seconds:.1f} s"
    )
    if result.skipped:
        skipped = and_more([f"{key} ({reason})" for key, reason in result.skipped], 3)
        console.print(
            f"[yellow]{plural(len(result.skipped), 'image')} could not be read; such an image counts as empty, or "
            f"not at all if its annotation is damaged: {escape(skipped)}"
        )
    figures = Table(box=SIMPLE_HEAD)
    for heading in ("precision", "", "recall", ""):
        figures.add_column(heading, justify="right" if not heading else "left")
    for pair in zip_longest(found.protocol.precision_names, found.protocol.recall_names):
        figures.add_row(*(text for name in pair for text in (name, name and _format(result.figures[name]))))
    console.print(figures)
    errors = Table(box=SIMPLE_HEAD)
    for heading in ("error", "costs AP50", "of all detections"):
        errors.add_column(heading, justify="left" if heading == "error" else "right")
    for entry in diagnosis.errors:
        errors.add_row(entry.kind, _format(entry.cost), str(entry.count))
    console.print(errors)
    classes = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    classes.add_column("class", no_wrap=True, overflow="ellipsis")
    headings = ("objects", "found", "AP", "AP50", "AP75", f"AR_{found.protocol.max_detections}", "F1", "score")
    shown = [heading for heading in headings if console.width >= FULL_WIDTH or heading in NARROW_HEADINGS]
    for heading in shown:
        classes.add_column(heading, justify="right", no_wrap=True, min_width=6)
    present = [row for row in result.per_class if row.num_objects]
    for row in present:
        numbers = (row.ap, row.ap50, row.ap75, row.average_recall, row.best_f1, row.best_confidence)
        texts = (str(row.num_objects), str(row.num_detections), *map(_format, numbers))
        chosen = (text for heading, text in zip(headings, texts, strict=True) if heading in shown)
        classes.add_row(escape(row.name), *chosen)
    console.print(classes)
    console.print("F1: the best at IoU 0.50; score: the confidence it is reached at")
    if len(present) < len(result.per_class):
        console.print(f"{plural(len(result.per_class) - len(present), 'class')} without objects are left out")
    return console.end_capture().rstrip("\n")


def _format(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
