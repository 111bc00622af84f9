"""Annotation files that detections cannot be evaluated with are refused, with the mistake named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.reference_figures import evaluate_with_pycocotools, random_problem
from yolofleet.core.errors import UserError
from yolofleet.evaluation.average_precision import coco_average_precision
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
        ("categories", [{"id": 1}], r"categories\[0\] has no 'name'"),
        ("annotations", [{"image_id": 1, "category_id": 1}], "has no 'bbox'"),
        ("annotations", [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3]}], "must be four numbers"),
        ("annotations", [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": "big"}], "has area 'big'"),
        ("annotations", [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "iscrowd": "0"}], "has iscrowd '0'"),
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
        (b"\xff\xfe{\0}\0", "is not UTF-8 text but UTF-16"),
        (b" ", "is empty"),
        (b"[]", "holds a list"),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError, match=words):
            read_ground_truth(path)
    with pytest.raises(UserError, match="cannot read"):
        read_ground_truth(tmp_path / "missing.json")


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
