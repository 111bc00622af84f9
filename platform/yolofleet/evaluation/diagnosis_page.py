"""The diagnosis as parts of a page: what goes wrong first, then the figures, then images that show it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from yolofleet.core.page import image_tag
from yolofleet.data.draw import OUTCOMES
from yolofleet.evaluation.charts import Series, line_chart
from yolofleet.evaluation.diagnosis import ERROR_PHRASES, Diagnosis
from yolofleet.evaluation.precision_recall import Floats
from yolofleet.evaluation.samples import SampleImage
from yolofleet.evaluation.slices import Slice

STYLE = """
.summary{font-size:18px;max-width:60em;margin:14px 0 18px}
.matrix{width:100%;max-width:640px}.matrix text{fill:currentColor}
details{margin:8px 0}summary{cursor:pointer}
.key i{display:inline-block;width:26px;height:0;border-top:3px;margin-right:6px;vertical-align:middle}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,260px),1fr));gap:14px}
.text{text-align:left}td.text{min-width:190px}.track{display:inline-block;text-align:left}
h3{font-size:15px;margin:20px 0 8px}
"""
MEANINGS = {
    "classification": "on an object of another class",
    "localisation": "near an object of its class, IoU 0.1 to 0.5",
    "both": "near an object of another class, IoU 0.1 to 0.5",
    "duplicate": "on an object that a surer box has found",
    "background": "on no object",
    "missed": "objects that none of these explains",
}
LINES = {"true": "solid", "false": "dashed", "missed": "dotted"}
MOST_CLASSES, MOST_CONFUSIONS = 10, 10
MOST_NUMBERED, MOST_NAMED = 12, 40
"""Classes up to which the matrix shows its numbers, and its names."""
MATRIX_SIDE, NAME_WIDTH, BAR_PIXELS = 640, 120, 80
COLOURS = ("#3b7dd8", "#e4572e", "#2ca25f")


def render_summary(diagnosis: Diagnosis) -> str:
    """Return the one sentence, and the figures that it is made of."""
    num_objects = diagnosis.num_true + diagnosis.num_missed
    num_found = diagnosis.num_true + diagnosis.num_false
    cards = (
        (_share(diagnosis.num_true, num_objects), "of the objects found"),
        (_share(diagnosis.num_true, num_found), "of the boxes right"),
        (_number(diagnosis.threshold, 2), "confidence used"),
    )
    shown = "".join(f"<div class='card'><b>{value}</b><span>{name}</span></div>" for value, name in cards)
    return f"<p class='summary'>{escape(diagnosis.summary)}</p><div class='cards'>{shown}</div>"


def render_diagnosis(
    diagnosis: Diagnosis, file_names: Mapping[int, str], drawn: Mapping[int, SampleImage]
) -> Iterable[str]:
    """Yield the sections of the page.

    Args:
        diagnosis: What is shown.
        file_names: Image id -> name.
        drawn: Image id -> the drawing, of the images that there are.
    """
    yield _errors(diagnosis)
    yield _weakest_classes(diagnosis)
    if drawn:
        yield _galleries(diagnosis, drawn)
    yield _confusion(diagnosis)
    yield _confidence(diagnosis)
    yield _slices("Size of the object", "size", diagnosis.sizes)
    yield _slices("Shape of the object", "width and height", diagnosis.shapes)
    yield _slices("Objects in the image", "objects", diagnosis.object_counts)
    if diagnosis.label_errors:
        yield _label_errors(diagnosis, file_names)


def _errors(diagnosis: Diagnosis) -> str:
    largest = max((entry.cost or 0.0 for entry in diagnosis.errors), default=0.0)
    rows = [
        (
            escape(entry.kind),
            escape(MEANINGS[entry.kind]),
            f"{entry.count_above}",
            f"{entry.count}",
            f"{_bar(entry.cost, largest)}{_points(entry.cost)}",
        )
        for entry in sorted(diagnosis.errors, key=lambda entry: -(entry.cost or 0.0))
    ]
    at = _number(diagnosis.threshold, 2)
    head = ("error", "what it is", f"from confidence {at}", "of all detections", "costs AP50 points")
    note = (
        "Each false box is one kind of error, at IoU 0.50. The cost is what AP50 would gain if this kind alone were "
        "mended; costs do not add up."
    )
    return f"<h2>What goes wrong</h2>{_table(head, rows, text_columns=(1,))}<p class='soft'>{note}</p>"


def _weakest_classes(diagnosis: Diagnosis) -> str:
    rows = []
    for entry in diagnosis.classes[:MOST_CLASSES]:
        why = entry.main_error
        reason = f"{ERROR_PHRASES[why]} ({_points(entry.costs[why])})" if why else "-"
        numbers = (_number(value, 3) for value in (entry.precision, entry.recall, entry.f1))
        rows.append(
            (escape(entry.name), f"{100 * entry.ap50:.1f}", escape(reason), *numbers, _number(entry.threshold, 2))
        )
    more = f", the weakest {MOST_CLASSES} of {len(diagnosis.classes)}" if len(diagnosis.classes) > MOST_CLASSES else ""
    head = ("class", "AP50", "costs it most (points of its AP50)", "precision", "recall", "best F1", "at confidence")
    return f"<h2>Weakest classes{more}</h2>{_table(head, rows, text_columns=(2,))}" if rows else ""


def _galleries(diagnosis: Diagnosis, drawn: Mapping[int, SampleImage]) -> str:
    key = "".join(
        f"<span><i style='border-top-style:{LINES[name]};border-top-color:rgb{colour}'></i>{name}</span>"
        for name, (colour, _) in OUTCOMES.items()
    )
    at = _number(diagnosis.threshold, 2)
    parts = [
        f"<h2>Images</h2><p class='soft'>Boxes from confidence {at} on, where F1 over all classes is best; true at IoU "
        f"0.50.</p><p class='key legend' style='margin-left:0'>{key}</p>"
    ]
    for gallery in diagnosis.galleries:
        figures = "".join(
            f"<figure>{image_tag(image.jpeg, (image.width, image.height), entry.reason)}"
            f"<figcaption>{escape(entry.reason)}<div>{escape(image.name)}</div></figcaption></figure>"
            for entry in gallery.images
            if (image := drawn.get(entry.image_id))
        )
        parts.append(f"<h3>{escape(gallery.name)}</h3><div class='gallery'>{figures}</div>" if figures else "")
    return "".join(parts)


def _confusion(diagnosis: Diagnosis) -> str:
    matrix = _matrix(diagnosis)
    if len(diagnosis.class_names) > MOST_NUMBERED:
        matrix = f"<details><summary>All {len(diagnosis.class_names)} classes</summary>{matrix}</details>"
    rows = [(escape(first), escape(second), f"{count}") for first, second, count in diagnosis.confusions()]
    table = _table(("object", "detected as", "times"), rows[:MOST_CONFUSIONS], text_columns=(1,)) if rows else ""
    note = (
        f"Objects in rows, boxes from confidence {_number(diagnosis.threshold, 2)} on in columns, paired at IoU 0.50. "
        "The last column counts objects missed, the last row boxes on background."
    )
    pairs = f"<div><h3>Most frequent</h3>{table}</div>" if rows else "<p>No class is taken for another one.</p>"
    return f"<h2>Confusion</h2><p class='soft'>{note}</p><div class='charts'><div>{matrix}</div>{pairs}</div>"


def _matrix(diagnosis: Diagnosis) -> str:
    """Return the confusion matrix as SVG: a cell is as dark as its share of the row."""
    names = [*diagnosis.class_names, "background"]
    count = len(names)
    margin = NAME_WIDTH if count <= MOST_NAMED else 20
    side = (MATRIX_SIDE - margin) / count
    shares = diagnosis.confusion / np.maximum(diagnosis.confusion.sum(axis=1, keepdims=True), 1)
    size = max(11.0, min(14.0, side * 0.6))
    parts = [f"<svg viewBox='0 0 {MATRIX_SIDE} {MATRIX_SIDE}' class='matrix' role='img' font-size='{size:.1f}'>"]
    parts.append("<title>confusion matrix</title>")
    for row, column in zip(*np.nonzero(diagnosis.confusion), strict=True):
        x, y = margin + column * side, margin + row * side
        value, share = int(diagnosis.confusion[row, column]), float(shares[row, column])
        colour = "44,162,95" if row == column else "228,87,46"
        said = escape(f"{names[row]} as {names[column]}: {value} ({share:.0%})", quote=True)
        parts.append(
            f"<rect x='{x:.1f}' y='{y:.1f}' width='{side:.1f}' height='{side:.1f}' "
            f"fill='rgba({colour},{0.12 + 0.7 * share:.2f})'><title>{said}</title></rect>"
        )
        if count <= MOST_NUMBERED:
            at = f"x='{x + side / 2:.1f}' y='{y + side / 2 + 5:.1f}'"
            parts.append(f"<text {at} text-anchor='middle' pointer-events='none'>{value}</text>")
    for index, name in enumerate(names if count <= MOST_NAMED else ()):
        middle = margin + (index + 0.5) * side
        short = escape(name if len(name) <= 16 else f"{name[:15]}…")
        parts.append(f"<text x='{margin - 6}' y='{middle + 4:.1f}' text-anchor='end'>{short}</text>")
        parts.append(f"<text transform='translate({middle + 4:.1f} {margin - 6}) rotate(-90)'>{short}</text>")
    frame = f"<rect x='{margin}' y='{margin}' width='{MATRIX_SIDE - margin}' height='{MATRIX_SIDE - margin}' "
    return f"{''.join(parts)}{frame} fill='none' stroke='#8a94a055'/></svg>"


def _confidence(diagnosis: Diagnosis) -> str:
    curves = diagnosis.curves
    values: dict[str, Floats] = {"precision": curves.precision[0], "recall": curves.recall[0], "F1": curves.f1[0]}
    lines = [
        Series(name=name, points=_points_of(curves.thresholds, column), colour=colour, width=2)
        for (name, column), colour in zip(values.items(), COLOURS, strict=True)
    ]
    charts = [line_chart(lines, x_name="lowest confidence that counts", y_name="all classes", y_range=(0, 1))]
    found, said = diagnosis.calibration, ""
    if found is not None:
        measured = Series(
            name="share of boxes that is right",
            points=_points_of(found.confidence, found.precision),
            colour=COLOURS[0],
            width=2,
        )
        ideal = Series(name="perfectly calibrated", points=[(0.0, 0.0), (1.0, 1.0)], colour="#808890")
        chart = line_chart([ideal, measured], x_name="confidence", y_name="right", x_range=(0, 1), y_range=(0, 1))
        charts.append(chart)
        said = (
            f" Right: how often boxes of a confidence are right, from {_number(diagnosis.threshold, 2)} on; the "
            f"expected calibration error is {found.error:.3f}."
        )
    drawn = "".join(f"<div>{chart}</div>" for chart in charts)
    note = f"Left: F1 is best at {_number(diagnosis.threshold, 2)}.{said}"
    return f"<h2>Confidence</h2><p class='soft'>{note}</p><div class='charts'>{drawn}</div>"


def _slices(title: str, kind: str, slices: Sequence[Slice]) -> str:
    columns: list[tuple[str, Callable[[Slice], str]]] = [
        (kind, lambda entry: escape(entry.name)),
        ("images", lambda entry: f"{entry.num_images}"),
        ("objects", lambda entry: f"{entry.num_objects}"),
        ("AP", lambda entry: f"{_bar(entry.ap, 1.0)}{_number(entry.ap, 3)}"),
        ("AP50", lambda entry: _number(entry.ap50, 3)),
        ("recall", lambda entry: _number(entry.recall, 3)),
        ("precision", lambda entry: _number(entry.precision, 3)),
        ("false boxes", lambda entry: f"{entry.num_false}"),
    ]
    rows = [[show(entry) for _, show in columns] for entry in slices if entry.num_objects or entry.num_false]
    return f"<h2>{title}</h2>{_table([name for name, _ in columns], rows)}" if rows else ""


def _label_errors(diagnosis: Diagnosis, file_names: Mapping[int, str]) -> str:
    rows = [
        (
            escape(file_names.get(entry["image_id"], str(entry["image_id"]))),
            escape(entry["text"]),
            _box(entry["label"] or entry["detection"]),
            f"{entry['score']:.2f}",
        )
        for entry in diagnosis.label_errors
    ]
    head = ("image", "what speaks against the label", "box x, y, width, height", "score")
    note = "The model may be right where the annotations are not: these are worth a look, the likeliest first."
    return f"<h2>Likely label errors</h2><p class='soft'>{note}</p>{_table(head, rows, text_columns=(1,))}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: Sequence[int] = ()) -> str:
    """Return a table of cells that are HTML already."""
    kinds = [" class='text'" if column in text_columns else "" for column in range(len(head))]
    heading = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, head, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{kind}>{cell}</td>' for kind, cell in zip(kinds, row, strict=True))}</tr>" for row in rows
    )
    return f"<div class='wide'><table><thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table></div>"


def _bar(value: float | None, largest: float) -> str:
    width = round(BAR_PIXELS * max(value or 0.0, 0.0) / largest) if largest > 0 else 0
    return f"<span class='track' style='width:{BAR_PIXELS + 8}px'><i class='bar' style='width:{width}px'></i></span>"


def _points_of(x: Floats, y: Floats) -> list[tuple[float, float]]:
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _box(box: Any) -> str:
    return ", ".join(f"{value:.0f}" for value in box)


def _points(cost: float | None) -> str:
    return "-" if cost is None else f"{100 * cost:.1f}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def _number(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"
