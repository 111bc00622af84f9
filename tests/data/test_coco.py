from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from yolofleet.data.annotation import AnnotationError
from yolofleet.data.coco import parse_coco
from yolofleet.data.problems import ProblemLog
from yolofleet.data.sources import SourceDataset

# file -> (images, boxes, problems) after reading the annotations alone
READ = {
    "ok": (4, 12, {}),
    "box_zero_area": (4, 11, {"box_zero_area": 1}),
    "box_tiny": (4, 11, {"box_tiny": 1}),
    "box_negative": (4, 11, {"box_negative": 1}),
    "box_nan": (4, 11, {"box_not_finite": 1}),
    "box_infinity": (4, 11, {"box_not_finite": 1}),
    "box_infinity_neg": (4, 11, {"box_not_finite": 1}),
    "box_1e400": (4, 11, {"box_not_finite": 1}),
    "box_string": (4, 11, {"box_malformed": 1}),
    "box_null": (4, 11, {"box_missing": 1}),
    "box_three_numbers": (4, 11, {"box_malformed": 1}),
    "bbox_missing": (4, 11, {"box_missing": 1}),
    "box_xyxy": (4, 12, {"boxes_look_like_corners": 1}),
    "area_missing": (4, 12, {"area_missing": 1}),
    "iscrowd_missing": (4, 12, {}),
    "category_missing": (4, 11, {"category_missing": 1}),
    "category_unknown": (4, 11, {"category_unknown": 1}),
    "category_string": (4, 12, {}),
    "categories_duplicate_name": (4, 12, {"category_duplicate_name": 1}),
    "category_gaps": (4, 12, {}),
    "category_id_zero": (4, 12, {}),
    "image_duplicate_file": (4, 12, {"image_duplicate_file": 1}),
    "annotation_duplicate_id": (4, 12, {"annotation_duplicate_id": 1}),
    "annotation_duplicate_box": (4, 13, {"annotation_duplicate_box": 1}),
    "annotation_for_missing_image": (4, 11, {"annotation_without_image": 1}),
    "annotation_id_zero": (4, 12, {}),
    "image_no_annotations": (4, 9, {}),
    "image_size_missing": (4, 12, {"image_size_missing": 1}),
    "image_id_string": (4, 12, {"image_id_renumbered": 4}),
    "crowd_rle": (4, 12, {}),
    "crowd_rle_compressed": (4, 12, {}),
    "crowd_rle_corrupt": (4, 12, {"segmentation_malformed": 1}),
    "polygon_bad": (4, 12, {"segmentation_malformed": 1}),
    "annotations_empty": (4, 0, {}),
    "all_crowd": (4, 12, {}),
    "bom": (4, 12, {}),
    "boxes_2000": (4, 2000, {"annotation_duplicate_box": 2}),
}
REFUSED = {
    "categories_absent": "key 'categories' is missing",
    "categories_duplicate_id": "id 1 is given to 'red' and to",
    "image_duplicate_id": "'ok_000.jpg' and to 'ok_001.jpg'",
    "images_empty": "nothing to read",
    "empty_file": "the file is empty",
    "truncated": "line 1, column 894",
    "top_level_list": "looks like detections",
    "latin1": "not UTF-8 at byte 1513",
    "deep_nesting": "nested too deeply",
}


def read(path: Path) -> tuple[SourceDataset, ProblemLog]:
    problems = ProblemLog()
    return parse_coco(path.read_bytes(), path.name, problems), problems


def document(**changes: Any) -> dict[str, Any]:
    plain = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 80}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}],
        "categories": [{"id": 3, "name": "thing"}],
    }
    return plain | changes


@pytest.mark.parametrize("name", READ)
def test_hostile_annotations_are_read_and_counted(test_data: Path, name: str) -> None:
    source, problems = read(test_data / "hostile" / "annotations" / f"{name}.json")
    assert (len(source.records), sum(len(record.boxes) for record in source.records), problems.counts) == READ[name]


@pytest.mark.parametrize("name", REFUSED)
def test_unusable_annotations_are_refused_in_one_sentence(test_data: Path, name: str) -> None:
    path = test_data / "hostile" / "annotations" / f"{name}.json"
    with pytest.raises(AnnotationError) as refusal:
        read(path)
    message = str(refusal.value)
    assert path.name in message and REFUSED[name] in message and "\n" not in message


def test_category_ids_keep_their_gaps_and_become_indices(test_data: Path) -> None:
    source, _ = read(test_data / "hostile" / "annotations" / "category_gaps.json")
    assert [entry.id for entry in source.classes] == [7, 44, 90]
    assert {int(index) for record in source.records for index in record.classes} == {0, 1, 2}


def test_real_annotations_are_read_without_a_single_change(test_data: Path) -> None:
    path = test_data / "coco128" / "instances.json"
    source, problems = read(path)
    original = json.loads(path.read_text())
    assert problems.counts == {} and len(source.classes) == 80
    boxes = [box for record in source.records for box in record.boxes.tolist()]
    assert sorted(boxes) == sorted([float(value) for value in entry["bbox"]] for entry in original["annotations"])
    assert sum(int(record.iscrowd.sum()) for record in source.records) == 10


@pytest.mark.parametrize(
    "changes",
    [
        {"images": None},
        {"images": {"id": 1}},
        {"annotations": "none"},
        {"categories": []},
        {"categories": [{"id": "", "name": "x"}]},
        {"categories": [{"id": True, "name": "x"}]},
        {"categories": [None]},
        {"images": [None]},
        {"images": [{"id": 1}]},
        {"images": [{"id": 1.5, "file_name": "a.jpg"}]},
        {"images": [{"id": 1, "file_name": "a\0.jpg"}]},
    ],
)
def test_structures_that_are_not_coco_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(AnnotationError):
        parse_coco(json.dumps(document(**changes)).encode(), "x.json", ProblemLog())


@pytest.mark.parametrize("value", [None, "x", [], {}, [1], 1e308, -1, True, "1,2,3,4", [1, 2, 3, None], [[1]] * 4])
@pytest.mark.parametrize("key", ["id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation"])
def test_any_value_in_any_field_of_an_annotation_is_survived(key: str, value: Any) -> None:
    annotation = document()["annotations"][0] | {key: value}
    problems = ProblemLog()
    source = parse_coco(json.dumps(document(annotations=[annotation])).encode(), "x.json", problems)
    assert len(source.records) == 1
    kept = len(source.records[0].boxes)
    assert kept == 1 or problems.num(["drop"]) == 1, "what is left out is counted"


@pytest.mark.parametrize("value", [None, "x", [], 0, -5, 2.5, True, 10**30])
def test_any_size_of_an_image_is_survived(value: Any) -> None:
    image = document()["images"][0] | {"width": value}
    source = parse_coco(json.dumps(document(images=[image])).encode(), "x.json", ProblemLog())
    assert source.records[0].width == 0, "the file's size is taken instead"
