"""Annotation files that detections cannot be evaluated with are refused, with the mistake named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.reference_figures import random_problem
from yolofleet.core.errors import UserError
from yolofleet.evaluation.detections import read_ground_truth


def test_a_good_file_is_read_as_it_is(tmp_path: Path) -> None:
    document, _ = random_problem(0)
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(document))
    assert read_ground_truth(path) == document


@pytest.mark.parametrize(
    ("key", "change", "words"),
    [
        ("images", None, "'images' must be a list"),
        ("categories", {}, "'categories' must be a list"),
        ("images", [7], r"images\[0\] is 7, not an object"),
        ("images", [{"id": "1"}], r"images\[0\] has id '1'; it must be a whole number"),
        ("images", [{"id": 2**70}], "it must be a whole number"),
        ("categories", [{"id": 1}], r"categories\[0\] has no 'name'"),
        ("annotations", [{"image_id": 1, "category_id": 1}], "has no 'bbox'"),
        ("annotations", [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3]}], "must be four numbers"),
        ("annotations", [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": "big"}], "has area 'big'"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, key: str, change: Any, words: str) -> None:
    document, _ = random_problem(0)
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({**document, key: change}))
    with pytest.raises(UserError, match=words):
        read_ground_truth(path)


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    for data, words in ((b"{", "is not JSON"), (b"\xff\xfe", "is not JSON"), (b"[]", "holds a list")):
        path.write_bytes(data)
        with pytest.raises(UserError, match=words):
            read_ground_truth(path)
    with pytest.raises(UserError, match="cannot read"):
        read_ground_truth(tmp_path / "missing.json")
