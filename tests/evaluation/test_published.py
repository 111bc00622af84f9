"""The published results are the paper's, number by number, and keep its digits."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from evaluation.published_tables import published_tables
from yolofleet.evaluation.published import OTHERS, PublishedResult, published_results

NAMES = {"ap_val": "ap", "fps_v100": "fps"}
MODEL_TABLES = ("table1", "table2", "table9_v100", "table9_a100", "table10")


def line_of(table: str, row: dict[str, Any]) -> PublishedResult:
    """The line that holds a row of a table."""
    number = int(table.removeprefix("table").partition("_")[0])
    gpu = {"table2": "V100", "table9_v100": "V100", "table9_a100": "A100"}.get(table)
    (found,) = (
        result
        for result in published_results()
        if number in result.tables
        and (result.model, result.size) == (row["model"], row.get("size"))
        and gpu in (None, result.gpu)
        and all(getattr(result, key) == decimal(row[key]) for key in ("iou", "precision") if key in row)
    )
    return found


def decimal(value: object) -> object:
    """A number as the digits that it is written with."""
    return Decimal(str(value)) if isinstance(value, float) else value


@pytest.mark.parametrize("table", MODEL_TABLES)
def test_every_number_of_a_table_is_the_papers(table: str) -> None:
    for row in published_tables()[table]:
        result = line_of(table, row)
        for name, value in row.items():
            assert getattr(result, NAMES.get(name, name)) == decimal(value), (row["model"], name)


def test_no_line_holds_what_no_table_prints() -> None:
    tables = published_tables()
    printed: dict[PublishedResult, set[str]] = {}
    for table in MODEL_TABLES:
        for row in tables[table]:
            known = printed.setdefault(line_of(table, row), {"tables", "gpu"})
            known |= {NAMES.get(name, name) for name, value in row.items() if value is not None}
    assert set(printed) == set(published_results())
    for result, names in printed.items():
        held = {name for name in PublishedResult.__slots__ if getattr(result, name) is not None}
        assert held <= names, result.model


def test_numbers_are_printed_with_the_papers_digits() -> None:
    by_name = {(result.model, result.size): result for result in published_results() if result.precision is None}
    yolov7, x = by_name["YOLOv7", 640], by_name["YOLOX-S", 640]
    assert [str(value) for value in (yolov7.ap_medium, yolov7.fps, x.parameters)] == ["56.0", "161", "9.0"]
    assert str(by_name["DINO-5scale (R50)", 1333].fps) == "10.0"
    assert yolov7.milliseconds == pytest.approx(1000 / 161)
    assert (yolov7.family, by_name["DETR DC5-R101", 1333].family) == ("YOLOv7", OTHERS)


def test_the_golden_tables_are_the_reference(reference: Path) -> None:
    """Where the reference lies beside the test data, the copy in the repository is compared with it."""
    source = json.loads((reference / "published.json").read_text())
    copied = {name: rows for name, rows in published_tables().items() if name != "table10"}
    assert {name: rows for name, rows in source.items() if name != "source"} == copied
