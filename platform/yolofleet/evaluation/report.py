"""The evaluation report: figures, curves, classes and images of a model in one HTML file.

The page holds everything itself, so it can be opened anywhere and stored as one artifact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from yolofleet.core.page import image_tag, render_page
from yolofleet.core.redaction import redact
from yolofleet.data.draw import class_colour
from yolofleet.evaluation.average_precision import ClassFigures, EvaluationResult
from yolofleet.evaluation.charts import Series, line_chart
from yolofleet.evaluation.precision_recall import RECALL_LEVELS
from yolofleet.evaluation.samples import SampleImage

if TYPE_CHECKING:
    from yolofleet.evaluation.diagnosis import Diagnosis

MAIN_FIGURES = ("AP", "AP50", "AP75")
LOSS_KEYS = ("loss_box", "loss_objectness", "loss_classification")
CHARTS = (
    ("loss", LOSS_KEYS),
    ("validation loss", tuple(f"val_{key}" for key in LOSS_KEYS)),
    ("learning rate", ("learning_rate",)),
    ("validation", ("val_AP", "val_AP50", "val_AP75")),
)
PALETTE = ("#3b7dd8", "#e4572e", "#2ca25f", "#a04fc4", "#c98b00", "#0f9fb0")
MEAN_COLOUR = "#808890"
MOST_POINTS = 1000
BAR_PIXELS = 90


def render_report(
    result: EvaluationResult | None,
    *,
    title: str,
    facts: Mapping[str, str] | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    images: Sequence[SampleImage] = (),
    diagnosis: Diagnosis | None = None,
    drawn: Mapping[int, SampleImage] | None = None,
) -> str:
    """Render the page.

    Args:
        result: An evaluation; None for a run that has not been evaluated.
        title: Heading of the page.
        facts: Further facts: model, data, run, commit.
        history: A run's rows of metrics, each with its step: losses, learning rate, validation figures.
        images: Sample images, ground truth beside detections.
        diagnosis: Of the evaluation; it comes first.
        drawn: The images of its galleries by image id, as `samples.draw_outcomes` draws them.

    Returns:
        An HTML document that needs no other file and no network.
    """
    parts: list[str] = []
    style = ""
    if diagnosis is not None:
        from yolofleet.evaluation.diagnosis_page import STYLE, render_summary

        parts.append(render_summary(diagnosis))
        style = STYLE
    if facts:
        rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(redact(str(value)))}</dd>" for name, value in facts.items())
        parts.append(f"<dl>{rows}</dl>")
    if result is not None:
        parts.append(_figures(result))
    if history:
        parts.append(_training(history))
    if result is not None and diagnosis is not None:
        from yolofleet.evaluation.diagnosis_page import render_diagnosis

        file_names = {image["id"]: str(image.get("file_name", image["id"])) for image in result.ground_truth["images"]}
        parts += render_diagnosis(diagnosis, file_names, drawn or {})
    if result is not None:
        parts += [_curves(result), _classes(result.per_class, result.average_precision.protocol.max_detections)]
    if images:
        parts.append(_images(images))
    return render_page(title, parts, style)


def _figures(result: EvaluationResult) -> str:
    precision = result.average_precision
    main_figures = (*MAIN_FIGURES, f"AR_{precision.protocol.max_detections}")
    cards = "".join(
        f"<div class='card'><b>{_format(precision.figures[name], 3)}</b><span>{name}</span></div>"
        for name in main_figures
    )
    rest = [name for name in precision.figures if name not in main_figures]
    head = "".join(f"<th>{name}</th>" for name in rest)
    values = "".join(f"<td>{_format(precision.figures[name], 4)}</td>" for name in rest)
    skipped = f", {len(result.skipped)} images could not be read" if result.skipped else ""
    return (
        f"<h2>Figures</h2><div class='cards'>{cards}</div>"
        f"<p class='soft'>{precision.num_images} images, {precision.num_objects} objects, "
        f"{precision.num_crowds} crowds, "
        f"{precision.num_detections} detections{skipped}. COCO figures; - where there was nothing to measure.</p>"
        f"<div class='wide'><table><tr>{head}</tr><tr>{values}</tr></table></div>"
    )


def _training(history: Sequence[Mapping[str, Any]]) -> str:
    """Losses, learning rate and validation figures over the steps, as far as the rows have them."""
    charts = []
    for name, keys in CHARTS:
        lines = [
            Series(
                name=key.removeprefix("val_").removeprefix("loss_").replace("_", " "),
                points=points,
                colour=colour,
                width=2,
            )
            for key, colour in zip(keys, PALETTE, strict=False)
            if (points := _points(history, key))
        ]
        if lines:
            y_range = (0.0, 1.0) if name == "validation" else None
            charts.append(f"<div>{line_chart(lines, x_name='step', y_name=name, y_range=y_range)}</div>")
    return f"<h2>Training</h2><div class='charts'>{''.join(charts)}</div>" if charts else ""


def _points(history: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) of the rows that have the key, thinned out to what a chart can show."""
    points = [
        (float(row["step"]), float(row[key]))
        for row in history
        if isinstance(row.get(key), int | float) and isinstance(row.get("step"), int)
    ]
    if len(points) <= MOST_POINTS:
        return points
    chosen = np.linspace(0, len(points) - 1, MOST_POINTS).round().astype(int)
    return [points[position] for position in chosen.tolist()]


