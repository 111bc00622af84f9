"""The diagnosis as sections of a page: what goes wrong first, then images that show it, then the figures.

Everything is made from plain values (`Diagnosis.as_json`), as they are stored with a run, and from drawings of images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from yolofleet.core.text import plural, share_text
from yolofleet.data.draw import OUTCOMES
from yolofleet.evaluation.diagnosis import BACKGROUND_NAME
from yolofleet.evaluation.error_types import ERROR_MEANINGS, ERROR_PHRASES
from yolofleet.evaluation.galleries import MOST_FALSE_DRAWN
from yolofleet.evaluation.samples import SampleImage
from yolofleet.reports.charts import COLOURS, Series, chart
from yolofleet.reports.page import (
    Cell,
    Markup,
    Section,
    Table,
    beside,
    cards,
    figure,
    folded,
    grid,
    number_cell,
    scrolling,
    table,
)

Document = Mapping[str, Any]
LINES = {"true": "solid", "false": "dashed", "not found": "dotted"}
MOST_CONFUSIONS = 10
MOST_NUMBERED, MOST_NAMED = 12, 40
"""Classes up to which the matrix shows its numbers, and its names."""
MATRIX_SIDE, NAME_WIDTH = 640, 130
UNIT = (0.0, 1.0)


def diagnosis_sections(document: Document, drawn: Mapping[str, SampleImage]) -> Iterator[Section]:
    """Yield what explains an evaluation, the most telling first.

    Args:
        document: A diagnosis, as `Diagnosis.as_json` gives it.
        drawn: Name -> the drawing, of the images of its galleries that there are.
    """
    yield _errors(document)
    if document["classes"]:
        yield _weakest_classes(document)
    if drawn:
        yield _galleries(document, drawn)
    yield _confusion(document)
    yield _confidence(document)
    yield _slices("Size of the objects", "size", document["sizes"])
    yield _slices("Shape of the objects", "width and height", document["shapes"])
    yield _slices("Objects in an image", "objects", document["object_counts"])
    if document["label_errors"]:
        yield _label_errors(document)


def diagnosis_cards(document: Document) -> Markup:
    """Return the figures of the summary."""
    num_objects = document["num_true"] + document["num_not_found"]
    num_found = document["num_true"] + document["num_false"]
    shown = {
        "of the objects found": _share(document["num_true"], num_objects),
        "of the boxes right": _share(document["num_true"], num_found),
        "confidence used": _confidence_text(document["threshold"]),
    }
    return cards({name: value for name, value in shown.items() if value != "-"})


def _errors(document: Document) -> Section:
    largest = max((entry["cost"] or 0.0 for entry in document["errors"]), default=0.0)
    rows = [
        [
            entry["kind"],
            ERROR_MEANINGS[entry["kind"]],
            *([] if document["threshold"] is None else [entry["count_above"]]),
            entry["count"],
            _cost_cell(entry["cost"], largest),
        ]
        for entry in sorted(document["errors"], key=lambda entry: -(entry["cost"] or 0.0))
    ]
    above = [] if document["threshold"] is None else [f"from confidence {_confidence_text(document['threshold'])}"]
    head = ("error", "what it is", *above, "at any confidence", "costs AP50")
    note = (
        "Each false box is one kind of error, at IoU 0.50; missed objects are counted as objects. The cost is what "
        "AP50 (0 to 1) would gain without this kind of error at any confidence; costs do not add up."
    )
    body = diagnosis_cards(document) + table(Table(name="Errors", head=head, rows=rows))
    return Section(title="What goes wrong", note=note, body=body)


def _weakest_classes(document: Document) -> Section:
    rows = []
    for entry in document["classes"]:
        why = entry["main_error"]
        reason = f"{ERROR_PHRASES[why]} ({entry['costs'][why]:.3f})" if why else "-"
        numbers = [number_cell(entry[key]) for key in ("precision", "recall", "f1")]
        ap50 = number_cell(entry["ap50"], share=entry["ap50"])
        at = replace(number_cell(entry["threshold"]), text=_confidence_text(entry["threshold"]))
        rows.append([entry["name"], ap50, reason, *numbers, at])
    head = ("class", "AP50", "costs it most (AP50)", "precision", "recall", "best F1", "at confidence")
    note = "The weakest first. Precision and recall are those at the confidence where the F1 of the class is best."
    return Section(title="Weakest classes", note=note, body=table(Table(name="Classes", head=head, rows=rows)))


def _galleries(document: Document, drawn: Mapping[str, SampleImage]) -> Section:
    key = Markup("").join(
        Markup('<span><i style="border-top:3px {} rgb{}"></i>{}</span>').format(LINES[name], colour, name)
        for name, (colour, _) in OUTCOMES.items()
    )
    parts: list[Markup] = []
    for gallery in document["galleries"]:
        figures = [
            figure(
                image.jpeg,
                (image.width, image.height),
                entry["reason"],
                Markup("{}<br>{}").format(entry["reason"], image.name),
            )
            for entry in gallery["images"]
            if (image := drawn.get(entry["drawing"]))
        ]
        group = Markup('<div style="--images:{}"><h3>{}</h3>{}</div>')
        if figures:
            parts.append(group.format(len(figures), gallery["name"], grid(figures, "gallery")))
    at = document["threshold"]
    which = "No box lies on an object of its class, so none is drawn."
    if at is not None:
        which = (
            f"Boxes from confidence {_confidence_text(at)} on, where F1 over all classes is best; true at IoU 0.50. Of "
            f"the false boxes of an image the {MOST_FALSE_DRAWN} surest are drawn, and labels where there is room."
        )
    note = (
        f"{which} An object is not found where no true box is on it. Where an image is about one class, only what "
        "concerns it is drawn, and without its name."
    )
    return Section(
        title="Images that show it",
        note=note,
        body=Markup('<p class="key">{}</p>{}').format(key, grid(parts, "groups")),
    )


def _confusion(document: Document) -> Section:
    names = document["class_names"]
    matrix = _matrix(document)
    if len(names) > MOST_NUMBERED:
        matrix = folded(f"All {plural(len(names), 'class')}", matrix)
    rows = confusions(document)[:MOST_CONFUSIONS]
    pairs = table(Table(name="Classes confused with others", head=("object", "detected as", "times"), rows=rows))
    threshold = document["threshold"]
    boxes = "boxes" if threshold is None else f"boxes from confidence {_confidence_text(threshold)} on"
    note = (
        f"Objects in rows, {boxes} in columns, paired at IoU 0.50, each at most once. The last column counts objects "
        "left without a box, the last row boxes left without an object, such as second boxes on one."
    )
    body = beside(matrix, pairs or Markup("<p>No class is confused with another.</p>"))
    return Section(title="Confusion", note=note, body=body)


def confusions(document: Document) -> list[tuple[str, str, int]]:
    """Return (class of the object, class of the detection, count) of different classes, the most frequent first."""
    cells = [(entry["object"], entry["detection"], entry["count"]) for entry in document["confusion"]]
    other = [cell for cell in cells if cell[0] != cell[1] and BACKGROUND_NAME not in cell]
    return sorted(other, key=lambda cell: -cell[2])


def _matrix(document: Document) -> Markup:
    """Return the confusion matrix as SVG: a cell is as dark as its share of the row."""
    names = [*document["class_names"], BACKGROUND_NAME]
    position = {name: index for index, name in enumerate(names)}
    totals = dict.fromkeys(names, 0)
    for entry in document["confusion"]:
        totals[entry["object"]] += entry["count"]
    margin = NAME_WIDTH if len(names) <= MOST_NAMED else 20
    side = (MATRIX_SIDE - margin) / len(names)
    size = max(14.0, min(16.0, side * 0.6))
    parts = []
    for entry in document["confusion"]:
        row, column, count = position[entry["object"]], position[entry["detection"]], entry["count"]
        x, y, share = margin + column * side, margin + row * side, count / max(totals[entry["object"]], 1)
        colour = "44,162,95" if row == column else "228,87,46"
        said = f"{entry['object']} as {entry['detection']}: {count:,} ({share_text(share)})"
        parts.append(
            Markup(
                '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="rgba({},{:.2f})">'
                "<title>{}</title></rect>"
            ).format(x, y, side, side, colour, 0.12 + 0.7 * share, said)
        )
        if len(names) - 1 <= MOST_NUMBERED:
            parts.append(
                Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="middle" pointer-events="none">{}</text>').format(
                    x + side / 2, y + side / 2 + 5, _short_count(count)
                )
            )
    for index, name in enumerate(names if len(names) <= MOST_NAMED else ()):
        at, short = margin + (index + 0.5) * side + 4, name if len(name) <= 12 else f"{name[:11]}…"
        parts.append(Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(margin - 6, at, short))
        parts.append(
            Markup('<text transform="translate({:.1f} {}) rotate(-90)">{}</text>').format(at, margin - 6, short)
        )
    frame = Markup('<rect x="{0}" y="{0}" width="{1}" height="{1}" fill="none" stroke="#8a94a055"/>')
    drawing = Markup(
        '<svg viewBox="0 0 {0} {0}" class="matrix" role="img" aria-label="confusion matrix" font-size="{1:.0f}">'
        "{2}</svg>"
    ).format(MATRIX_SIDE, size, Markup("").join([*parts, frame.format(margin, MATRIX_SIDE - margin)]))
    return scrolling("Confusion matrix", drawing)


def _short_count(count: int) -> str:
    """Return a count in four characters at most."""
    return next(
        f"{count // unit}{name}" for unit, name in ((1, ""), (1000, "k"), (10**6, "M")) if count < 10_000 * unit
    )


def _confidence(document: Document) -> Section:
    curves = document["curves"]
    ends = (curves["thresholds"][0], curves["thresholds"][-1])
    lines = [
        Series(name=name, points=_line(curves["thresholds"], curves[key]), colour=COLOURS[number])
        for number, (name, key) in enumerate((("precision", "precision"), ("recall", "recall"), ("F1", "f1")))
    ]
    charts = [
        chart(lines, title="all classes", x_name="lowest confidence that counts", x_range=ends, y_range=UNIT),
    ]
    found, said, at = document["calibration"], "", _confidence_text(document["threshold"])
    if found is not None:
        ideal = Series(name="perfectly calibrated", points=[(0.0, 0.0), (1.0, 1.0)], colour=COLOURS[7])
        measured = Series(name="share of boxes that is right", points=_line(found["confidence"], found["precision"]))
        charts.append(chart([ideal, measured], title="calibration", x_name="confidence", x_range=UNIT, y_range=UNIT))
        said = (
            f" Calibration: how often boxes of a confidence are right, from {at} on; "
            f"the expected calibration error is {found['error']:.3f}."
        )
    note = f"F1 is best at {at}.{said}" if document["threshold"] is not None else "F1 is 0 at every confidence."
    return Section(title="Confidence", note=note, body=grid(charts))


def _slices(title: str, kind: str, slices: Sequence[Document]) -> Section:
    columns: list[tuple[str, Callable[[Document], Cell | str | float | None]]] = [
        (kind, lambda entry: Cell(text=entry["name"])),
        ("images", lambda entry: entry["num_images"]),
        ("objects", lambda entry: entry["num_objects"]),
        ("AP", lambda entry: number_cell(entry["ap"], share=entry["ap"])),
        ("AP50", lambda entry: number_cell(entry["ap50"])),
        ("recall", lambda entry: number_cell(entry["recall"])),
        ("precision", lambda entry: number_cell(entry["precision"])),
        ("false boxes", lambda entry: entry["num_false"]),
    ]
    rows = [[show(entry) for _, show in columns] for entry in slices if entry["num_objects"] or entry["num_false"]]
    return Section(title=title, body=table(Table(name=title, head=[name for name, _ in columns], rows=rows)))


def _label_errors(document: Document) -> Section:
    rows = [
        [
            entry.get("image", str(entry["image_id"])),
            entry["text"],
            ", ".join(f"{value:.0f}" for value in entry["label"] or entry["detection"]),
            number_cell(entry["score"], 2),
        ]
        for entry in document["label_errors"]
    ]
    head = ("image", "why the label may be wrong", "box x, y, width, height", "score")
    note = "Here the model may be right and the annotations wrong; the most likely ones come first."
    body = table(Table(name="Likely label errors", head=head, rows=rows))
    return Section(title="Likely label errors", note=note, body=body)


def _line(x: Sequence[float | None], y: Sequence[float | None]) -> list[tuple[float, float]]:
    return [(one, other) for one, other in zip(x, y, strict=True) if one is not None and other is not None]


def _cost_cell(cost: float | None, largest: float) -> Cell:
    return number_cell(cost, share=None if cost is None or largest <= 0 else max(cost, 0.0) / largest)


def _share(part: int, whole: int) -> str:
    return share_text(part / whole) if whole else "-"


def _confidence_text(value: float | None) -> str:
    return "-" if value is None else share_text(value, decimals=2, kind="f")
