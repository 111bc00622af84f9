"""Results as other tools write them give the figures of plain records, or a message; never AP 0 without a word."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolofleet.cli.main import main
from yolofleet.core.errors import UserError
from yolofleet.evaluation.average_precision import coco_average_precision
from yolofleet.evaluation.ground_truth import GroundTruth
from yolofleet.evaluation.result_file import read_results
from yolofleet.evaluation.result_records import Note

NAMES = ("red", "green", "blue", "traffic light")
Records = list[dict[str, Any]]
Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def truth() -> dict[str, Any]:
    """Objects of all classes in images of several sizes; the ids leave gaps, as COCO's do."""
    rng = np.random.default_rng(4)
    images, annotations = [], []
    for number in range(24):
        width, height = (int(value) for value in rng.integers(200, 640, 2))
        image_id = 139 + 7 * number
        images.append({"id": image_id, "file_name": f"shot_{number:04}.jpg", "width": width, "height": height})
        for _ in range(int(rng.integers(2, 6))):
            size = rng.uniform(20, 120, 2)
            corner = rng.uniform(0, 1, 2) * (np.array([width, height]) - size)
            box = [float(value) for value in np.round((*corner, *size), 2)]
            category_id = (1, 2, 5, 9)[int(rng.integers(4))]
            annotations.append({"image_id": image_id, "category_id": category_id, "bbox": box})
    categories = [{"id": number, "name": name} for number, name in zip((1, 2, 5, 9), NAMES, strict=True)]
    return {"images": images, "categories": categories, "annotations": annotations}


@pytest.fixture(scope="module")
def plain(truth: dict[str, Any]) -> Records:
    """Most objects, found a little beside, with scores."""
    rng = np.random.default_rng(5)
    return [
        {
            "image_id": entry["image_id"],
            "category_id": entry["category_id"],
            "bbox": [round(float(value), 3) for value in np.array(entry["bbox"]) + rng.uniform(0, 3, 4)],
            "score": round(float(rng.uniform(0.1, 1)), 5),
        }
        for entry in truth["annotations"]
        if rng.random() < 0.9
    ]


def figures(truth: dict[str, Any], detections: Any) -> dict[str, float | None]:
    return coco_average_precision(truth, detections).figures


def read(folder: Path, truth: dict[str, Any], content: Any, **options: Any) -> tuple[Any, list[Note]]:
    path = folder / "found.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return read_results(path, GroundTruth.of(truth), **options)


def change(records: Records, **fields: Callable[[dict[str, Any]], Any]) -> Records:
    return [{**record, **{key: value(record) for key, value in fields.items()}} for record in records]


def rename(records: Records, **keys: str) -> Records:
    return [{keys.get(key, key): value for key, value in record.items()} for record in records]


def lines(records: Records) -> bytes:
    return "\n".join(map(json.dumps, records)).encode()


def file_name(record: dict[str, Any]) -> str:
    return f"shot_{(record['image_id'] - 139) // 7:04}.jpg"


def position(record: dict[str, Any]) -> int:
    return (1, 2, 5, 9).index(record["category_id"])


def by_image(records: Records) -> Records:
    ids = dict.fromkeys(record["image_id"] for record in records)
    return [{"image_id": n, "predictions": [{**r, "image_id": n} for r in records if r["image_id"] == n]} for n in ids]