def _curves(result: EvaluationResult) -> str:
    """Precision over recall at IoU 0.50: every class, and their mean."""
    names = {entry.category_id: entry.name for entry in result.per_class}
    measured = {category_id: curve for category_id, curve in result.average_precision.curves.items() if curve}
    if not measured:
        return ""
    levels = RECALL_LEVELS.tolist()
    lines = [
        Series(
            name=names[category_id],
            points=list(zip(levels, curve, strict=True)),
            colour="#{:02x}{:02x}{:02x}".format(*class_colour(category_id)),
        )
        for category_id, curve in measured.items()
    ]
    if len(lines) > 1:
        mean = np.mean(list(measured.values()), axis=0).tolist()
        points = list(zip(levels, mean, strict=True))
        lines.append(Series(name="mean of the classes", points=points, colour=MEAN_COLOUR, width=3))
    chart = line_chart(lines, x_name="recall", y_name="precision", x_range=(0, 1), y_range=(0, 1), most_in_legend=21)
    return f"<h2>Precision and recall at IoU 0.50</h2><div class='charts'><div>{chart}</div></div>"


def _classes(per_class: Sequence[ClassFigures], max_detections: int) -> str:
    headings = ("class", "AP", "AP50", "AP75", f"AR_{max_detections}", "objects", "detections", "best F1", "at score")
    rows = []
    present = [entry for entry in per_class if entry.ap is not None]
    for entry in sorted(present, key=lambda entry: entry.ap or 0.0, reverse=True):
        bar = f"<i class='bar' style='width:{round((entry.ap or 0) * BAR_PIXELS)}px'></i>" if entry.ap else ""
        numbers = [
            f"{bar}{_format(entry.ap, 3)}",
            *(_format(value, 3) for value in (entry.ap50, entry.ap75, entry.average_recall)),
            f"{entry.num_objects}",
            f"{entry.num_detections}",
            *(_format(value, 3) for value in (entry.best_f1, entry.best_confidence)),
        ]
        cells = "".join(f"<td>{number}</td>" for number in numbers)
        rows.append(f"<tr><td>{escape(entry.name)}</td>{cells}</tr>")
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    absent = len(per_class) - len(present)
    note = f"<p class='soft'>{absent} classes without objects are left out.</p>" if absent else ""
    return f"<h2>Classes</h2><div class='wide'><table><tr>{head}</tr>{''.join(rows)}</table></div>{note}"


def _images(images: Sequence[SampleImage]) -> str:
    figures = "".join(
        f"<figure>{image_tag(image.jpeg, (image.width, image.height))}"
        f"<figcaption>{escape(image.name)}</figcaption></figure>"
        for image in images
    )
    return f"<h2>Images: ground truth left, detections right</h2><div class='images'>{figures}</div>"


def _format(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"
