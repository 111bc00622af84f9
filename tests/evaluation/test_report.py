"""The report page: complete, self-contained, and safe whatever names it shows."""

from __future__ import annotations

import json
import re
from html import escape
from html.parser import HTMLParser
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evaluation.reference_figures import random_problem
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.draw import OUTCOMES
from yolofleet.evaluation.average_precision import EvaluationResult, coco_average_precision
from yolofleet.evaluation.detections import Detections
from yolofleet.evaluation.diagnosis import diagnose
from yolofleet.evaluation.report import _curves, render_report
from yolofleet.evaluation.samples import SampleImage, draw_outcomes, draw_samples


class Balanced(HTMLParser):
    """Checks that elements are closed in order, and collects what the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.images: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = [value or "" for name, value in attrs if name in ("src", "href")]
        self.images += found if tag == "img" else []
        self.loaded += [] if tag == "img" else [value for value in found if not value.startswith("#")]
        if tag not in ("meta", "img", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(page: str) -> Balanced:
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    return parser


def result_of(seed: int) -> EvaluationResult:
    ground_truth, records = random_problem(seed)
    ground_truth["categories"][0]["name"] = "<script>alert(1)</script>"
    detections = Detections.from_records(records)
    figures = coco_average_precision(ground_truth, detections)
    return EvaluationResult(
        average_precision=figures,
        ground_truth=ground_truth,
        detections=detections,
        skipped=(("a/1", "image_damaged"),),
    )


def test_the_page_shows_everything_and_loads_nothing(dataset: ShardDataset) -> None:
    nothing = Detections.from_records([])
    page = render_report(
        result_of(1),
        title='Run <b>&"demo"',
        facts={"model": "<i>x</i>"},
        images=draw_samples(dataset, nothing, count=3),
    )
    parser = parsed(page)
    assert len(parser.images) == 3 and all(value.startswith("data:image/jpeg;base64,") for value in parser.images)
    assert parser.loaded == [] and "http://" not in page and "https://" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "<script>alert" not in page
    for name in ("AP_small", "AR_100", "class 7", "1 image could not be read"):
        assert name in page
    assert len(page) < 2_000_000


def test_a_page_without_ground_truth_is_a_page() -> None:
    document: dict[str, Any] = {"images": [], "categories": [], "annotations": []}
    nothing = Detections.from_records([])
    empty = EvaluationResult(
        average_precision=coco_average_precision(document, []), ground_truth=document, detections=nothing
    )
    assert "There was nothing to measure" in render_report(empty, title="Empty")
    parsed(render_report(empty, title="Empty", diagnosis=diagnose(document, nothing).as_json()))


def test_the_diagnosis_comes_first_and_shows_true_and_false_boxes_and_objects_not_found(dataset: ShardDataset) -> None:
    document = dataset.annotations()
    document["categories"] += [{"id": number, "name": f"absent {number}"} for number in range(1000, 1080)]
    labels = document["annotations"] = [entry for entry in document["annotations"] if not entry["iscrowd"]]
    records = [{**entry, "score": 0.9} for entry in labels[1:]] + [{**labels[0], "bbox": [90, 90, 5, 5], "score": 0.95}]
    detections = Detections.from_records(records)
    found = diagnose(document, detections)
    assert found.num_true == sum(not label.get("iscrowd") for label in labels) - 1
    assert found.num_false == found.num_not_found == 1
    drawn = draw_outcomes(dataset, found.galleries, found.images)
    result = EvaluationResult(
        average_precision=coco_average_precision(document, detections), ground_truth=document, detections=detections
    )
    page = render_report(result, title="Run", diagnosis=json.loads(json.dumps(found.as_json())), drawn=drawn)
    parser = parsed(page)
    assert page.index(escape(found.summary)) < page.index("What goes wrong") < page.index("Figures")
    assert len(parser.images) == sum(len(gallery.images) for gallery in found.galleries) and "<details" in page
    for words in (
        "Boxes from confidence 0.90 on",
        "3px dotted",
        "Objects in an image",
        'aria-label="confusion matrix"',
    ):
        assert words in page
    colours = [colour for colour, _ in OUTCOMES.values()]
    drawing = next(found for name, found in drawn.items() if name.split("-")[0] == str(labels[0]["image_id"]))
    image = np.asarray(Image.open(BytesIO(drawing.jpeg)).convert("RGB")).reshape(-1, 3)
    near = [(np.abs(image.astype(int) - colour).max(axis=1) < 40).any() for colour in colours]
    assert near[1] and near[2]  # the false box and the object that is not found


def test_images_share_the_room_of_a_page(dataset: ShardDataset) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (640, 1280, 3), dtype=np.uint8)  # nothing is harder to encode
    encoded = BytesIO()
    Image.fromarray(noise).save(encoded, "JPEG", quality=92)
    large = SampleImage(name="noise", jpeg=encoded.getvalue(), width=1280, height=640)
    page = render_report(result_of(1), title="Noise", images=[large] * 8)
    assert len(large.jpeg) * 8 > 4_000_000 and len(page) < 3_000_000
    fitted = large.within(100_000)
    with Image.open(BytesIO(fitted.jpeg)) as image:
        assert image.size == (fitted.width, fitted.height) and len(fitted.jpeg) <= 100_000
    assert large.within(10**7) is large


@pytest.mark.parametrize("num_classes", [1, 2, 7, 8, 80])
def test_no_two_lines_of_a_chart_have_one_colour(num_classes: int) -> None:
    document = {
        "per_class": [{"category_id": number, "name": f"class {number}", "ap": 0.5} for number in range(num_classes)],
        "curves": {str(number): [1.0, 0.5] for number in range(num_classes)},
    }
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', str(_curves(document)))
    colours = [series["c"] for series in json.loads(data)["series"]]
    assert len(colours) == len({*colours}) > 0
