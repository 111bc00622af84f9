from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolofleet.core.errors import UserError
from yolofleet.evaluation import uniform_records
from yolofleet.evaluation.json_file import parse_json
from yolofleet.evaluation.result_forms import unwrap
from yolofleet.evaluation.result_records import ResultColumns, read_columns
from yolofleet.evaluation.uniform_records import read_uniform

PATH = Path("results.json")
SIGNS = '09.-e+, }["a\x01'
RECORDS: list[dict[str, Any]] = [
    {"image_id": 7 * n, "category_id": n % 3, "bbox": [n / 7, -1e-05 * n, 20, 0.0], "score": 1 / (n + 1)}
    for n in range(40)
]


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> Any:
    """Read small files, in several blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uniform_records, "BLOCK_BYTES", 200)
        yield


def read_any(data: bytes) -> ResultColumns | None:
    """Return the columns as the reader of any JSON gives them; None where it refuses the file."""
    try:
        records = unwrap(parse_json(data, PATH), "results.json").records
        return read_columns(records, "results.json")
    except UserError:
        return None


def assert_equal(found: ResultColumns, expected: ResultColumns | None) -> None:
    assert expected is not None
    for key in ("image_ids", "category_ids", "has_whole_ids", "notes"):
        assert getattr(found, key) == getattr(expected, key)
    assert set(map(type, found.image_ids)) == set(map(type, expected.image_ids))
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize("style", [{}, {"indent": 2}, {"separators": (",", ":")}])
def test_records_that_are_alike_are_read_as_by_the_reader_of_any_json(style: dict[str, Any]) -> None:
    further = [{"id": n, "score": 100 * r["score"], "label": n, "box": r["bbox"], **r} for n, r in enumerate(RECORDS)]
    for records in (RECORDS, further):
        data = json.dumps(records, **style).encode() + b"\n"
        found = read_uniform(data)
        assert found is not None, "it is read by blocks"
        assert_equal(found, read_any(data))


NUMBERS = [
    "0273", "-0273", "273.", "+273", "2.7.3", "2e1e1", ".273", "273.0", "9007199254740993", "NaN", "1e999", '"273"', "",
    "2 73", "2,73",
]  # fmt: skip
CHANGES = [('"image_id": 273', f'"image_id": {number}') for number in NUMBERS] + [
    ('_id": 273', '_id"273: '), ("image_id", "image"), ('"image_id": 273', '"category_id": 273'), ("}]", "}]]"),
    ("}]", "},]"), ("[{", "[7, {"), ("}, {", "} {"), ("}, {", "}7, {"), ("}, {", "}, \x01{"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new"), CHANGES)
def test_what_is_not_alike_or_no_json_is_left_to_that_reader(old: str, new: str) -> None:
    text = json.dumps(RECORDS)
    assert read_uniform(text.encode()) is not None and old in text
    assert read_uniform(text.replace(old, new, 1).encode()) is None


def test_wrong_shapes_are_left_to_that_reader() -> None:
    for field, value in {"bbox": [[1], [2], 3, 4], "score": [0.5], "image_id": [1], "category_id": {}}.items():
        assert read_uniform(json.dumps([{**record, field: value} for record in RECORDS]).encode()) is None
    assert read_uniform(json.dumps([{"image_id": 1, "score": 1} for _ in RECORDS]).encode()) is None
    assert read_uniform(json.dumps({"annotations": RECORDS}).encode()) is None


@settings(max_examples=60)
@given(st.data())
def test_a_byte_that_is_changed_never_changes_what_is_accepted(data: st.DataObject) -> None:
    text = bytearray(json.dumps(RECORDS[:8]).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 2))] = data.draw(st.sampled_from(SIGNS)).encode()
    if (found := read_uniform(bytes(text))) is not None:
        assert_equal(found, read_any(bytes(text)))
