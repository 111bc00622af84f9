"""Annotation files are read as `data shard` reads them; what cannot be evaluated with is refused, and named."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.reference_figures import evaluate_with_pycocotools, random_problem
from yolofleet.cli.main import main
from yolofleet.core.errors import UserError
from yolofleet.data.coco import parse_coco
from yolofleet.data.problems import ProblemLog
from yolofleet.evaluation.average_precision import coco_average_precision
from yolofleet.evaluation.detections import ground_truth_boxes
from yolofleet.evaluation.ground_truth import read_ground_truth
from yolofleet.evaluation.result_file import read_results


def test_a_good_file_is_read_as_it_is(tmp_path: Path) -> None:
    document, _ = random_problem(0)
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(document))
    assert read_ground_truth(path).document == document


@pytest.mark.parametrize(
    ("key", "change", "words"),
    [
        ("images", None, "'images' must be a list"),
        ("categories", {}, "'categories' must be a list"),
        ("images", [7], r"images\[0\] is 7, not an object"),
        ("images", [{"id": ""}], r"images\[0\] has id ''; it must be a whole number or a name"),
        ("images", [{"id": 1.5}], "it must be a whole number or a name"),
        ("images", [{"id": True}], "it must be a whole number or a name"),
        ("images", [{"id": 1, "file_name": "a"}, {"id": "1", "file_name": "b"}], "id '1' is given to 'a' and to 'b'"),
        ("categories", [{"id": 1, "name": "a"}, {"id": 1.0, "name": "b"}], "id 1.0 is given to 'a' and to 'b'"),
        ("annotations", [{"image_id": 1, "category_id": 1}], "none of its 1 object can be used: box_missing"),
        ("annotations", [7, {"image_id": 1, "category_id": 1}, 8], r"annotation_malformed: 2 .*annotations\[0\]: 7"),
        ("annotations", [{"image_id": 1, "segments_info": []}], "annotation_panoptic"),
        ("annotations", [{"image_id": 1, "category_id": 1, "bbox": [0.1, 0.2, 0.3, 0.4]}] * 3, "3 of 3 boxes lie in"),
        ("annotations", [{"image_id": 1, "category_id": 1, "bbox": [0.1, 0.2, 0.3, 0.4]}] * 2500, "boxes lie in"),
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
    for data, words in (
        (b"{", "is not JSON"),
        (b"{\0}\0", "is not UTF-8 text but UTF-16 without"),
        (b" ", "is empty"),
        (b"[]", "holds a list"),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match=words):
            read_ground_truth(path)
    with pytest.raises(UserError, match="cannot read"):
        read_ground_truth(tmp_path / "missing.json")


OUTLINE = [[10, 20, 50, 20, 50, 60, 10, 60]]
MASK = {"size": [200, 200], "counts": [210, 30, 39760]}


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ({}, set()),
        ({"area": None}, set()),
        ({"attributes": {"occluded": False, "rotation": 0.0}}, set()),
        ({"attributes": {"rotation": 30.0}}, {"box_rotated"}),
        ({"attributes": {"rotation": 30.0}, "segmentation": OUTLINE}, set()),
        ({"bbox": [0, 0, 0, 0], "segmentation": OUTLINE}, {"box_from_outline"}),
        ({"bbox": [], "segmentation": OUTLINE}, {"box_from_outline"}),
        ({"bbox": None, "segmentation": MASK}, {"box_from_outline"}),
        ({"bbox": [10, 20, 40]}, {"box_malformed"}),
        ({"bbox": [10, 20, "a", 40]}, {"box_malformed"}),
        ({"bbox": [10, 20, True, 40]}, {"box_malformed"}),
        ({"bbox": [10, 20, float("nan"), 40]}, {"box_not_finite"}),
        ({"bbox": [10, 20, -40, 40]}, {"box_negative"}),
        ({"bbox": [10, 20, 0.001, 40], "segmentation": OUTLINE}, {"box_from_outline"}),
        ({"area": "big"}, {"area_missing"}),
        ({"area": -5}, {"area_missing"}),
        ({"iscrowd": "no"}, {"iscrowd_malformed"}),
        ({"category_id": None}, {"category_missing"}),
        ({"category_id": [1]}, {"category_malformed"}),
        ({"image_id": None}, {"annotation_malformed"}),
    ],
)
def test_boxes_are_those_that_data_shard_reads_and_repairs_are_noted(
    tmp_path: Path, change: dict[str, Any], kinds: set[str]
) -> None:
    good = {"image_id": 4, "category_id": 2, "bbox": [10.5, 20, 40, 40], "area": 1200.0, "iscrowd": 0}
    document = {
        "images": [{"id": 4, "file_name": "a.jpg", "width": 200, "height": 200}],
        "categories": [{"id": 2, "name": "cat"}],
        "annotations": [{"id": 1, **good, "bbox": [90, 90, 30.25, 30]}, {"id": 2, **good, **change}],
    }
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(document))
    log = ProblemLog()
    record = parse_coco(path.read_bytes(), "truth.json", log).records[0]
    truth = read_ground_truth(path)
    found = ground_truth_boxes(truth.document["annotations"], np.array([4]), np.array([2]))
    np.testing.assert_array_equal(found.boxes, record.boxes)
    np.testing.assert_array_equal(found.areas, record.areas)
    np.testing.assert_array_equal(found.crowds, record.iscrowd)
    assert {note.kind for note in truth.notes} == {f"truth_{kind}" for kind in kinds}
    assert kinds <= set(log.counts) and all(note.count == 1 for note in truth.notes)
    if not kinds and "segmentation" not in change and "attributes" not in change:
        assert truth.document == document


def test_a_box_without_an_area_is_an_object_that_nothing_finds_as_in_pycocotools(tmp_path: Path) -> None:
    good = {"image_id": 1, "category_id": 1, "area": 400.0, "iscrowd": 0}
    boxes = [[90, 90, 30, 30], [10, 20, 0, 40], [10, 20, 0.001, 40], [0, 0, 0, 0]]
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 200, "height": 200}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": number, **good, "bbox": box} for number, box in enumerate(boxes, 1)],
    }
    (tmp_path / "truth.json").write_text(json.dumps(document))
    truth = read_ground_truth(tmp_path / "truth.json")
    assert truth.document == document
    assert {note.kind: note.count for note in truth.notes} == {"truth_box_zero_area": 2, "truth_box_tiny": 1}
    assert all("counted as not found" in note.text for note in truth.notes)
    document["annotations"] = [
        {**good, "bbox": [10, 20, 0, 40], "area": "", "segmentation": [[10, 20, 10, 30, 10, 60]]}
    ]
    (tmp_path / "truth.json").write_text(json.dumps(document))
    (kept,) = read_ground_truth(tmp_path / "truth.json").document["annotations"]
    assert (kept["bbox"], kept["area"], kept["iscrowd"]) == ([0, 0, 0, 0], 0, 0)
    document["annotations"][0] |= {"area": 2500.0, "iscrowd": 1}
    (tmp_path / "truth.json").write_text(json.dumps(document))
    (kept,) = read_ground_truth(tmp_path / "truth.json").document["annotations"]
    assert (kept["bbox"], kept["area"], kept["iscrowd"]) == ([0, 0, 0, 0], 2500, 1)


def test_a_turned_box_ends_at_the_edge_of_its_image_as_in_shards(tmp_path: Path) -> None:
    entry = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 40, 20], "attributes": {"rotation": 90}}
    images = [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 25}]
    document = {"images": images, "categories": [{"id": 1, "name": "a"}], "annotations": [entry]}
    (tmp_path / "truth.json").write_text(json.dumps(document))
    (found,) = read_ground_truth(tmp_path / "truth.json").document["annotations"]
    assert found["bbox"] == pytest.approx([10, 0, 20, 25])


def test_boxes_that_are_corners_are_doubted_however_many_there_are(tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 100}]
    for count in (3, 2500):
        boxes = [{"image_id": 1, "category_id": 1, "bbox": [50, 60, 90, 99 - number % 7]} for number in range(count)]
        document = {"images": images, "categories": [{"id": 1, "name": "a"}], "annotations": boxes}
        (tmp_path / "truth.json").write_text(json.dumps(document))
        truth = read_ground_truth(tmp_path / "truth.json")
        assert "truth_boxes_look_like_corners" in {note.kind for note in truth.notes}
        assert truth.document == document


@pytest.mark.parametrize("key", ["images", "categories"])
def test_an_entry_that_is_listed_twice_counts_once_and_is_noted(tmp_path: Path, key: str) -> None:
    document, _ = random_problem(2)
    path = tmp_path / "truth.json"
    path.write_text(json.dumps({**document, key: [*document[key], *document[key][:2]]}))
    truth = read_ground_truth(path)
    assert truth.document == document
    assert [(note.kind, note.count) for note in truth.notes] == [(f"truth_{key}_repeated", 2)]


def test_a_category_without_a_name_is_named_by_its_id(tmp_path: Path) -> None:
    document, detections = random_problem(3)
    del document["categories"][0]["name"]
    document["categories"][1]["name"] = None
    (tmp_path / "truth.json").write_text(json.dumps(document))
    truth = read_ground_truth(tmp_path / "truth.json")
    assert [category["name"] for category in truth.document["categories"]][:3] == ["3", "7", "class 44"]
    assert [(note.kind, note.count) for note in truth.notes] == [("truth_category_unnamed", 2)]
    coco_average_precision(truth.document, detections)


def test_a_zip_with_images_and_utf_16_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document, detections = random_problem(5)
    (tmp_path / "found.json").write_text(json.dumps(detections))
    with zipfile.ZipFile(tmp_path / "truth.zip", "w") as archive:
        archive.writestr("images/a.jpg", b"no image")
        archive.writestr("annotations/instances.json", json.dumps(document))
    (tmp_path / "truth.json").write_bytes(json.dumps(document).encode("utf-16"))
    expected = coco_average_precision(document, detections).figures
    for name in ("truth.zip", "truth.json"):
        assert main(["evaluate", str(tmp_path / "found.json"), str(tmp_path / name), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["figures"] == expected


def renamed(document: dict[str, Any], image: Any = int, category: Any = int, references: Any = None) -> dict[str, Any]:
    """The document with ids and references passed through functions."""
    image_reference, category_reference = references or (image, category)
    return {
        **document,
        "images": [{**entry, "id": image(entry["id"])} for entry in document["images"]],
        "categories": [{**entry, "id": category(entry["id"])} for entry in document["categories"]],
        "annotations": [
            {**e, "image_id": image_reference(e["image_id"]), "category_id": category_reference(e["category_id"])}
            for e in document["annotations"]
        ],
    }


def larger(value: int) -> int:
    return value + 2**70


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        ({"image": str, "category": str}, set()),
        ({"image": float, "category": float}, set()),
        ({"image": lambda value: value + 2**61, "category": larger}, set()),
        ({"references": (float, float)}, {"truth_image_id_matched", "truth_category_id_matched"}),
        ({"references": (str, str)}, {"truth_image_id_matched", "truth_category_id_matched"}),
        ({"image": str, "references": (int, int)}, {"truth_image_id_matched"}),
        ({"references": (lambda value: f"{value}.jpg", int)}, {"truth_image_id_matched"}),
    ],
)
def test_ids_of_any_form_give_the_same_figures(tmp_path: Path, change: dict[str, Any], kinds: set[str]) -> None:
    document, detections = random_problem(5)
    expected = coco_average_precision(document, detections).figures
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(renamed(document, **change)))
    truth = read_ground_truth(path)
    assert {note.kind for note in truth.notes} == kinds
    others = renamed({**document, "annotations": detections}, **change)["annotations"]
    for entries in (others,) if change.get("category") is larger else (detections, others):
        (tmp_path / "found.json").write_text(json.dumps(entries))
        found, _ = read_results(tmp_path / "found.json", truth)
        assert len(found) == len(detections)
    assert len(truth.document["annotations"]) == len(document["annotations"])
    if change.get("image") is not str:  # texts are in another order, which decides between equal scores
        assert coco_average_precision(truth.document, found).figures == expected
    assert len(document["images"]) == len({entry["id"] for entry in truth.document["images"]})


def test_text_ids_give_the_figures_of_pycocotools(tmp_path: Path) -> None:
    document, detections = random_problem(6)
    named = renamed(document, image=lambda value: f"image{value}")
    renamed_detections = [{**entry, "image_id": f"image{entry['image_id']}"} for entry in detections]
    (tmp_path / "truth.json").write_text(json.dumps(named))
    (tmp_path / "found.json").write_text(json.dumps(renamed_detections))
    truth = read_ground_truth(tmp_path / "truth.json")
    found, notes = read_results(tmp_path / "found.json", truth)
    reference = evaluate_with_pycocotools(named, renamed_detections)
    theirs = [None if value == -1 else float(value) for value in reference.stats]
    assert list(coco_average_precision(truth.document, found).figures.values()) == theirs and notes == []
    found.write(tmp_path / "again.json", truth.images.source_ids, truth.categories.source_ids)
    assert json.loads((tmp_path / "again.json").read_text()) == renamed_detections


def test_references_to_nothing_are_counted_and_left_out(tmp_path: Path) -> None:
    document, _ = random_problem(7)
    document["annotations"][0]["image_id"] = 99_999
    document["annotations"][1]["category_id"] = "zebra"
    (tmp_path / "truth.json").write_text(json.dumps(document))
    truth = read_ground_truth(tmp_path / "truth.json")
    assert [(note.kind, note.count) for note in truth.notes] == [
        ("truth_image_id_unknown", 1),
        ("truth_category_id_unknown", 1),
    ]
    assert "99999" in truth.notes[0].text and "'zebra'" in truth.notes[1].text
    assert len(truth.document["annotations"]) == len(document["annotations"]) - 2


def test_a_list_of_images_without_annotations_has_nothing_to_measure(tmp_path: Path) -> None:
    document, detections = random_problem(8)
    del document["annotations"]
    (tmp_path / "image_info_test-dev.json").write_text(json.dumps(document))
    (tmp_path / "found.json").write_text(json.dumps(detections))
    truth = read_ground_truth(tmp_path / "image_info_test-dev.json")
    found, notes = read_results(tmp_path / "found.json", truth)
    assert found.records() == detections and notes == []
    assert set(coco_average_precision(truth.document, found).figures.values()) == {None}
