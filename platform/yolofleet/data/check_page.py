"""The result of a check as one HTML page: problems, duplicates, suspicious labels, histograms, samples.

It shows something of every dataset, also where nothing is wrong: what the classes and boxes are like, and a few images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from yolofleet.core.page import image_tag, render_page
from yolofleet.data.check import SuspiciousImage
from yolofleet.data.content import Content, Duplicates
from yolofleet.data.decode import DEFAULT_MAX_PIXELS, decode_image
from yolofleet.data.draw import contact_sheet, draw_detections, encode
from yolofleet.data.findings import FINDING_KINDS, Finding
from yolofleet.data.image_formats import ImageError
from yolofleet.data.problems import ProblemLog
from yolofleet.data.records import ImageRecord
from yolofleet.data.sources import ImageStore
from yolofleet.storage import StorageError

THUMBNAIL_SIDE = 480
MOST_GROUPS, MOST_OF_A_GROUP, MOST_OF_A_KIND, MOST_CLASSES, NUM_SAMPLES = 24, 4, 12, 60, 8
CUT_MARGIN = 1.0
"""A finding is shown with so many times its own size around it."""
SMALLEST_CUT_SHARE = 0.25
BAR_COLOURS = ("#3b7dd8", "#e4572e", "#2ca25f", "#a04fc4", "#c98b00", "#0f9fb0")
_STYLE = """
.cards b{font-size:22px}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,260px),1fr));gap:16px}
figure{background:var(--card);border-radius:10px;padding:10px;overflow-wrap:anywhere}
figcaption ul{margin:4px 0;padding-left:18px}
.problems td,.problems th{text-align:left;vertical-align:top}
.problems td:nth-child(4){min-width:240px;overflow-wrap:anywhere}
.drop,.leak{color:#d0342c;color:light-dark(#b3261e,#ff8a80)}.repair{color:#b26a00;color:light-dark(#8a5300,#f0b35a)}
@media(max-width:600px){body{padding:14px}.card{padding:8px 12px;min-width:64px}
.figures{grid-template-columns:repeat(2,minmax(0,1fr));gap:10px}figure{padding:6px}
.problems tr{display:grid;grid-template-columns:auto 1fr auto}.problems th{display:none}
.problems td{border:0}.problems td:nth-child(4){grid-column:1/-1;border-bottom:1px solid var(--line)}}
.columns{display:grid;gap:28px 36px;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr))}
h3{font-size:15px;margin:0 0 6px;font-weight:600}
.rows{display:grid;grid-template-columns:minmax(56px,max-content) 1fr max-content;gap:3px 10px;align-items:center;
font-size:13px}
.rows span{overflow-wrap:anywhere}.rows .soft{font-variant-numeric:tabular-nums;text-align:right}
.rows i{display:block;height:9px;border-radius:3px;min-width:1px}
"""


def check_page(content: Content, problems: ProblemLog, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> str:
    """Return the HTML page of a check."""
    reports = [split.report for split in content.splits]
    suspicious = [
        _problem_card(entry, split.images, {index: c.name for index, c in enumerate(split.report.classes)}, max_pixels)
        for split in content.splits
        for entry in split.report.suspicious
    ]
    cards = {
        "images can be used": f"{sum(r.num_usable for r in reports)} of {sum(r.num_listed for r in reports)}",
        "boxes": f"{sum(r.num_boxes for r in reports)}",
        "crowds": f"{sum(r.num_crowds for r in reports)}",
        "images without objects": f"{sum(r.num_empty for r in reports)}",
        "problems": f"{problems.num()}",
        "groups of duplicates": f"{len(content.duplicates)}",
        "labels to look at": f"{sum(content.findings.counts.values())}",
    }
    figures = "".join(f"<div class='card'><b>{value}</b><span>{name}</span></div>" for name, value in cards.items())
    parts = [
        f"<div class='cards'>{figures}</div>",
        _problems(problems),
        _section(
            "Duplicates",
            "Images that show the same, those in more than one dataset first.",
            [_duplicate_card(content, group, max_pixels) for group in content.duplicates[:MOST_GROUPS]],
            len(content.duplicates),
        ),
        *_findings(content, max_pixels),
        _balance(content),
        _section("Images with problems", "", suspicious, len(suspicious)),
        _samples(content, max_pixels),
    ]
    return render_page(f"Check of {', '.join(split.name for split in content.splits)}", parts, _STYLE)


def _problems(problems: ProblemLog) -> str:
    rows = "".join(
        f"<tr><td class='{entry['outcome']}'>{entry['outcome']}</td><td>{kind}</td><td>{entry['count']}</td>"
        f"<td>{escape(entry['meaning'])}<br>"
        f"<small class='soft'>{escape('; '.join(entry['examples']))}</small></td></tr>"
        for kind, entry in problems.as_document().items()
    )
    if not rows:
        return "<h2>Problems</h2><p class='soft'>None.</p>"
    head = "<tr><th>outcome</th><th>problem</th><th>count</th><th>meaning and examples</th></tr>"
    return f"<h2>Problems</h2><div class='wide'><table class='problems'>{head}{rows}</table></div>"


def _section(title: str, note: str, cards: Sequence[str], num: int) -> str:
    """Return a section with its cards; an empty one says so."""
    shown = f" {len(cards)} of {num} are shown." if num > len(cards) else ""
    text = f"<p class='soft'>{escape(note + shown)}</p>" if cards else "<p class='soft'>None.</p>"
    return f"<h2>{escape(title)}</h2>{text}<div class='figures'>{''.join(cards)}</div>"


def _duplicate_card(content: Content, group: Duplicates, max_pixels: int) -> str:
    drawings = []
    for split, image in group.images[:MOST_OF_A_GROUP]:
        if (pixels := content.splits[split].read(image, max_pixels)) is not None:
            drawings.append(draw_detections(_scaled(pixels), []))
    how = "the same file" if group.is_exact else "mirrored" if group.is_mirrored else "nearly the same"
    sheet = contact_sheet(drawings, columns=2, cell=THUMBNAIL_SIDE // 2) if drawings else None
    shown = "" if sheet is None else image_tag(encode(sheet), sheet.size, how)
    names = "".join(f"<li>{escape(content.name(*image))}</li>" for image in group.images[: 2 * MOST_OF_A_GROUP])
    more = len(group.images) - 2 * MOST_OF_A_GROUP
    names += f"<li>and {more} more</li>" if more > 0 else ""
    leak = "<b class='leak'>in more than one dataset</b>, " if group.is_leak else ""
    return f"<figure>{shown}<figcaption>{leak}{how}<ul>{names}</ul></figcaption></figure>"


def _findings(content: Content, max_pixels: int) -> list[str]:
    sections = []
    for kind, meaning in FINDING_KINDS.items():
        if num := content.findings.counts.get(kind, 0):
            cards = [
                _finding_card(content, entry, max_pixels) for entry in content.findings.worst(kind)[:MOST_OF_A_KIND]
            ]
            sections.append(
                _section(kind.replace("_", " ").capitalize(), f"{meaning[0].upper()}{meaning[1:]}.", cards, num)
            )
    return sections or ["<h2>Labels to look at</h2><p class='soft'>None.</p>"]


def _finding_card(content: Content, finding: Finding, max_pixels: int) -> str:
    """Return the part of an image around a label, with the label and what a model found instead."""
    record = content.record(finding.split, finding.image).select(finding.labels)
    names = {index: entry.name for index, entry in enumerate(content.splits[finding.split].report.classes)}
    drawn = _records(record)
    if finding.detection is not None:
        name = f"found: {finding.detection['category_name']}"
        other = next((index for index, entry in names.items() if entry == finding.detection["category_name"]), -1)
        drawn.append({**finding.detection, "category_id": other, "category_name": name})
    pixels = content.splits[finding.split].read(finding.image, max_pixels)
    shown = "" if pixels is None else _draw(*_cut(pixels, drawn), names, finding.text)
    caption = (
        f"<b>{finding.score:.2f}</b> {escape(finding.text)}<br>{escape(content.name(finding.split, finding.image))}"
    )
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


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


def _balance(content: Content) -> str:
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
        notes.append(f"{len(order) - len(present)} classes have no box.")
    if len(kept) < len(order):
        notes.append(f"The {len(order) - len(kept)} classes between are not shown.")
    legend = "".join(
        f"<span><i style='background:{BAR_COLOURS[index % len(BAR_COLOURS)]}'></i>{escape(name)}</span>"
        for index, name in enumerate(names)
    )
    legend = f"<p class='legend' style='margin:0 0 14px'>{legend}</p>" if len(names) > 1 else ""
    charts = [("boxes by class", [{name: h.class_boxes.get(name, 0) for name in kept} for h in content.histograms])]
    charts += [(title, [h.bins[title] for h in content.histograms]) for title in content.histograms[0].bins]
    bars = "".join(f"<div><h3>{escape(title)}</h3>{_bars(counts)}</div>" for title, counts in charts)
    return (
        f"<h2>Classes and boxes</h2><p class='soft'>{' '.join(notes)} A bin is named by its lower edge.</p>"
        f"{legend}<div class='columns'>{bars}</div>"
    )


def _bars(counts: Sequence[Mapping[str, int]]) -> str:
    """Return rows with a bar for each dataset; its length is the share of the dataset, whatever the dataset's size."""
    sums = [max(1, sum(entry.values())) for entry in counts]
    names = list(counts[0])
    for end in (-1, 0):
        while len(names) > 1 and not any(entry[names[end]] for entry in counts):
            names.pop(end)
    longest = max((entry[name] / total for entry, total in zip(counts, sums, strict=True) for name in names), default=0)
    rows = []
    for name in names:
        bars = "".join(
            f"<i style='width:{100 * entry[name] / total / (longest or 1):.1f}%;"
            f"background:{BAR_COLOURS[index % len(BAR_COLOURS)]}'></i>"
            for index, (entry, total) in enumerate(zip(counts, sums, strict=True))
        )
        numbers = "<br>".join(f"{entry[name]:,}" for entry in counts)
        rows.append(f"<span>{escape(name)}</span><div>{bars}</div><span class='soft'>{numbers}</span>")
    return f"<div class='rows'>{''.join(rows)}</div>"


