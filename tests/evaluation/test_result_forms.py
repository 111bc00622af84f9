"""Detections in the forms of other tools give the figures of plain records, and the form is noted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluation.reference_figures import CATEGORY_IDS, random_problem
from yolofleet.core.errors import UserError
from yolofleet.evaluation.average_precision import coco_average_precision
from yolofleet.evaluation.ground_truth import GroundTruth
from yolofleet.evaluation.result_file import read_results
from yolofleet.evaluation.result_records import Note

SIDE = 640
Record = dict[str, Any]
DOCUMENT, PLAIN = random_problem(5)


def read(folder: Path, content: Any, document: Any = DOCUMENT, **options: Any) -> tuple[Any, list[Note]]:
    (folder / "found.json").write_text(json.dumps(content))
    return read_results(folder / "found.json", GroundTruth.of(document), **options)


def by_image(convert: Callable[[Record], Any]) -> dict[str, list[Any]]:
    names = [f"{image['id']}.jpg" for image in DOCUMENT["images"]]
    return {name: [convert(record) for record in PLAIN if f"{record['image_id']}.jpg" == name] for name in names}


def name_of(record: Record) -> str:
    return f"class {record['category_id']}"


def corners(record: Record) -> list[float]:
    x, y, width, height = record["bbox"]
    return [x, y, x + width, y + height]


def centre(record: Record, scale: float = 1) -> list[float]:
    x, y, width, height = record["bbox"]
    return [value / scale for value in (x + width / 2, y + height / 2, width, height)]


def named(keys: str, values: list[float]) -> dict[str, float]:
    return dict(zip(keys.split(), values, strict=True))


def without_image(record: Record) -> Record:
    return {key: value for key, value in record.items() if key != "image_id"}


def darknet(record: Record) -> Record:
    return {
        "class_id": CATEGORY_IDS.index(record["category_id"]),
        "name": name_of(record),
        "relative_coordinates": named("center_x center_y width height", centre(record, SIDE)),
        "confidence": record["score"],
    }


def roboflow(record: Record) -> Record:
    box = named("x y width height", centre(record))
    number = CATEGORY_IDS.index(record["category_id"]) + 3  # one of these numbers is an id of another class
    return {**box, "confidence": record["score"], "class": name_of(record), "class_id": number}


def columns(boxes: str, labels: str, scores: str) -> list[Record]:
    keys = {boxes: "bbox", labels: "category_id", scores: "score"}
    return [
        {"file_name": name, "masks": [], **{own: [entry[key] for entry in found] for own, key in keys.items()}}
        for name, found in by_image(dict).items()
    ]


def frames(convert: Callable[[Record], Any], key: str) -> list[Record]:
    return [
        {"frame_id": number, "filename": f"C:\\data\\{name}", key: found}
        for number, (name, found) in enumerate(by_image(convert).items())
    ]


FORMS: dict[str, Callable[[], Any]] = {
    "Darknet": lambda: frames(darknet, "objects"),
    "Roboflow": lambda: frames(roboflow, "predictions"),
    "Roboflow by name": lambda: {
        name: {"predictions": found, "image": {"width": SIDE, "height": SIDE}}
        for name, found in by_image(roboflow).items()
    },
    "lists by name": lambda: by_image(without_image),
    "columns of torchvision's names": lambda: columns("boxes", "labels", "scores"),
    "columns of MMDetection's names": lambda: columns("bboxes", "labels", "scores"),
    "columns by name": lambda: {entry.pop("file_name"): entry for entry in columns("boxes", "classes", "scores")},
    "corners with names, in a box": lambda: [
        {**r, "bbox": named("x1 y1 x2 y2", corners(r)), "name": name_of(r)} for r in PLAIN
    ],
    "corners with names, in the record": lambda: [
        {**{key: r[key] for key in ("image_id", "category_id", "score")}, **named("xmin ymin xmax ymax", corners(r))}
        for r in PLAIN
    ],
    "the score as fifth number, too": lambda: [{**r, "bbox": [*r["bbox"], r["score"]]} for r in PLAIN],
    "the score as fifth number alone": lambda: [
        {"image_id": r["image_id"], "category_id": r["category_id"], "bbox": [*r["bbox"], r["score"]]} for r in PLAIN
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_of_another_tool_gives_the_same_figures_and_is_noted(tmp_path: Path, form: str) -> None:
    found, notes = read(tmp_path, FORMS[form]())
    figures = coco_average_precision(DOCUMENT, found).figures
    assert figures == pytest.approx(coco_average_precision(DOCUMENT, in_order_of(found)).figures)
    assert "other_form" in {note.kind for note in notes}


def in_order_of(found: Any) -> list[Record]:
    """The plain records in the order in which they were found: it decides between equal scores."""
    order = list(dict.fromkeys(found.image_ids.tolist()))
    assert len(found) == len(PLAIN)
    return sorted(PLAIN, key=lambda record: order.index(record["image_id"]))


def test_names_that_stand_beside_ids_decide(tmp_path: Path) -> None:
    """A number that happens to be an id of the ground truth means another class there."""
    other = {3: 7, 7: 3, 44: 44, 90: 90}
    foreign = [{**r, "category_id": other[r["category_id"]], "category_name": name_of(r)} for r in PLAIN]
    found, notes = read(tmp_path, foreign)
    assert found.records() == PLAIN
    assert [note.kind for note in notes] == ["category_id_by_own_list"]
    assert "names that the file itself gives them" in notes[0].text
    same, notes = read(
        tmp_path, [{**r, "file_name": f"{r['image_id']}.jpg", "category_name": name_of(r)} for r in PLAIN]
    )
    assert same.records() == PLAIN and notes == []
    unclear = [{**r, "category_name": f"class {number}"} for number, r in enumerate(PLAIN)]
    assert read(tmp_path, unclear)[0].records() == PLAIN, "an id with two names is an id"


def test_names_that_two_images_share_leave_the_ids_as_they_are(tmp_path: Path) -> None:
    images = [{**image, "file_name": f"{number}/0.jpg"} for number, image in enumerate(DOCUMENT["images"])]
    beside = [{**record, "file_name": "0.jpg"} for record in PLAIN]
    found, _ = read(tmp_path, beside, {**DOCUMENT, "images": images})
    assert found.records() == PLAIN


def test_what_the_names_of_a_box_say_is_doubted_and_can_be_overruled(tmp_path: Path) -> None:
    best = [{**without_image(r), "image_id": r["image_id"], "score": 0.9} for r in DOCUMENT["annotations"]]
    wrong = [{**r, "bbox": named("x1 y1 x2 y2", r["bbox"])} for r in best]
    with pytest.raises(UserError, match=r"boxes look like x, y, width, height, .*add --boxes xywh, or --boxes xyxy"):
        read(tmp_path, wrong)
    assert read(tmp_path, wrong, box_format="xywh")[0].boxes.tolist() == [r["bbox"] for r in best]


def test_lists_beside_the_box_of_a_record_do_not_replace_it(tmp_path: Path) -> None:
    beside = [{**record, "boxes": [[1, 2, 3, 4]], "labels": [3], "scores": [0.5]} for record in PLAIN]
    found, notes = read(tmp_path, beside)
    assert found.records() == PLAIN and notes == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            [{"image_id": 1, "boxes": [[1, 2, 3, 4]], "labels": [], "scores": [1]}],
            "1 entry in boxes, 0 entries in labels",
        ),
        ([{**PLAIN[0], "bbox": [1, 2, 3, 4, 0.2]}], r"bbox is \[1, 2, 3, 4, 0.2\]; it must be four finite numbers"),
        ([{**PLAIN[0], "bbox": [1, 2, 3, 4, 0.2, 1]}], "it must be four finite numbers .* at most the score behind"),
        ([{**PLAIN[0], "bbox": {"a": 1}}], "bbox is {'a': 1}"),
        ([{"boxes": [[1, 2, 3, 4]], "labels": [3], "scores": [1]}], "has no image_id .*may also be called file_name"),
        ({"a.jpg": [], "b.jpg": []}, "nor lists under the names of images"),
        ({"a.jpg": [[1, 2, 3, 4, 0.5, 1]]}, "nor lists under the names of images"),
    ],
)
def test_what_could_mean_several_things_is_refused(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read(tmp_path, content)
