"""The evaluation page: figures, curves and classes of a model, and images with its boxes.

`evaluation_sections` makes them from plain values (`EvaluationResult.page_document`), as they are stored with a run, so
the run page shows the same without the model or the data. What explains an evaluation further is a section more there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from yolofleet.core.redaction import redact
from yolofleet.core.text import plural
from yolofleet.reports.charts import COLOURS, Point, Series, chart
from yolofleet.reports.page import (
    Cell,
    Markup,
    Section,
    Table,
    beside,
    cards,
    facts,
    figure,
    grid,
    number_cell,
    render_page,
    table,
)

if TYPE_CHECKING:
    from yolofleet.evaluation.average_precision import EvaluationResult
    from yolofleet.evaluation.samples import SampleImage

Document = Mapping[str, Any]
MAIN_FIGURES = ("AP", "AP50", "AP75")
MOST_LINES = 7
"""As many as there are colours beside the mean's. With more classes a chart shows the mean, the worst and the best of
them, and each class has a small chart."""
ENDS = 3
CONFIDENCE = 0.25
IMAGE_BYTES = 2_000_000
"""Of all images of a page: as text in it they take a third more, and a page shall stay below 3 MB."""
UNIT = (0.0, 1.0)


def render_report(
    result: EvaluationResult,
    *,
    title: str,
    facts: Mapping[str, str] | None = None,
    images: Sequence[SampleImage] = (),
    diagnosis: Document | None = None,
    drawn: Mapping[str, SampleImage] | None = None,
) -> str:
    """Return the page of an evaluation.

    Args:
        result: The evaluation.
        title: Heading of the page.
        facts: Further facts: model, data, settings.
        images: Sample images, ground truth beside detections.
        diagnosis: Of the evaluation, as `Diagnosis.as_json` gives it; it comes first.
        drawn: The drawings of its galleries by their names, as `samples.draw_outcomes` draws them.

    Returns:
        An HTML document that needs no other file and no network.
    """
    document: Document = result.page_document()
    images, drawn = fit_to_page(images, drawn or {}, diagnosis)
    if diagnosis is not None:
        document = {**document, "diagnosis": name_images(diagnosis, result.ground_truth)}
    return render_page(
        title,
        [*evaluation_sections(document, drawn), image_section(images), _facts(facts or {})],
        summary=diagnosis["summary"] if diagnosis is not None else evaluation_sentence(document),
    )


def evaluation_sentence(document: Document) -> str:
    """Return in one sentence what an evaluation found."""
    ap, ap50 = (document["figures"][name] for name in ("AP", "AP50"))
    if ap is None:
        return f"There was nothing to measure: {plural(document['num_images'], 'image')} without an object."
    images, objects = plural(document["num_images"], "image"), plural(document["num_objects"], "object")
    sentence = f"AP {ap:.3f} (AP50 {ap50:.3f}) on {images} with {objects}"
    ranked = _by_ap(document)
    if len(ranked) < 2:
        return f"{sentence}."
    worst, best = ranked[0], ranked[-1]
    return f"{sentence}; best at {best['name']} ({best['ap']:.3f}), worst at {worst['name']} ({worst['ap']:.3f})."


def name_images(diagnosis: Document, ground_truth: Document) -> dict[str, Any]:
    """Return a diagnosis with the names of the images whose labels it doubts."""
    names = {image["id"]: str(image.get("file_name", image["id"])) for image in ground_truth["images"]}
    doubted = [entry | {"image": names.get(entry["image_id"], "")} for entry in diagnosis["label_errors"]]
    return {**diagnosis, "label_errors": doubted}


def evaluation_sections(document: Document, drawn: Mapping[str, SampleImage]) -> Iterator[Section]:
    """Yield the sections of an evaluation: its diagnosis, figures, classes with precision over recall, each by itself.

    Args:
        document: Of `EvaluationResult.page_document`, with its diagnosis where there is one.
        drawn: Name -> the drawing, of the images of its galleries that there are.
    """
    if "diagnosis" in document:
        from yolofleet.evaluation.diagnosis_page import diagnosis_sections

        yield from diagnosis_sections(document["diagnosis"], drawn)
    yield _figures(document)
    yield _classes(document)
    yield from _each_class(document)


def fit_to_page(
    images: Sequence[SampleImage], drawn: Mapping[str, SampleImage], diagnosis: Document | None
) -> tuple[list[SampleImage], dict[str, SampleImage]]:
    """Return sample images and drawings of galleries, all together in `IMAGE_BYTES`; a gallery may repeat an image."""
    galleries = [] if diagnosis is None else diagnosis["galleries"]
    num_shown = len(images) + sum(entry["drawing"] in drawn for gallery in galleries for entry in gallery["images"])
    most_bytes = IMAGE_BYTES // max(1, num_shown)
    fitted = {name: image.within(most_bytes) for name, image in drawn.items()}
    return [image.within(most_bytes) for image in images], fitted


def image_section(images: Sequence[SampleImage]) -> Section | None:
    """Return the sample images as a section; None without any."""
    if not images:
        return None
    figures = [
        figure(image.jpeg, (image.width, image.height), f"{image.name}: ground truth and detections", image.name)
        for image in images
    ]
    note = f"Left: ground truth. Right: detections with a score of at least {CONFIDENCE}."
    return Section(title="Images", note=note, body=grid(figures, "images"))


def _facts(values: Mapping[str, str]) -> Section:
    return Section(title="Facts", body=facts({name: redact(str(value)) for name, value in values.items()}))


def _by_ap(document: Document) -> list[Document]:
    """Return the classes that have objects, the worst first."""
    return sorted((entry for entry in document["per_class"] if entry["ap"] is not None), key=lambda entry: entry["ap"])


def _figures(document: Document) -> Section:
    figures = document["figures"]
    main = (*MAIN_FIGURES, f"AR_{document['max_detections']}")
    rest = [name for name in figures if name not in main]
    shown = {name: _format(figures[name]) for name in main}
    skipped = f", {plural(len(document['skipped']), 'image')} could not be read" if document["skipped"] else ""
    counts = (plural(document[f"num_{noun}s"], noun) for noun in ("image", "object", "crowd", "detection"))
    note = f"{', '.join(counts)}{skipped}. COCO figures; a dash: there was nothing to measure."
    others = Table(name="Further figures", head=rest, rows=[[number_cell(figures[name], 4) for name in rest]])
    return Section(title="Figures", note=note, body=cards(shown) + table(others))


def _classes(document: Document) -> Section:
    recall = f"AR_{document['max_detections']}"
    head = ("class", "AP", "AP50", "AP75", recall, "objects", "detections", "best F1", "at score")
    present = _by_ap(document)
    rows = [
        [
            Cell(text=entry["name"]),
            number_cell(entry["ap"], share=entry["ap"]),
            *(number_cell(entry[key]) for key in ("ap50", "ap75", recall.lower())),
            entry["num_objects"],
            entry["num_detections"],
            number_cell(entry["best_f1"]),
            number_cell(entry["best_confidence"]),
        ]
        for entry in present
    ]
    absent = len(document["per_class"]) - len(present)
    notes = ["The worst first; curves at IoU 0.50."]
    if len(present) > MOST_LINES:
        notes.append(f"The chart shows the {ENDS} worst, the {ENDS} best and the mean of all.")
    if absent:
        notes.append(f"{plural(absent, 'class')} without objects are left out.")
    body = beside(table(Table(name="Classes", head=head, rows=rows)), _curves(document))
    return Section(title="Classes", note=" ".join(notes), body=body)


def _measured(document: Document) -> list[tuple[Document, list[Point]]]:
    """Return the classes with their curves of precision over recall, the worst first."""
    return [
        (entry, [(level / (len(curve) - 1), value) for level, value in enumerate(curve)])
        for entry in _by_ap(document)
        if (curve := document["curves"].get(str(entry["category_id"])))
    ]


def _curves(document: Document) -> Markup:
    """Return precision over recall: the classes, or the ends of their ranking, and the mean."""
    ranked = _measured(document)
    chosen = ranked if len(ranked) <= MOST_LINES else [*ranked[:ENDS], *ranked[-ENDS:]]
    lines = [
        Series(name=entry["name"], points=points, colour=COLOURS[number % 7])
        for number, (entry, points) in enumerate(chosen)
    ]
    if len(ranked) > 1:
        levels = zip(*(points for _, points in ranked), strict=True)
        mean = [(at[0][0], sum(value for _, value in at) / len(at)) for at in levels]
        lines.append(Series(name="mean of the classes", points=mean, colour=COLOURS[7]))
    return chart(lines, title="precision over recall", x_name="recall", x_range=UNIT, y_range=UNIT)


def _each_class(document: Document) -> Iterator[Section]:
    """Yield a small chart of each class, where there are more of them than one chart takes."""
    ranked = _measured(document)
    if len(ranked) > MOST_LINES:
        small = (
            chart(
                [Series(name=entry["name"], points=points[::2])],
                title=f"{entry['name']} {entry['ap']:.3f}",
                x_name="recall",
                x_range=UNIT,
                y_range=UNIT,
                small=True,
            )
            for entry, points in ranked
        )
        note = "Precision over recall at IoU 0.50, the worst class first."
        yield Section(title=f"All {plural(len(ranked), 'class')}", note=note, body=grid(small, "small"), folded=True)


def _format(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