def _samples(content: Content, max_pixels: int) -> str:
    """Return some images with their labels, spread evenly over every dataset."""
    cards = []
    for number, split in enumerate(content.splits):
        names = {index: entry.name for index, entry in enumerate(split.report.classes)}
        count = len(split.report.records)
        for image in np.unique(np.linspace(0, count - 1, min(NUM_SAMPLES, count)).round().astype(int)).tolist():
            pixels = split.read(image, max_pixels)
            if pixels is not None:
                name = content.name(number, image)
                shown = _draw(pixels, _records(split.report.records[image]), names, name)
                cards.append(f"<figure>{shown}<figcaption>{escape(name)}</figcaption></figure>")
    return _section("Samples", "Images with their labels, evenly spread.", cards, len(cards))


def _problem_card(entry: SuspiciousImage, images: ImageStore, names: Mapping[int, str], max_pixels: int) -> str:
    lines = "".join(
        f"<li><b>{kind}</b> {escape('; '.join(examples))}</li>" for kind, examples in sorted(entry.problems.items())
    )
    caption = f"<figcaption>{escape(entry.file_name)}<ul>{lines}</ul></figcaption>"
    record = entry.record
    if entry.key is None or "image_too_large" in entry.problems:
        return f"<figure><p>(not read)</p>{caption}</figure>"
    try:
        pixels = decode_image(images.get(entry.key), max_pixels=max_pixels, upright=record.way_up)
    except (ImageError, StorageError) as error:
        return f"<figure><p>({escape(str(error))})</p>{caption}</figure>"
    return f"<figure>{_draw(pixels, _records(record), names, entry.file_name)}{caption}</figure>"


def _records(record: ImageRecord) -> list[dict[str, Any]]:
    return [
        {"category_id": int(index), "bbox": box, "iscrowd": bool(crowd)}
        for index, box, crowd in zip(
            record.classes, np.clip(record.boxes, -1e6, 1e6).tolist(), record.iscrowd, strict=True
        )
    ]


def _scaled(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    gain = min(1.0, THUMBNAIL_SIDE / max(pixels.shape[:2]))
    size = (max(1, round(pixels.shape[1] * gain)), max(1, round(pixels.shape[0] * gain)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _draw(pixels: NDArray[np.uint8], records: list[dict[str, Any]], names: Mapping[int, str], alt: str) -> str:
    """Return the tag of an image with boxes, none of its sides above the thumbnail's."""
    small = _scaled(pixels)
    gain = max(small.shape[:2]) / max(pixels.shape[:2])
    moved = [{**entry, "bbox": [value * gain for value in entry["bbox"]]} for entry in records]
    drawing = draw_detections(small, moved, names=names)
    return image_tag(encode(drawing), drawing.size, alt)
