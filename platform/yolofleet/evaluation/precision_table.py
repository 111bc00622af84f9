"""Table 10 of the paper for any model: AP in half and in single precision, by two thresholds of the suppression."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from yolofleet.data.dataset import ShardDataset
from yolofleet.data.evaluation_stream import EvaluationBatch
from yolofleet.evaluation.evaluate import evaluate
from yolofleet.evaluation.inference_form import Precision
from yolofleet.evaluation.published import FIGURES, PublishedResult, published_results

THRESHOLDS = (0.65, 0.70)
PRECISIONS: tuple[Precision, ...] = ("fp16", "fp32")
LINE_LENGTH = 90
NUM_PASSES = len(THRESHOLDS) * len(PRECISIONS)
"""How often each image is evaluated."""
ON_CPU = (
    "On a CPU, half precision rounds weights and the output of every layer to float16, as on a GPU, but is slower "
    "than fp32. So the figures show the cost of rounding, but the seconds do not show the gain on a GPU."
)


@dataclass(frozen=True, kw_only=True)
class PrecisionRow:
    """One evaluation of the table."""

    precision: Precision
    iou: float
    """Threshold of the suppression."""
    figures: dict[str, float | None]
    seconds: float
    """For all images, reading and suppression included."""


def precision_rows(
    model: nn.Module,
    dataset: ShardDataset,
    *,
    on_batch: Callable[[EvaluationBatch], None] | None = None,
    **options: Any,
) -> list[PrecisionRow]:
    """Evaluate a model by the published protocol in each precision with each threshold.

    Args:
        model: With its weights in float32, on the device of ``options``.
        dataset: Every image is evaluated `NUM_PASSES` times.
        on_batch: Called with each batch after it is done, for progress.
        options: What else `evaluate` takes: image_size, classes, batch_size, device.
    """
    rows = []
    for precision in PRECISIONS:
        for iou in THRESHOLDS:
            begin = time.monotonic()
            result = evaluate(
                model, dataset, iou=iou, precision=precision, rectangular=True, on_batch=on_batch, **options
            )
            seconds = round(time.monotonic() - begin, 3)
            rows.append(PrecisionRow(precision=precision, iou=iou, figures=dict(result.figures), seconds=seconds))
    return rows


def precision_document(rows: Sequence[PrecisionRow], device: str) -> dict[str, Any]:
    """Return the table as plain JSON values, with the paper's own rows."""
    paper = [
        {"precision": row.precision, "iou": float(row.iou or 0), "AP": float(row.ap or 0)} for row in _paper_rows()
    ]
    notes = [ON_CPU] if device == "cpu" else []
    return {"rows": [asdict(row) for row in rows], "paper_yolov7_x_on_val2017": paper, "notes": notes}


def precision_lines(rows: Sequence[PrecisionRow], device: str) -> Iterator[str]:
    """Yield a line for each row with the six figures of AP in percent, and the paper's AP of YOLOv7-X beside it."""
    headings = "".join(f"{heading:>8}" for heading, _ in FIGURES.values())
    yield f"{'':6}{'IoU':>5}{headings}{'seconds':>10}{'paper':>8}"
    paper = {(row.precision, float(row.iou or 0)): row.ap for row in _paper_rows()}
    for row in rows:
        cells = "".join(f"{_percent(row.figures[name], 2):>8}" for _, name in FIGURES.values())
        published = paper[row.precision.upper(), row.iou]
        yield f"{row.precision:6}{row.iou:>5.2f}{cells}{row.seconds:>10.1f}{published!s:>8}"
    yield ""
    for iou in THRESHOLDS:
        half, single = (
            next(row.figures["AP"] for row in rows if (row.precision, row.iou) == (precision, iou))
            for precision in PRECISIONS
        )
        if half is not None and single is not None:
            yield f"half precision changes AP by {half - single:+.4f} at IoU {iou:.2f}"
    yield "paper: AP of YOLOv7-X on COCO val2017 (Table 10)"
    if device == "cpu":
        yield from textwrap.wrap(ON_CPU, LINE_LENGTH)


def _paper_rows() -> list[PublishedResult]:
    return [row for row in published_results() if row.precision is not None]


def _percent(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{100 * value:.{decimals}f}"
