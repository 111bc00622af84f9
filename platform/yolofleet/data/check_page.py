"""The suspicious images of a check as one HTML page, with its images and style in it."""

from __future__ import annotations

import base64
import html

import cv2
import numpy as np

from yolofleet.data.check import CheckReport, SuspiciousImage
from yolofleet.data.decode import DEFAULT_MAX_PIXELS, decode_image
from yolofleet.data.draw import draw_detections, encode
from yolofleet.data.image_formats import ImageError
from yolofleet.data.problems import ProblemLog
from yolofleet.data.sources import ImageStore, read_image_file
from yolofleet.storage import StorageError

THUMBNAIL_SIDE = 480
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1c1e21 }
table { border-collapse: collapse; width: 100% } td, th { border-bottom: 1px solid #ddd; padding: .4rem .6rem;
text-align: left; vertical-align: top; overflow-wrap: anywhere } .drop { color: #b00020 } .repair { color: #8a5300 }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1rem }
figure { margin: 0; border: 1px solid #ddd; border-radius: .5rem; padding: .8rem; overflow-wrap: anywhere }
figure img { max-width: 100%; image-rendering: auto } figcaption { font-size: .85rem }
"""


def check_page(
    name: str, report: CheckReport, problems: ProblemLog, images: ImageStore, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> str:
    """Return the HTML page of a check."""
    rows = "".join(
        f"<tr><td class={entry['outcome']}>{entry['outcome']}</td><td>{kind}</td><td>{entry['count']}</td>"
        f"<td>{html.escape(entry['meaning'])}<br><small>{html.escape('; '.join(entry['examples']))}</small></td></tr>"
        for kind, entry in problems.as_document().items()
    )
    names = {index: entry.name for index, entry in enumerate(report.classes)}
    sizes = {entry.key: entry.size_bytes for entry in images.list()}
    cards = "".join(_card(entry, images, sizes, names, max_pixels) for entry in report.suspicious)
    facts = (
        f"{report.num_usable} of {report.num_listed} images can be used, with {report.num_boxes} boxes and "
        f"{report.num_crowds} crowds; {report.num_empty} hold no object."
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Check of {html.escape(name)}</title>"
        f"<style>{_STYLE}</style><h1>{html.escape(name)}</h1><p>{facts}</p>"
        f"<table><tr><th>Outcome<th>Problem<th>Count<th>Meaning and examples</tr>{rows}</table>"
        f"<h2>Suspicious images</h2><div class=cards>{cards or '<p>None.</p>'}</div></html>\n"
    )


def _card(
    entry: SuspiciousImage, images: ImageStore, sizes: dict[str, int], names: dict[int, str], max_pixels: int
) -> str:
    lines = "".join(
        f"<li><b>{kind}</b> {html.escape('; '.join(examples))}</li>"
        for kind, examples in sorted(entry.problems.items())
    )
    title = html.escape(entry.file_name)
    image = _image(entry, images, sizes, names, max_pixels)
    return f"<figure>{image}<figcaption>{title}<ul>{lines}</ul></figcaption></figure>"


def _image(
    entry: SuspiciousImage, images: ImageStore, sizes: dict[str, int], names: dict[int, str], max_pixels: int
) -> str:
    if entry.key is None:
        return "<p>(not read: outside the folder)</p>"
    record = entry.record
    try:
        data = read_image_file(images, entry.key, sizes.get(entry.key, 0), max_pixels)
        pixels = decode_image(data, max_pixels=max_pixels, upright=record.way_up)
    except (ImageError, StorageError) as error:
        return f"<p>({html.escape(str(error))})</p>"
    gain = min(1.0, THUMBNAIL_SIDE / max(pixels.shape[:2]))
    size = (max(1, round(pixels.shape[1] * gain)), max(1, round(pixels.shape[0] * gain)))
    records = [
        {"category_id": int(index), "bbox": box, "iscrowd": bool(crowd)}
        for index, box, crowd in zip(
            record.classes, (np.clip(record.boxes, -1e6, 1e6) * gain).tolist(), record.iscrowd, strict=True
        )
    ]
    drawing = draw_detections(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), records, names=names)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(encode(drawing)).decode()}">'
