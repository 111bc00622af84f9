"""The result of a check as one HTML page: problems, duplicates, suspicious labels, histograms, samples.

It shows something of every dataset, also where nothing is wrong: what the classes and boxes are like, and a few images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolofleet.core.text import plural
from yolofleet.data.check import SuspiciousImage
from yolofleet.data.content import Content, Duplicates
from yolofleet.data.decode import DEFAULT_MAX_PIXELS, decode_image
from yolofleet.data.draw import contact_sheet, draw_detections, encode
from yolofleet.data.findings import FINDING_KINDS, Finding
from yolofleet.data.image_formats import ImageError
from yolofleet.data.problems import ProblemLog
from yolofleet.data.records import ImageRecord
from yolofleet.data.sources import ImageStore
from yolofleet.reports.charts import COLOURS
from yolofleet.reports.page import (
    Markup,
    Row,
    Section,
    Table,
    bullets,
    cards,
    figure,
    grid,
    render_page,
    table,
    text,
)
from yolofleet.storage import StorageError

THUMBNAIL_SIDE = 320
MOST_GROUPS, MOST_OF_A_GROUP, MOST_OF_A_KIND, MOST_CLASSES, NUM_SAMPLES = 24, 4, 12, 60, 8
CUT_MARGIN = 1.0
"""A finding is shown with so many times its own size around it."""
SMALLEST_CUT_SHARE = 0.25


def check_page(content: Content, problems: ProblemLog, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> str:
    """Return the HTML page of a check."""
    reports = [split.report for split in content.splits]
    suspicious = [
        _problem_card(entry, split.images, {index: c.name for index, c in enumerate(split.report.classes)}, max_pixels)
        for split in content.splits
        for entry in split.report.suspicious
    ]
    num_usable, num_listed = sum(r.num_usable for r in reports), sum(r.num_listed for r in reports)
    num_labels = sum(content.findings.counts.values())
    figures = cards(
        {
            "images can be used": f"{num_usable} of {num_listed}",
            "boxes": f"{sum(r.num_boxes for r in reports)}",
            "crowds": f"{sum(r.num_crowds for r in reports)}",
            "images without objects": f"{sum(r.num_empty for r in reports)}",
            "problems": f"{problems.num()}",
            "groups of duplicates": f"{len(content.duplicates)}",
            "labels to look at": f"{num_labels}",
        }
    )
    leaks = sum(group.is_leak for group in content.duplicates)
    boxes = plural(sum(r.num_boxes for r in reports), "box")
    summary = f"{num_usable:,} of {plural(num_listed, 'image')} can be used, with {boxes}; " + (
        "no problems were found."
        if not (problems.num() or content.duplicates or num_labels)
        else f"{plural(problems.num(), 'problem')}, {plural(len(content.duplicates), 'group')} of duplicates"
        f"{f' ({leaks} across the datasets)' if leaks else ''}, {plural(num_labels, 'label')} to look at."
    )
    sections = [
        Section(title="Figures", body=figures),
        Section(title="Problems", body=_problems(problems)),
        _section(
            "Duplicates",
            "Images that show the same scene; those in more than one dataset come first.",
            [_duplicate_card(content, group, max_pixels) for group in content.duplicates[:MOST_GROUPS]],
            len(content.duplicates),
        ),
        *_findings(content, max_pixels),
        _balance(content),
        _section("Images with problems", "", suspicious, len(suspicious)),
        _samples(content, max_pixels),
    ]
    return render_page(f"Check of {', '.join(split.name for split in content.splits)}", sections, summary=summary)


def _problems(problems: ProblemLog) -> Markup:
    rows: list[Row] = [
        [
            str(entry["outcome"]),
            kind,
            int(entry["count"]),
            str(entry["meaning"]),
            "; ".join(entry["examples"]),
        ]
        for kind, entry in problems.as_document().items()
    ]
    head = ("outcome", "problem", "count", "meaning", "examples")
    return table(Table(name="Problems", head=head, rows=rows)) or text("None.")


def _section(title: str, note: str, tiles: Sequence[Markup], num: int) -> Section:
    """Return a section with its images; an empty one says so."""
    shown = f" Shown: {len(tiles)} of {num:,}." if num > len(tiles) else ""
    if not tiles:
        return Section(title=title, body=text("None."))
    return Section(title=title, note=note + shown, body=grid(tiles, "tiles"))


def _duplicate_card(content: Content, group: Duplicates, max_pixels: int) -> Markup:
    drawings = []
    for split, image in group.images[:MOST_OF_A_GROUP]:
        if (pixels := content.splits[split].read(image, max_pixels)) is not None:
            drawings.append(draw_detections(pixels, [], side=THUMBNAIL_SIDE))
    how = "the same file" if group.is_exact else "mirrored" if group.is_mirrored else "nearly the same"
    names = [content.name(*image) for image in group.images[: 2 * MOST_OF_A_GROUP]]
    more = len(group.images) - len(names)
    leak = Markup('<b class="leak">in more than one dataset</b>, ') if group.is_leak else Markup("")
    caption = Markup("{}{}{}").format(leak, how, bullets([*names, *([f"and {more} more"] if more > 0 else [])]))
    if not drawings:
        return _unseen("not read", caption)
    sheet = contact_sheet(drawings, columns=2, cell=THUMBNAIL_SIDE // 2)
    return figure(encode(sheet), sheet.size, how, caption)


def _unseen(why: str, caption: Markup) -> Markup:
    return Markup("<figure><p>({})</p><figcaption>{}</figcaption></figure>").format(why, caption)


def _findings(content: Content, max_pixels: int) -> list[Section]:
    sections = []
    for kind, meaning in FINDING_KINDS.items():
        if num := content.findings.counts.get(kind, 0):
            tiles = [
                _finding_card(content, entry, max_pixels) for entry in content.findings.worst(kind)[:MOST_OF_A_KIND]
            ]
            title = kind.replace("_", " ").capitalize()
            sections.append(_section(title, f"{meaning[0].upper()}{meaning[1:]}.", tiles, num))
    return sections or [Section(title="Labels to look at", body=text("None."))]


def _finding_card(content: Content, finding: Finding, max_pixels: int) -> Markup:
    """Return the part of an image around a label, with the label and what a model found instead."""
    record = content.record(finding.split, finding.image).select(finding.labels)
    names = {index: entry.name for index, entry in enumerate(content.splits[finding.split].report.classes)}
    drawn = _records(record)
    if finding.detection is not None:
        name = f"found: {finding.detection['category_name']}"
        other = next((index for index, entry in names.items() if entry == finding.detection["category_name"]), -1)
        drawn.append({**finding.detection, "category_id": other, "category_name": name})
    pixels = content.splits[finding.split].read(finding.image, max_pixels)
    where = content.name(finding.split, finding.image)
    caption = Markup("<b>{:.2f}</b> {}<br>{}").format(finding.score, finding.text, where)
    if pixels is None:
        return _unseen("not read", caption)
    return _draw(*_cut(pixels, drawn), names, finding.text, caption)


def _cut(pixels: NDArray[np.uint8], drawn: list[dict[str, Any]]) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """Cut out the surroundings of the boxes, and move the boxes along."""
    boxes = np.array([entry["bbox"] for entry in drawn])
    low, high = boxes[:, :2].min(axis=0), (boxes[:, :2] + boxes[:, 2:]).max(axis=0)
    size = np.array([pixels.shape[1], pixels.shape[0]])
    half = np.maximum((high - low) * (0.5 + CUT_MARGIN), SMALLEST_CUT_SHARE * size.min() / 2)
    half = np.minimum(np.maximum(half, half.max() / 1.4), size / 2)  # a strip around a thin box shows little
    middle = np.clip((low + high) / 2, half, size - half)
    (left, top), (right, bottom) = np.floor(middle - half).astype(int), np.ceil(middle + half).astype(int)
    left, top = max(left, 0), max(top, 0)
    moved = [
        {**entry, "bbox": [entry["bbox"][0] - left, entry["bbox"][1] - top, *entry["bbox"][2:]]} for entry in drawn
    ]
    return pixels[top:bottom, left:right], moved


def _balance(content: Content) -> Section:
    """Return the classes and the histograms, one bar for each dataset."""
    names = [split.name for split in content.splits]
    totals: dict[str, int] = {}
    for histograms in content.histograms:
        for name, count in histograms.class_boxes.items():
            totals[name] = totals.get(name, 0) + count
    order = sorted(totals, key=lambda name: -totals[name])
    present = [totals[name] for name in order if totals[name]]
    kept = order if len(order) <= MOST_CLASSES else order[: MOST_CLASSES // 2] + order[-MOST_CLASSES // 2 :]
    notes = []
    if len(present) > 1:
        notes.append(
            f"The most frequent class has {present[0] / present[-1]:.1f} times the boxes of the least frequent."
        )
    if len(present) < len(order):
        notes.append(f"{plural(len(order) - len(present), 'class has', 'classes have')} no box.")
    if len(kept) < len(order):
        left_out = plural(len(order) - len(kept), "class between is", "classes between are")
        notes.append(f"The {left_out} not shown.")
    if len(names) > 1:
        notes.append("A bar is as long as its share of its own dataset.")
    legend = Markup("").join(
        Markup('<span><i style="background:{}"></i>{}</span>').format(COLOURS[index % len(COLOURS)], name)
        for index, name in enumerate(names)
    )
    charts = [("boxes by class", [{name: h.class_boxes.get(name, 0) for name in kept} for h in content.histograms])]
    for title, bins in content.histograms[0].bins.items():
        ranges = _ranges(list(bins), are_counts="number of" in title)
        charts.append((title, [dict(zip(ranges, h.bins[title].values(), strict=True)) for h in content.histograms]))
    bars = grid(Markup("<div><h3>{}</h3>{}</div>").format(title, _bars(counts)) for title, counts in charts)
    shown = Markup('<div class="legend">{}</div>').format(legend) if len(names) > 1 else Markup("")
    return Section(title="Classes and boxes", note=" ".join(notes), body=shown + bars)


def _ranges(edges: Sequence[str], *, are_counts: bool) -> list[str]:
    """Return bins, which are named by their lower edges, as ranges; those that have names of their own as they are."""
    if not all(edge.isdecimal() for edge in edges):
        return list(edges)
    ranges = []
    for low, high in pairwise(map(int, edges)):
        if are_counts:
            ranges.append(str(low) if high == low + 1 else f"{low} to {high - 1}")
        else:
            ranges.append(f"{low} to {high}" if low else f"below {high}")
    return [*ranges, f"{edges[-1]} or more"]


def _bars(counts: Sequence[Mapping[str, int]]) -> Markup:
    """Return rows with a bar for each dataset; its length is the share of the dataset, whatever the dataset's size."""
    sums = [max(1, sum(entry.values())) for entry in counts]
    names = list(counts[0])
    for end in (-1, 0):
        while len(names) > 1 and not any(entry[names[end]] for entry in counts):
            names.pop(end)
    longest = max((entry[name] / total for entry, total in zip(counts, sums, strict=True) for name in names), default=0)
    rows = []
    for name in names:
        bars = Markup("").join(
            Markup('<i style="width:{:.1f}%;background:{}"></i>').format(
                100 * entry[name] / total / (longest or 1), COLOURS[index % len(COLOURS)]
            )
            for index, (entry, total) in enumerate(zip(counts, sums, strict=True))
        )
        numbers = Markup("<br>").join(f"{entry[name]:,}" for entry in counts)
        rows.append(Markup('<span>{}</span><div>{}</div><span class="soft">{}</span>').format(name, bars, numbers))
    return Markup('<div class="rows">{}</div>').format(Markup("").join(rows))


