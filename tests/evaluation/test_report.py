"""The report page: complete, self-contained, and safe whatever names it shows."""

from __future__ import annotations

from html.parser import HTMLParser

from evaluation.reference_figures import random_problem
from yolofleet.data.dataset import ShardDataset
from yolofleet.evaluation.average_precision import coco_average_precision
from yolofleet.evaluation.detections import Detections
from yolofleet.evaluation.evaluate import EvaluationResult
from yolofleet.evaluation.report import render_report
from yolofleet.evaluation.samples import draw_samples


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
    return EvaluationResult(average_precision=figures, detections=detections, skipped=(("a/1", "image_damaged"),))


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
    for name in ("AP_small", "AR_100", "class 7", "1 images could not be read"):
        assert name in page
    assert len(page) < 2_000_000


def test_a_page_without_ground_truth_is_a_page() -> None:
    empty = coco_average_precision({"images": [], "categories": [], "annotations": []}, [])
    result = EvaluationResult(average_precision=empty, detections=Detections.from_records([]))
    assert "There was nothing to measure" in render_report(result, title="Empty")
