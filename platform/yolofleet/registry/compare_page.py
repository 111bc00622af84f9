"""One page that shows how two versions differ: figures, classes, and the pictures where they differ most."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from yolofleet.evaluation.disagreement import Disagreement, disagreements
from yolofleet.evaluation.report import STYLE
from yolofleet.evaluation.samples import SamplePicture, draw_sample
from yolofleet.registry.comparison import Comparison

if TYPE_CHECKING:
    from yolofleet.data.dataset import ShardDataset
    from yolofleet.evaluation.bootstrap import Difference

NUM_PICTURES = 12
SIDE_PIXELS = 420
MORE_STYLE = """
.up{color:#2a9d5c}.down{color:#d6453d}.pictures{grid-template-columns:1fr}
.tail{display:inline-block;width:120px;height:12px;position:relative;vertical-align:middle}
.tail i{position:absolute;top:5px;height:3px;background:var(--bar)}
.tail b{position:absolute;top:0;left:50%;width:1px;height:12px;background:var(--soft)}
"""


@dataclass(frozen=True)
class DifferingPicture:
    """A picture on which two versions differ.

    Attributes:
        disagreement: The mistakes of both.
        picture: Ground truth, the first version's boxes, the second version's boxes.
    """

    disagreement: Disagreement
    picture: SamplePicture


def differing_pictures(comparison: Comparison, *, count: int = NUM_PICTURES) -> list[DifferingPicture]:
    """Draw the pictures on which two versions differ most."""
    first, second = (judged.detections for judged in comparison.found)
    chosen = disagreements(comparison.dataset.annotations(), first, second, count=count)
    numbers = _numbers(comparison.dataset, {entry.image_id for entry in chosen})
    pictures = []
    for entry in chosen:
        picture = draw_sample(comparison.dataset, numbers[entry.image_id], [first, second], side=SIDE_PIXELS)
        if picture is not None:
            pictures.append(DifferingPicture(entry, picture))
    return pictures


def render_comparison(comparison: Comparison, pictures: Sequence[DifferingPicture]) -> str:
    """Render the page; it needs no other file and no network."""
    differences = comparison.differences
    first, second = escape(comparison.first.uri), escape(comparison.second.uri)
    title = f"{second} against {first}"
    share = f"{differences.confidence:.0%}"
    return "".join(
        [
            "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
            "<meta name='viewport' content='width=device-width,initial-scale=1'>",
            f"<title>{title}</title><style>{STYLE}{MORE_STYLE}</style></head><body><h1>{title}</h1>",
            f"<p class='soft'>{differences.num_images} images of {escape(comparison.dataset.storage.url)}, the same "
            f"for both. Intervals hold {share} of {differences.num_replicates} paired bootstrap replicates over "
            "images; a difference is coloured where its interval leaves out zero.</p>",
            "<h2>Figures</h2>",
            _table("figure", differences.figures, comparison),
            "<h2>AP of the classes</h2>",
            _table("class", differences.per_class, comparison),
            "<h2>Where they differ most</h2>",
            f"<p class='soft'>Left the ground truth, then {first}, then {second}; boxes from a score of 0.25.</p>"
            if pictures
            else "<p class='soft'>They make equally many mistakes in every picture.</p>",
            f"<div class='pictures'>{''.join(_figure(entry) for entry in pictures)}</div></body></html>\n",
        ]
    )


def _table(heading: str, rows: Sequence[Difference], comparison: Comparison) -> str:
    widest = max((abs(end) for row in rows for end in (row.low, row.high) if end is not None), default=0.0) or 1.0
    names = [f"version {version.number}" for version in (comparison.first, comparison.second)]
    if comparison.first.name != comparison.second.name:
        names = [escape(version.uri.removeprefix("models:/")) for version in (comparison.first, comparison.second)]
    head = "".join(f"<th>{name}</th>" for name in (heading, *names, "difference", "interval", ""))
    return f"<div class='wide'><table><tr>{head}</tr>{''.join(_row(row, widest) for row in rows)}</table></div>"


def _row(row: Difference, widest: float) -> str:
    if row.first is None or row.second is None or row.difference is None or row.low is None or row.high is None:
        return f"<tr><td>{escape(row.name)}</td><td>-</td><td>-</td><td>-</td><td>nothing to measure</td><td></td></tr>"
    tone = "up" if row.low > 0 else "down" if row.high < 0 else ""
    left, right = (60 + 58 * end / widest for end in (row.low, row.high))
    bar = f"<span class='tail'><b></b><i style='left:{left:.0f}px;width:{max(2, right - left):.0f}px'></i></span>"
    return (
        f"<tr><td>{escape(row.name)}</td><td>{row.first:.4f}</td><td>{row.second:.4f}</td>"
        f"<td class='{tone}'>{row.difference:+.4f}</td><td>{row.low:+.4f} to {row.high:+.4f}</td><td>{bar}</td></tr>"
    )


def _figure(entry: DifferingPicture) -> str:
    mistakes = entry.disagreement
    return (
        f"<figure><img src='data:image/jpeg;base64,{base64.b64encode(entry.picture.jpeg).decode()}' "
        f"width='{entry.picture.width}' height='{entry.picture.height}' loading='lazy' "
        f"alt='{escape(entry.picture.name)}: ground truth and the boxes of both versions'>"
        f"<figcaption>{escape(entry.picture.name)}: the first misses {mistakes.first_missed} and has "
        f"{mistakes.first_false} wrong, the second misses {mistakes.second_missed} and has {mistakes.second_false} "
        "wrong</figcaption></figure>"
    )


def _numbers(dataset: ShardDataset, image_ids: set[int]) -> dict[int, int]:
    """Return the number of each image's sample."""
    return {image_id: number for number, image_id in _image_ids(dataset) if image_id in image_ids}


def _image_ids(dataset: ShardDataset) -> Iterator[tuple[int, int]]:
    from yolofleet.data.dataset import SampleError
    from yolofleet.data.records import RecordError

    for number in range(len(dataset)):
        try:
            yield number, dataset.read(number).record().image_id
        except (SampleError, RecordError):
            continue  # it has no ground truth, so no disagreement speaks of it