def listing(records: Records) -> dict[str, Any]:
    """A document with its own numbers of images and classes, as `predict` writes it."""
    images = [{"id": n + 1, "file_name": f"/data/val/shot_{n:04}.jpg"} for n in range(24)]
    own = change(records, image_id=lambda r: (r["image_id"] - 139) // 7 + 1, category_id=lambda r: 4 - position(r))
    categories = [{"id": 4 - index, "name": name} for index, name in enumerate(NAMES)]
    return {"images": images, "categories": categories, "annotations": own}


SAME = {
    "byte order mark": (lambda r: b"\xef\xbb\xbf" + json.dumps(r).encode(), set()),
    "gzip": (lambda r: gzip.compress(json.dumps(r).encode()), set()),
    "lines": (lines, set()),
    "lines with carriage returns and blank lines": (lambda r: lines(r).replace(b"\n", b"\r\n\r\n") + b"\n", set()),
    "files of two workers joined": (lambda r: json.dumps(r[:9]).encode() + json.dumps(r[9:]).encode(), set()),
    "lists of lines": (lambda r: b"\n".join(json.dumps([entry]).encode() for entry in r), set()),
    "predictions": (lambda r: {"predictions": r}, set()),
    "annotations": (lambda r: {"info": {}, "annotations": r}, set()),
    "results": (lambda r: {"results": r}, set()),
    "results.bbox": (lambda r: {"results": {"bbox": r}}, set()),
    "by image": (by_image, set()),
    "lines by image": (lambda r: lines(by_image(r)), set()),
    "further keys": (lambda r: change(r, id=lambda _: 0, area=lambda _: 1.0, segmentation=lambda _: []), set()),
    "float ids": (lambda r: change(r, image_id=lambda e: float(e["image_id"])), {"image_id_matched"}),
    "float classes": (lambda r: change(r, category_id=lambda e: float(e["category_id"])), {"category_id_matched"}),
    "text ids": (lambda r: change(r, image_id=lambda e: str(e["image_id"])), {"image_id_matched"}),
    "text of floats": (lambda r: change(r, image_id=lambda e: f"{e['image_id']}.0"), {"image_id_matched"}),
    "ids with zeros": (lambda r: change(r, image_id=lambda e: f"{e['image_id']:012}"), {"image_id_matched"}),
    "stems": (lambda r: change(r, image_id=lambda e: file_name(e)[:-4]), {"image_id_matched"}),
    "file names": (lambda r: change(r, image_id=file_name), {"image_id_matched"}),
    "Windows paths": (lambda r: change(r, image_id=lambda e: "C:\\val\\" + file_name(e)), {"image_id_matched"}),
    "upper case": (lambda r: change(r, image_id=lambda e: file_name(e).upper()), {"image_id_matched"}),
    "another ending": (lambda r: change(r, image_id=lambda e: file_name(e)[:-3] + "png"), {"image_id_matched"}),
    "confidence and file_name": (
        lambda r: rename(change(r, image_id=file_name), image_id="file_name", score="confidence"),
        {"image_id_matched", "other_key"},
    ),
    "class names": (lambda r: change(r, category_id=lambda e: NAMES[position(e)]), {"category_id_matched"}),
    "capitals": (lambda r: change(r, category_id=lambda e: NAMES[position(e)].title()), {"category_id_matched"}),
    "scores as text": (lambda r: change(r, score=lambda e: str(e["score"])), {"numbers_as_text"}),
    "boxes as text": (lambda r: change(r, bbox=lambda e: list(map(str, e["bbox"]))), {"numbers_as_text"}),
    "classes from 0": (lambda r: change(r, category_id=position), {"category_id_reinterpreted"}),
    "images from 0": (lambda r: change(r, image_id=lambda e: (e["image_id"] - 139) // 7), {"image_id_reinterpreted"}),
    "images less 1": (lambda r: change(r, image_id=lambda e: e["image_id"] - 1), {"image_id_reinterpreted"}),
    "a list of its own": (listing, {"image_id_by_own_list", "category_id_by_own_list"}),
}  # fmt: skip


@pytest.mark.parametrize("form", SAME)
def test_another_form_gives_the_same_figures_and_is_noted(
    truth: dict[str, Any], plain: Records, tmp_path: Path, form: str
) -> None:
    write, kinds = SAME[form]
    found, notes = read(tmp_path, truth, write(plain))
    assert figures(truth, found) == figures(truth, plain)
    assert found.records() == plain or form in ("by image", "lines by image")
    assert {note.kind for note in notes} == kinds
    assert all(note.count == len(plain) for note in notes)


def test_percent_is_divided(truth: dict[str, Any], plain: Records, tmp_path: Path) -> None:
    for write in (lambda entry: entry["score"] * 100, lambda entry: f"{entry['score'] * 100}%"):
        found, notes = read(tmp_path, truth, change(plain, score=write))
        assert figures(truth, found) == figures(truth, plain)
        assert found.scores == pytest.approx([entry["score"] for entry in plain])
        assert "scores_in_percent" in {note.kind for note in notes}
    found, notes = read(tmp_path, truth, change(plain, score=lambda entry: entry["score"] * 8 - 4))
    assert figures(truth, found) == figures(truth, plain) and [note.kind for note in notes] == ["scores_out_of_range"]


@pytest.mark.parametrize(
    ("highest", "scale", "kinds"),
    [
        (1.0000001, 1.0, []),
        (2.0, None, ["scores_out_of_range"]),
        (99.0, 100.0, ["scores_in_percent"]),
        (100.00001, 100.0, ["scores_in_percent"]),
        (101.0, None, ["scores_out_of_range"]),
    ],
)
def test_the_scale_of_scores(
    truth: dict[str, Any], plain: Records, tmp_path: Path, highest: float, scale: float | None, kinds: list[str]
) -> None:
    """A rounding error above the end of a scale is none of another scale."""
    found, notes = read(tmp_path, truth, [{**plain[0], "score": highest}, {**plain[1], "score": 0.5}, *plain[2:]])
    assert [note.kind for note in notes] == kinds
    expected = [highest, 0.5] if scale is None else [min(highest / scale, 1), 0.5 / scale]
    assert found.scores[:2].tolist() == expected


def test_one_image_alone_is_read_like_two(truth: dict[str, Any], plain: Records, tmp_path: Path) -> None:
    rest = [{key: value for key, value in record.items() if key != "image_id"} for record in plain]
    images = [{"image_id": record["image_id"], "detections": [own]} for record, own in zip(plain, rest, strict=True)]
    both, _ = read(tmp_path, truth, lines(images[:2]))
    for content in (lines(images[:1]), images[0], images[:1], {"results": images[0]}):
        found, notes = read(tmp_path, truth, content)
        assert found.records() == both.records()[:1] and {note.kind for note in notes} <= {"ap50_is_low"}


def to_corners(box: Any) -> list[float]:
    return [box[0], box[1], box[0] + box[2], box[1] + box[3]]


def to_centre(box: Any) -> list[float]:
    return [box[0] + box[2] / 2, box[1] + box[3] / 2, box[2], box[3]]


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize(("name", "convert"), [("xyxy", to_corners), ("cxcywh", to_centre), ("xywh", list)])
def test_boxes_of_another_format_are_refused_with_the_option_that_reads_them(
    truth: dict[str, Any], plain: Records, tmp_path: Path, name: str, convert: Any, shares: bool
) -> None:
    if name == "xywh" and not shares:
        return
    sizes = {entry["id"]: (entry["width"], entry["height"]) * 2 for entry in truth["images"]}

    def write(record: dict[str, Any]) -> list[float]:
        scale = sizes[record["image_id"]] if shares else (1, 1, 1, 1)
        return [value / side for value, side in zip(convert(record["bbox"]), scale, strict=True)]

    option = name + "n" * shares
    foreign = change(plain, bbox=write)
    with pytest.raises(UserError, match=rf"boxes look like .*AP50 .*add --boxes {option}, or --boxes xywh"):
        read(tmp_path, truth, foreign)
    found, notes = read(tmp_path, truth, foreign, box_format=option)
    assert figures(truth, found) == pytest.approx(figures(truth, plain)) and notes == []
    np.testing.assert_allclose(found.boxes, [entry["bbox"] for entry in plain], atol=1e-9)
    # Without objects or sizes, what can be seen of the boxes alone.
    bare = {**truth, "annotations": []}
    if shares:
        with pytest.raises(UserError, match=r"look like shares .*xywhn, xyxyn, cxcywhn"):
            read(tmp_path, bare, foreign)
        unsized = {**truth, "images": [{"id": entry["id"]} for entry in truth["images"]]}
        with pytest.raises(UserError, match="does not list width and height"):
            read(tmp_path, unsized, foreign, box_format=option)
    elif name == "xyxy":
        assert "boxes_outside" in {note.kind for note in read(tmp_path, bare, foreign)[1]}


def test_two_mistakes_at_once_are_found_together(truth: dict[str, Any], plain: Records, tmp_path: Path) -> None:
    shifted = change(plain, category_id=position, image_id=lambda e: e["image_id"] - 1)
    both = change(shifted, bbox=lambda e: to_corners(e["bbox"]))
    with pytest.raises(UserError, match="add --boxes xyxy"):
        read(tmp_path, truth, both)
    found, notes = read(tmp_path, truth, both, box_format="xyxy")
    assert figures(truth, found) == pytest.approx(figures(truth, plain))
    assert {note.kind for note in notes} == {"image_id_reinterpreted", "category_id_reinterpreted"}


def test_known_ids_are_never_changed_but_doubted(truth: dict[str, Any], plain: Records, tmp_path: Path) -> None:
    three = [entry for entry in plain if entry["category_id"] != 9]
    contiguous = {**truth, "categories": [{"id": n, "name": name} for n, name in enumerate(NAMES)]}
    contiguous["annotations"] = change(truth["annotations"], category_id=position)
    shifted = change(three, category_id=lambda e: position(e) + 1)
    found, notes = read(tmp_path, contiguous, shifted)
    assert found.records() == shifted  # the figures stay those of pycocotools
    assert "category_id_doubtful" in {note.kind for note in notes}
    assert any("category ids look like one more than the ids" in note.text for note in notes)


def test_unknown_images_and_classes_are_counted_and_named(
    truth: dict[str, Any], plain: Records, tmp_path: Path
) -> None:
    extra = [{**plain[0], "image_id": 77_777}, {**plain[0], "image_id": 88_888}, {**plain[1], "category_id": 300}]
    found, notes = read(tmp_path, truth, [*plain, *extra])
    assert figures(truth, found) == figures(truth, plain)
    assert [(note.kind, note.count) for note in notes] == [("image_id_unknown", 2), ("category_id_unknown", 1)]
    assert "77777, 88888" in notes[0].text and "larger set" in notes[0].text
    assert "300" in notes[1].text and "more classes" in notes[1].text
    with pytest.raises(UserError, match=r"no image_id of its .* is in the ground truth.*another dataset"):
        read(tmp_path, truth, change(plain, image_id=lambda e: e["image_id"] * 1_000_003))
    with pytest.raises(UserError, match=r"no category_id of its .* is in the ground truth"):
        read(tmp_path, truth, change(plain, category_id=lambda e: "zebra"))


def test_stems_that_two_images_share_are_not_guessed(truth: dict[str, Any], plain: Records, tmp_path: Path) -> None:
    twins = {**truth, "images": [{**e, "file_name": f"{e['id'] % 2}/{e['id'] // 2}.jpg"} for e in truth["images"]]}
    found, _ = read(tmp_path, twins, change(plain, image_id=lambda e: f"{e['image_id'] % 2}/{e['image_id'] // 2}"))
    assert figures(truth, found) == figures(truth, plain)
    doubled = change(plain, image_id=lambda e: f"{'ab'[e['bbox'][0] > 100]}/{file_name(e)}")
    with pytest.raises(UserError, match=r"image_id '\w/shot_\d+.jpg' and '\w/shot_\d+.jpg' both match"):
        read(tmp_path, truth, doubled)


def test_detections_of_nothing_in_particular_are_told_apart_from_poor_ones(
    truth: dict[str, Any], plain: Records, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    wild = change(plain, bbox=lambda e: [e["bbox"][1] % 50, e["bbox"][0] % 50, 8.0, 9.0])
    (tmp_path / "wild.json").write_text(json.dumps(wild))
    assert main(["evaluate", str(tmp_path / "wild.json"), str(tmp_path / "truth.json"), "--json"]) == 0
    captured = capsys.readouterr()
    assert "note: AP50 is 0.00" in captured.err and "of this dataset" in captured.err
    assert [note["kind"] for note in json.loads(captured.out)["notes"]] == ["ap50_is_low"]


def test_the_command_notes_repairs_and_writes_the_ids_of_the_ground_truth(
    truth: dict[str, Any], plain: Records, tmp_path: Path, capsys: Captured
) -> None:
    named = {**truth, "images": [{**e, "id": f"shot_{(e['id'] - 139) // 7:04}"} for e in truth["images"]]}
    named["annotations"] = change(truth["annotations"], image_id=lambda e: file_name(e)[:-4])
    with gzip.open(tmp_path / "truth.json.gz", "wb") as file:
        file.write(json.dumps(named).encode())
    with zipfile.ZipFile(tmp_path / "found.json.zip", "w") as archive:
        archive.writestr("detections_test-dev2017_alg_results.json", json.dumps(change(plain, image_id=file_name)))
    out = tmp_path / "again.json"
    arguments = ["evaluate", str(tmp_path / "found.json.zip"), str(tmp_path / "truth.json.gz"), "--results", str(out)]
    assert main([*arguments, "--json", "--max-detections", "300", "--classes", "red,blue"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert "AR_300" in document["figures"] and len(document["per_class"]) == 2
    assert "matched by name" in captured.err and document["notes"][0]["count"] == len(plain)
    assert json.loads(out.read_text()) == change(plain, image_id=lambda e: file_name(e)[:-4])
    assert main(arguments) == 0
    assert "AR_100" in capsys.readouterr().out


def test_an_unknown_format_of_boxes_is_refused(truth: dict[str, Any], tmp_path: Path, capsys: Captured) -> None:
    for name, content in (("truth.json", truth), ("found.json", [])):
        (tmp_path / name).write_text(json.dumps(content))
    paths = [str(tmp_path / "found.json"), str(tmp_path / "truth.json")]
    assert main(["evaluate", *paths, "--boxes", "corners"]) == 2
    assert "xyxy (the corners x1, y1, x2, y2, in pixels)" in capsys.readouterr().err
    assert main(["evaluate", *paths]) == 0
    assert "holds no detections" in capsys.readouterr().err