def _samples(content: Content, max_pixels: int) -> Section:
    """Return some images with their labels, spread evenly over every dataset."""
    tiles = []
    for number, split in enumerate(content.splits):
        names = {index: entry.name for index, entry in enumerate(split.report.classes)}
        count = len(split.report.records)
        for image in np.unique(np.linspace(0, count - 1, min(NUM_SAMPLES, count)).round().astype(int)).tolist():
            pixels = split.read(image, max_pixels)
            if pixels is not None:
                name = content.name(number, image)
                tiles.append(_draw(pixels, _records(split.report.records[image]), names, name, name))
    return _section("Samples", "Images with their labels, evenly spread.", tiles, len(tiles))


def _problem_card(entry: SuspiciousImage, images: ImageStore, names: Mapping[int, str], max_pixels: int) -> Markup:
    lines = bullets(
        Markup("<b>{}</b> {}").format(kind, "; ".join(examples)) for kind, examples in sorted(entry.problems.items())
    )
    caption = Markup("{}{}").format(entry.file_name, lines)
    record = entry.record
    if entry.key is None or "image_too_large" in entry.problems:
        return _unseen("not read", caption)
    try:
        pixels = decode_image(images.get(entry.key), max_pixels=max_pixels, upright=record.way_up)
    except (ImageError, StorageError):  # the caption says why
        return _unseen("not read", caption)
    return _draw(pixels, _records(record), names, entry.file_name, caption)


def _records(record: ImageRecord) -> list[dict[str, Any]]:
    return [
        {"category_id": int(index), "bbox": box, "iscrowd": bool(crowd)}
        for index, box, crowd in zip(
            record.classes, np.clip(record.boxes, -1e6, 1e6).tolist(), record.iscrowd, strict=True
        )
    ]


def _draw(
    pixels: NDArray[np.uint8], records: list[dict[str, Any]], names: Mapping[int, str], alt: str, caption: str | Markup
) -> Markup:
    """Return an image with boxes, its longer side that of the thumbnail."""
    drawing = draw_detections(pixels, records, names=names, side=THUMBNAIL_SIDE)
    return figure(encode(drawing), drawing.size, alt, caption)
