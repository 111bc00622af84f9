"""Files and records that cannot be read are refused, with the first mistake named."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from yolofleet.core.errors import UserError
from yolofleet.evaluation.ground_truth import GroundTruth
from yolofleet.evaluation.json_file import is_json_name
from yolofleet.evaluation.result_file import read_results


def packed(method: int, name: str = "a.json") -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as archive:
        archive.writestr(name, "[]")
    return data.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (json.dumps([]).encode("utf-16-le"), "UTF-16"),
        (json.dumps([]).encode("utf-16-be"), "UTF-16"),
        ('["é"]'.encode("latin-1"), "not UTF-8 at byte 2"),
        (b"", "is empty"),
        (gzip.compress(b"[]" * 99, mtime=0)[:-9], "cannot unpack .* complete"),
        (packed(zipfile.ZIP_BZIP2), "packed by zip's method 12, and only deflate is read; unpack it"),
        (packed(zipfile.ZIP_LZMA), "packed by zip's method 14, and only deflate is read; unpack it"),
        (packed(zipfile.ZIP_STORED, "é.json").replace("é".encode(), b"\xff\xfe"), "cannot unpack .* complete"),
        (b'{"image_id": 139,\n"bbox": [1, 2, 3', "is not JSON: .*line 2"),
        (b'{"a": 1}\n{"image_id": 1', "is not JSON: .*line 2"),
        (b'{"images": []}', "holds an object with images, not a list of records"),
        (b"7", "it holds int, not a list of records"),
        (b"[" * 100_000, "is not JSON"),
        ([{"image_id": 139, "category_id": 1, "bbox": [1, 2, 3, 4]}], "has no score; is this a file of ground truth"),
        ([{"category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}], r"has no image_id \(.* also be called file_name"),
        ([{"image_id": 1.5, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}], "image_id is 1.5"),
        ([{"image_id": None, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}], "image_id is None"),
        ([{"image_id": 139, "category_id": 1, "bbox": [1, 2, 3, "x"], "score": 1}], r"bbox is \[1, 2, 3, 'x'\]"),
        ([{"image_id": 139, "category_id": 1, "bbox": {"x": 1}, "score": 1}], "bbox is {'x': 1}"),
        ([{"image_id": 139, "category_id": 1, "bbox": [1, 2, 3, 10**400], "score": 1}], "four finite numbers"),
        ([{"image_id": 139, "category_id": 1, "bbox": [1, 2, 3, 4], "score": "nan"}], "score is 'nan'"),
        ([{"image_id": 139, "category_id": 1, "bbox": [1, 2, 3, 4], "score": "high"}], "score is 'high'"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, content: Any, words: str) -> None:
    (tmp_path / "found.json").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    truth = GroundTruth.of({"images": [{"id": 139}], "categories": [{"id": 1, "name": "a"}], "annotations": []})
    with pytest.raises(UserError, match=words):
        read_results(tmp_path / "found.json", truth)


def test_the_names_of_files_of_json() -> None:
    for name in ("a.json", "a.JSON", "a.json.gz", "b/a.jsonl", "a.ndjson.gz", "a.json.zip"):
        assert is_json_name(name)
    for name in ("runs/a", "models:/a@b", "a.gz", "a.jsonx", "a.pt"):
        assert not is_json_name(name)
