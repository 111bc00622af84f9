"""Published results on COCO to compare with: Tables 1, 2, 9 and 10 of the YOLOv7 paper (arXiv:2207.02696).

A line of ``published.csv`` is one model at one image size, with what any of the tables prints of it; the four lines of
Table 10 are YOLOv7-X under other settings of the evaluation. Numbers are decimals, so they are printed with the paper's
digits.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from importlib import resources

from yolofleet.reports.charts import COLOURS, Series

FAMILIES = ("YOLOv7", "YOLOR", "YOLOv4", "YOLOv5", "YOLOX", "PPYOLOE")
OTHERS = "other detectors"
FIGURES = {
    "ap": ("AP", "AP"),
    "ap50": ("AP50", "AP50"),
    "ap75": ("AP75", "AP75"),
    "ap_small": ("APS", "AP_small"),
    "ap_medium": ("APM", "AP_medium"),
    "ap_large": ("APL", "AP_large"),
}
"""Figures that the tables print: the paper's heading, and the name in an evaluation."""
TEXTS = ("model", "tables", "size", "gpu", "precision")


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedResult:
    """One line; None where the paper prints nothing. AP is in percent, on val2017 or (``_test``) on test-dev2017."""

    model: str
    tables: tuple[int, ...]
    """Numbers of the tables that print it."""
    size: int | None
    """Side of the image in pixels."""
    parameters: Decimal | None
    """In units of 10^6."""
    gflops: Decimal | None
    """In units of 10^9."""
    gpu: str | None
    """Where its speed was measured."""
    fps: Decimal | None
    """Images a second, one at a time, without TensorRT."""
    ap: Decimal | None
    ap50: Decimal | None
    ap75: Decimal | None
    ap_small: Decimal | None
    ap_medium: Decimal | None
    ap_large: Decimal | None
    ap_test: Decimal | None
    ap50_test: Decimal | None
    ap75_test: Decimal | None
    ap_small_test: Decimal | None
    ap_medium_test: Decimal | None
    ap_large_test: Decimal | None
    precision: str | None
    """Of the inference, in Table 10 alone."""
    iou: Decimal | None
    """Threshold of the non-maximum suppression, in Table 10 alone."""

    @property
    def family(self) -> str:
        """The series of detectors that it belongs to."""
        return next((name for name in FAMILIES if self.model.startswith(name)), OTHERS)

    @property
    def milliseconds(self) -> float | None:
        """Time for one image."""
        return None if self.fps is None else 1000 / float(self.fps)


@lru_cache(maxsize=1)
def published_results() -> tuple[PublishedResult, ...]:
    """Return all lines: by family, image size and FLOPs, and Table 10 last."""
    text = resources.files("yolofleet.evaluation").joinpath("published.csv").read_text(encoding="utf-8")
    return tuple(_result(row) for row in csv.DictReader(text.splitlines()))


def _result(row: dict[str, str]) -> PublishedResult:
    return PublishedResult(
        model=row["model"],
        tables=tuple(int(table) for table in row["tables"].split()),
        size=int(row["size"]) if row["size"] else None,
        gpu=row["gpu"] or None,
        precision=row["precision"] or None,
        **{name: Decimal(value) if value else None for name, value in row.items() if name not in TEXTS},
    )


COSTS = {
    "gflops": "GFLOPs of the deployed form",
    "parameters": "parameters of the deployed form in millions",
    "milliseconds": "milliseconds for one image (published: on a V100 or an A100)",
}
"""What AP is drawn against: names of the axes."""


def published_series(cost: str, *, is_shown: bool = True) -> list[Series]:
    """Return all published points of AP against a cost, a series for each family.

    Args:
        cost: One of `COSTS`.
        is_shown: Whether they are seen before they are switched on.
    """
    found: dict[str, list[tuple[float, float, str]]] = {}
    for result in published_results():
        value = getattr(result, cost)
        if value is None or result.ap is None:
            continue
        size = f" at {result.size} px" if result.size else ""
        speed = f", {result.fps} FPS on a {result.gpu}" if result.fps else ""
        name = f"{result.model}{size}: {result.ap} AP, {result.parameters or '-'} M, {result.gflops or '-'} G{speed}"
        found.setdefault(result.family, []).append((float(value), float(result.ap), name))
    colours = dict(zip((*FAMILIES, OTHERS), (*COLOURS[1:7], COLOURS[7]), strict=True))
    return [
        Series(
            name=family,
            points=[(x, y) for x, y, _ in points],
            texts=[name for *_, name in points],
            colour=colours[family],
            shape="squares",
            is_shown=is_shown,
        )
        for family, points in found.items()
    ]
