"""COCO files as tools write them: boxes, ids, names of files, categories, archives."""

from __future__ import annotations

import copy
import gzip
import itertools
import json
import math
import shutil
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask

from data.exports import HEIGHT, NAMES, WIDTH, boxes_by_name, built, coco, draw, read, save_images, write_json
from yolofleet.cli.main import main
from yolofleet.core.errors import UserError
from yolofleet.data import annotation, box_meaning
from yolofleet.data.coco import parse_coco
from yolofleet.data.outline_box import box_of_outline
from yolofleet.data.problems import ProblemLog

FILES = ["p0.jpg", "p1.jpg", "p2.jpg"]
Document = dict[str, Any]


@pytest.fixture
def export(tmp_path: Path) -> tuple[Path, Document]:
    return tmp_path, coco(save_images(tmp_path / "images", *FILES), FILES)


def rle(box: list[float], *, compressed: bool) -> dict[str, Any]:
    x, y, width, height = map(int, box)
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    pixels[y : y + height, x : x + width] = 1
    if compressed:
        found = mask.encode(pixels)
        return {"size": found["size"], "counts": found["counts"].decode()}
    flat = pixels.ravel(order="F")
    edges = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), len(flat)]
    runs = [end - start for start, end in itertools.pairwise(edges)]
    return {"size": [HEIGHT, WIDTH], "counts": [0, *runs] if flat[0] else runs}


def polygon(box: list[float]) -> list[float]:
    x, y, width, height = box
    return [x, y, x + width, y, x + width, y + height, x, y + height]


# --- boxes


@pytest.mark.parametrize("empty", [None, [], [0, 0, 0, 0], "absent"])
@pytest.mark.parametrize("outline", ["polygon", "parts", "flat", "rle", "compressed"])
def test_a_box_follows_from_its_outline(export: tuple[Path, Document], outline: str, empty: Any) -> None:
    folder, document = export
    expected = {name: draw(number)[1] for number, name in enumerate(FILES)}
    for entry in document["annotations"]:
        box = entry.pop("bbox")
        x, y, width, height = box
        if empty != "absent":
            entry["bbox"] = empty
        entry["segmentation"] = {
            "polygon": [polygon(box)],
            "parts": [polygon([x, y, width / 2, height / 2]), polygon([x + width - 2, y + height - 2, 2, 2])],
            "flat": polygon(box),
            "rle": rle(box, compressed=False),
            "compressed": rle(box, compressed=True),
        }[outline]
    source, counts = read(write_json(folder / "a.json", document), folder / "images")
    assert boxes_by_name(source) == expected and counts == {"box_from_outline": 9}


def test_the_box_of_any_mask_is_that_of_pycocotools() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        height, width = generator.integers(1, 30, 2)
        pixels = np.asfortranarray(
            generator.random((height, width)) < generator.choice([0.01, 0.1, 0.6]), dtype=np.uint8
        )
        found = mask.encode(pixels)
        box = box_of_outline({"size": found["size"], "counts": found["counts"].decode()})
        if not pixels.any():
            assert box is None
            continue
        rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
        left, top = columns[0], rows[0]
        touches = [left, top, columns[-1] + 1 - left, rows[-1] + 1 - top]
        assert box is not None
        whole = [left, 0, touches[2], height]  # a run that goes on in the next column
        assert box in (touches, whole) and box[2] == touches[2]


@pytest.mark.parametrize("counts", ["", "0", "_" * 50, "P" * 4, "o" * 30, [1, -1], [10**30], [0, 10**30]])
def test_an_rle_that_makes_no_sense_gives_no_box(counts: Any) -> None:
    assert box_of_outline({"size": [4, 4], "counts": counts}) is None


@pytest.mark.parametrize("degrees", [0, 30, 90, 180, 312.5, -45])
def test_a_rotated_box_becomes_the_upright_one_around_it(export: tuple[Path, Document], degrees: float) -> None:
    folder, document = export
    document["annotations"] = document["annotations"][:1]
    document["annotations"][0] |= {"bbox": [60, 50, 40, 20], "attributes": {"occluded": False, "rotation": degrees}}
    source, counts = read(write_json(folder / "a.json", document), folder / "images")
    angle = math.radians(degrees)
    corners = [complex(x, y) * complex(math.cos(angle), math.sin(angle)) for x in (-20, 20) for y in (-10, 10)]
    half_width, half_height = max(corner.real for corner in corners), max(corner.imag for corner in corners)
    expected = [80 - half_width, 60 - half_height, 2 * half_width, 2 * half_height]
    assert np.allclose(source.records[0].boxes[0], expected) and counts == ({"box_rotated": 1} if degrees else {})


@pytest.mark.parametrize(
    "wrong", [[None] * 4, [-1, -1, 0, 0], [math.inf, math.inf, -math.inf, -math.inf], "x", [9, 9, -4, 5]]
)
@pytest.mark.parametrize("outline", ["fragment", "pairs", "pairs without a list", "OpenCV"])
def test_an_unusable_box_is_that_of_the_sound_parts_of_its_outline(
    export: tuple[Path, Document], outline: str, wrong: Any
) -> None:
    folder, document = export
    expected = {name: draw(number)[1] for number, name in enumerate(FILES)}
    for entry in document["annotations"]:
        points = np.reshape(polygon(entry["bbox"]), (-1, 2)).tolist()
        entry["bbox"] = wrong
        entry["segmentation"] = {
            "fragment": [[1.0, 2.0, 3.0, 4.0], np.ravel(points).tolist()],
            "pairs": [points],
            "pairs without a list": points,
            "OpenCV": [[[point] for point in points]],
        }[outline]
    source, counts = read(write_json(folder / "a.json", document), folder / "images")
    assert boxes_by_name(source) == expected and all(
        isinstance(entry, list) and len(entry) == 1 for record in source.records for entry in record.segmentations
    )
    assert counts == {"box_from_outline": 9} | ({"segmentation_malformed": 9} if outline == "fragment" else {})


def test_a_box_that_its_outline_fits_is_not_rotated_again(export: tuple[Path, Document]) -> None:
    folder, document = export
    expected = {name: draw(number)[1] for number, name in enumerate(FILES)}
    for entry in document["annotations"]:
        entry |= {"segmentation": [polygon(entry["bbox"])], "attributes": {"rotation": 45}}
    source, counts = read(write_json(folder / "a.json", document), folder / "images")
    assert boxes_by_name(source) == expected and not counts
    for entry in document["annotations"]:  # the outline is that of the rotated box
        x, y, width, height = entry["bbox"]
        center, reach = np.array([x + width / 2, y + height / 2]), (width + height) / 2 / math.sqrt(2)
        corners = center + reach * np.array([[-1, 0], [0, -1], [1, 0], [0, 1]])
        entry["segmentation"] = [corners.ravel().tolist()]
    assert read(write_json(folder / "b.json", document), folder / "images")[1] == {"box_rotated": 9}


@pytest.mark.parametrize("has_size", [True, False])
@pytest.mark.parametrize("gain", [2, 5])
def test_the_box_of_a_mask_of_another_size_is_scaled(export: tuple[Path, Document], gain: int, has_size: bool) -> None:
    folder, document = export
    expected = {name: draw(number)[1] for number, name in enumerate(FILES)}
    for entry in document["annotations"]:
        x, y, width, height = (int(side) * gain for side in entry.pop("bbox"))
        pixels = np.zeros((HEIGHT * gain, WIDTH * gain), np.uint8, order="F")
        pixels[y : y + height, x : x + width] = 1
        found = mask.encode(pixels)
        entry["segmentation"] = {"size": found["size"], "counts": found["counts"].decode()}
        entry.pop("area")
    if not has_size:
        for entry in document["images"]:
            entry.pop("width")
    path = write_json(folder / "a.json", document)
    assert main(["data", "shard", str(path), str(folder / "images"), str(folder / "out")]) == 0
    assert built(folder / "out") == expected
    counted = json.loads((folder / "out" / "manifest.json").read_text())["problems"]
    assert ("mask_of_other_size" if has_size else "image_size_scaled") in counted


def test_a_mask_of_another_shape_gives_no_box_and_says_so(export: tuple[Path, Document]) -> None:
    folder, document = export
    for entry in document["annotations"][:2]:
        entry["segmentation"] = {"size": [WIDTH, WIDTH], "counts": [100, 20, WIDTH * WIDTH - 120]}
    document["annotations"][0].pop("bbox")
    source, counts = read(write_json(folder / "a.json", document), folder / "images")
    assert counts == {"box_mask_of_other_shape": 1, "mask_of_other_size": 1}
    assert len(source.records[0].boxes) == 2 and source.records[0].segmentations == (None, None)


READINGS: dict[str, tuple[Callable[[float, float, float, float], list[float]], str]] = {
    "center": (lambda x, y, w, h: [x + w / 2, y + h / 2, w, h], "the center, width and height"),
    "corners": (lambda x, y, w, h: [x, y, x + w, y + h], "the corners x1, y1, x2, y2"),
    "half": (lambda x, y, w, h: [x / 2, y / 2, w / 2, h / 2], "those of a copy, times 2 and 2"),
    "percents": (lambda x, y, w, h: [x / 4, y / 3, w / 4, h / 3], "those of a copy, times 4 and 3"),
}


@pytest.mark.parametrize("reading", READINGS)
def test_a_box_that_contradicts_its_outline_is_told_with_what_fits(tmp_path: Path, reading: str) -> None:
    save_images(tmp_path / "images", "a.jpg")
    boxes = [[70.0, 40.0, 20.0, 16.0], [20.0, 60.0, 24.0, 12.0], [100.0, 20.0, 30.0, 30.0]]
    document = coco([boxes], ["a.jpg"])
    for entry in document["annotations"]:
        entry |= {"segmentation": [polygon(entry["bbox"])], "bbox": READINGS[reading][0](*entry["bbox"])}
    problems = ProblemLog()
    source = parse_coco(json.dumps(document).encode(), "a.json", problems)
    assert problems.counts["box_differs_from_outline"] == 3 and len(source.records[0].boxes) == 3
    assert problems.examples["box_differs_from_outline"][0].endswith(f"; it fits as {READINGS[reading][1]}")
    assert "annotation 1 of image 1 (a.jpg)" in problems.examples["box_differs_from_outline"][0]


def test_boxes_that_all_lie_in_the_first_100_pixels_are_told(export: tuple[Path, Document]) -> None:
    folder, document = export
    document["annotations"] *= 2
    assert "boxes_look_like_percents" not in read(write_json(folder / "a.json", document), folder / "images")[1]
    for entry in document["annotations"]:
        entry["bbox"] = [side * 100 / max(WIDTH, HEIGHT) for side in entry["bbox"]]
    assert read(write_json(folder / "b.json", document), folder / "images")[1]["boxes_look_like_percents"] == 1


# --- ids


def renamed(document: Document, image: Callable[[int], Any], reference: Callable[[int], Any]) -> Document:
    for entry in document["images"]:
        entry["id"] = image(entry["id"])
    for entry in document["annotations"]:
        entry["image_id"] = reference(entry["image_id"])
    return document


IDS: dict[str, tuple[Callable[[int], Any], Callable[[int], Any]]] = {
    "float ids": (float, float),
    "float references": (int, float),
    "string ids": (str, int),
    "string references": (int, str),
    "64 bits": (lambda number: 2**61 + number, lambda number: 2**61 + number),
    "hashes": (lambda number: f"{number:016x}", lambda number: f"{number:016x}"),
    "uuids": (lambda number: f"3f2a-{number}", lambda number: f"3f2a-{number}"),
    "unsigned": (lambda number: 2**64 - number, lambda number: 2**64 - number),
    "floats of 64 bits": (lambda number: float(2**61 + 4096 * number), lambda number: float(2**61 + 4096 * number)),
    "64 bits and floats": (lambda number: 2**61 + 1001 * number, lambda number: float(2**61 + 1001 * number)),
    "numbers of UUIDs": (lambda number: 2**127 + number, lambda number: 2**127 + number),
    "UUIDs and floats": (lambda number: 2**127 + 2**90 * number + 1, lambda number: float(2**127 + 2**90 * number + 1)),
    "leading zeros": (int, lambda number: f"{number:06d}"),
    "ids with leading zeros": (lambda number: f"{number:06d}", int),
    "text of floats": (int, lambda number: f"{number}.0"),
    "names of files": (int, lambda number: FILES[number - 1]),
    "paths of files": (int, lambda number: FILES[number - 1].removesuffix(".jpg")),
}


@pytest.mark.parametrize("kind", IDS)
def test_ids_of_any_kind_meet(export: tuple[Path, Document], kind: str) -> None:
    folder, document = export
    expected = boxes_by_name(read(write_json(folder / "a.json", document), folder / "images")[0])
    source, counts = read(write_json(folder / "b.json", renamed(document, *IDS[kind])), folder / "images")
    assert boxes_by_name(source) == expected
    assert [record.image_id for record in source.records] == [1, 2, 3]
    assert set(counts) <= {"image_id_renumbered", "ids_matched"}


def test_a_float_that_may_be_either_of_two_ids_is_neither(export: tuple[Path, Document]) -> None:
    folder, document = export
    renamed(document, lambda number: 2**61 + number, lambda number: float(2**61 + number))
    document["images"].append({"id": 2**61, "file_name": "p0.jpg"})
    source, counts = read(write_json(folder / "a.json", document), folder / "images")
    assert counts["annotation_without_image"] == 9 and not any(len(record.boxes) for record in source.records)


def test_a_category_id_that_is_a_name_is_matched_and_told(export: tuple[Path, Document]) -> None:
    folder, document = export
    for entry in document["annotations"]:
        entry["category_id"] = NAMES[entry["category_id"] - 1]
    document["annotations"][0]["category_id"] = "purple"
    source, counts = read(write_json(folder / "a.json", document), folder / "images")
    assert [record.classes.tolist() for record in source.records] == [[1, 2], [0, 1, 2], [0, 1, 2]]
    assert counts == {"ids_matched": 1, "category_malformed": 1}


def test_of_many_masks_beside_sound_boxes_only_some_are_decoded(
    export: tuple[Path, Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, document = export
    for entry in document["annotations"]:
        entry["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}
    decoded = []
    for module in (annotation, box_meaning):
        monkeypatch.setattr(module, "box_of_outline", lambda mask: decoded.append(mask) or box_of_outline(mask))
    for most, step, count in ((6, 20, 6), (1, 3, 4), (0, 20, 0)):
        monkeypatch.setattr(box_meaning, "MASKS_ALL_SEEN", most)
        monkeypatch.setattr(box_meaning, "MASK_STEP", step)
        decoded.clear()
        _, counts = read(write_json(folder / "a.json", document), folder)
        assert len(decoded) == count == counts.get("box_differs_from_outline", 0)


@pytest.mark.parametrize(("value", "title"), [("", "2"), (" ", "2"), (None, "2"), (1.5, "1.5"), (7, "7")])
def test_a_category_without_a_name_is_named_by_its_id_and_counted_and_a_number_is_a_name(
    export: tuple[Path, Document], value: Any, title: str
) -> None:
    folder, document = export
    document["categories"][1]["name"] = value
    source, counts = read(write_json(folder / "a.json", document), folder)
    assert [entry.name for entry in source.classes] == ["red", title, "blue"]
    assert counts == ({"class_names_missing": 1} if title == "2" else {})


@pytest.mark.parametrize("value", [False, ["red"], {}, float("nan")])
def test_a_category_without_a_usable_name_is_refused(export: tuple[Path, Document], value: Any) -> None:
    folder, document = export
    document["categories"][1]["name"] = value
    with pytest.raises(UserError, match=r"categories: the name of id 2 is .*; write its name as text"):
        read(write_json(folder / "a.json", document), folder / "images")


@pytest.mark.parametrize("change", [{"file_name": 7}, {"file_name": None, "path": "/data/p0.jpg"}])
def test_images_none_of_which_can_be_used_are_refused_with_an_example(
    export: tuple[Path, Document], change: Document
) -> None:
    folder, document = export
    for entry in document["images"]:
        entry |= change
    with pytest.raises(UserError, match=r"no usable image; nothing to read; image_malformed: 3 \(such as"):
        read(write_json(folder / "a.json", document), folder / "images")


@pytest.mark.parametrize("kind", [float, str, lambda number: NAMES[number - 1]])
def test_category_ids_of_any_kind_meet(export: tuple[Path, Document], kind: Callable[[int], Any]) -> None:
    folder, document = export
    for entry in document["categories"]:
        entry["id"] = kind(entry["id"])
    for entry in document["annotations"]:
        entry["category_id"] = kind(entry["category_id"])
    source, counts = read(write_json(folder / "a.json", document), folder / "images")
    assert [(entry.id, entry.name) for entry in source.classes] == [(1, "red"), (2, "green"), (3, "blue")]
    assert [record.classes.tolist() for record in source.records] == [[0, 1, 2]] * 3
    assert set(counts) <= {"category_ids_renumbered"}


# --- names of files


FORMS: dict[str, Callable[[str], str]] = {
    "backslash": lambda name: f"images\\{name}",
    "both slashes": lambda name: f"images\\1/{name}",
    "Label Studio": lambda name: f"..\\..\\label-studio\\media\\upload\\4\\{name}",
    "local files": lambda name: f"/data/local-files/?d=set/{name}",
    "URL": lambda name: f"https://host/bucket/{name}?X-Amz-Date=1",
    "absolute": lambda name: f"/home/me/set/images/{name}",
    "drive": lambda name: f"C:\\Users\\me\\{name}",
    "folder": lambda name: f"images/{name}",
    "folder twice": lambda name: f"images/images/{name}",
    "case": str.upper,
    "no ending": lambda name: name.partition(".")[0],
    "dot": lambda name: f"./{name}",
}


@pytest.mark.parametrize("form", FORMS)
def test_names_of_files_are_found_as_tools_write_them(
    export: tuple[Path, Document], form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, document = export
    expected = {FORMS[form](name): draw(number)[1] for number, name in enumerate(FILES)}
    for entry in document["images"]:
        entry["file_name"] = FORMS[form](entry["file_name"])
    path = write_json(folder / "a.json", document)
    assert main(["data", "shard", str(path), str(folder / "images"), str(folder / "out"), "--json"]) == 0
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert built(folder / "out") == expected
    expected_counts = {} if form == "dot" else {"file_name_repaired": 3}
    assert {kind: entry["count"] for kind, entry in problems.items()} == expected_counts
    assert main(["data", "check", str(path), str(folder / "images"), "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)["problems"]
    assert {kind: entry["count"] for kind, entry in checked.items()} == expected_counts


@pytest.mark.parametrize(("of_file", "written"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_and_percent_signs_meet(tmp_path: Path, of_file: str, written: str) -> None:
    names = ["café 1.jpg", "100%.jpg", "한글.jpg", "a#2.jpg"]
    every = save_images(tmp_path / "images", *(unicodedata.normalize(of_file, name) for name in names))
    forms = [
        unicodedata.normalize(written, name) for name in ("caf%C3%A9%201.jpg", "100%25.jpg", "한글.jpg", "a%232.jpg")
    ]
    path = write_json(tmp_path / "a.json", coco(every, forms))
    assert main(["data", "shard", str(path), str(tmp_path / "images"), str(tmp_path / "out")]) == 0
    assert built(tmp_path / "out") == dict(zip(forms, every, strict=True))


@pytest.mark.parametrize(
    ("files", "written"),
    [
        (["a/p.jpg", "b/p.jpg"], ["p.jpg"]),
        (["b/p.jpg"], ["a/p.jpg"]),
        (["p.jpg"], ["a/p.jpg", "b/p.jpg"]),
        (["p.jpg", "p.png"], ["p"]),
        (["P.jpg", "p.JPG"], ["p.jpg"]),
        (["p.jpg"], ["p.png"]),
    ],
)
def test_a_name_that_fits_no_file_or_several_is_told(tmp_path: Path, files: list[str], written: list[str]) -> None:
    every = save_images(tmp_path / "images", "sure.jpg", *files)
    document = coco(every[:1] * (1 + len(written)), ["sure.jpg", *written])
    path = write_json(tmp_path / "a.json", document)
    out = ["data", "shard", str(path), str(tmp_path / "images"), str(tmp_path / "out"), "--max-skipped", "0.9"]
    assert main(out) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["problems"]["image_file_missing"]["count"] == len(written) and list(built(tmp_path / "out")) == [
        "sure.jpg"
    ]


def test_lvis_names_its_images_by_url(export: tuple[Path, Document]) -> None:
    folder, document = export
    for entry in document["images"]:
        entry["coco_url"] = f"http://images.cocodataset.org/train2017/{entry.pop('file_name')}"
        entry |= {"neg_category_ids": [2], "not_exhaustive_category_ids": []}
    path = write_json(folder / "a.json", document)
    assert main(["data", "shard", str(path), str(folder / "images"), str(folder / "out")]) == 0
    assert sorted(built(folder / "out").values()) == sorted(draw(number)[1] for number in range(3))


# --- categories


@pytest.mark.parametrize("root", ["shapes", "red"])
def test_a_category_that_only_groups_the_others_is_left_out_and_told(export: tuple[Path, Document], root: str) -> None:
    folder, document = export
    document["categories"] = [
        {"id": 0, "name": root, "supercategory": "none"},
        *({**entry, "supercategory": root} for entry in document["categories"]),
    ]
    source, counts = read(write_json(folder / "a.json", document), folder / "images")
    assert [entry.id for entry in source.classes] == [1, 2, 3] and counts == {"category_unused_root": 1}
    document["annotations"][0]["category_id"] = 0
    source, counts = read(write_json(folder / "b.json", document), folder / "images")
    assert [entry.id for entry in source.classes] == [0, 1, 2, 3], "a box is of it"


def test_a_class_without_boxes_stays(export: tuple[Path, Document]) -> None:
    folder, document = export
    document["categories"].append({"id": 9, "name": "rare", "supercategory": ""})
    source, counts = read(write_json(folder / "a.json", document), folder / "images")
    assert [entry.id for entry in source.classes] == [1, 2, 3, 9] and not counts


# --- archives


def test_a_gzip_file_is_read_and_one_that_grows_without_end_is_not(export: tuple[Path, Document]) -> None:
    folder, document = export
    (folder / "a.json.gz").write_bytes(gzip.compress(json.dumps(document).encode()))
    source, counts = read(folder / "a.json.gz", folder / "images")
    assert sum(len(record.boxes) for record in source.records) == 9 and not counts
    (folder / "b.json.gz").write_bytes(gzip.compress(b" " * (64 << 20)))
    with pytest.raises(UserError, match="grows to more than"):
        read(folder / "b.json.gz", folder / "images")
    (folder / "c.json.gz").write_bytes((folder / "a.json.gz").read_bytes()[:90])
    with pytest.raises(UserError, match="damaged gzip"):
        read(folder / "c.json.gz", folder / "images")


def test_a_zip_is_read_as_it_was_exported(export: tuple[Path, Document]) -> None:
    folder, document = export
    archive = folder / "cvat.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("annotations/instances_default.json", json.dumps(document))
        target.writestr("__MACOSX/annotations/._instances_default.json", "x")
        for name in FILES:
            target.write(folder / "images" / name, f"images/default/{name}")
    expected = {name: draw(number)[1] for number, name in enumerate(FILES)}
    for number, images in enumerate(("-", str(archive), str(folder / "images"))):
        assert main(["data", "shard", str(archive), images, str(folder / f"out{number}")]) == 0
        assert built(folder / f"out{number}") == expected
    damaged = bytearray(archive.read_bytes())
    damaged[400:480] = bytes(80)
    (folder / "damaged.zip").write_bytes(damaged)
    assert main(["data", "check", str(folder / "damaged.zip")]) in (0, 2)


def test_the_splits_of_a_zip_are_read_one_by_one(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as target:
        for split, numbers in (("train", (0, 1)), ("valid", (2,))):
            names = [f"{number}.jpg" for number in range(len(numbers))]
            (tmp_path / split).mkdir()
            for number, name in zip(numbers, names, strict=True):
                draw(number)[0].save(tmp_path / split / name)
                target.write(tmp_path / split / name, f"{split}/{name}")
            document = coco([draw(number)[1] for number in numbers], names)
            target.writestr(f"{split}/_annotations.coco.json", json.dumps(document))
        target.writestr("README.roboflow.txt", "hello")
    with pytest.raises(UserError, match=r"holds train/_annotations.coco.json, valid/.*give train, val or test"):
        read(tmp_path / "export.zip", None)
    for split, numbers in (("train", (0, 1)), ("valid", (2,)), ("val", (2,))):
        assert main(["data", "shard", str(tmp_path / "export.zip"), split, str(tmp_path / f"out-{split}")]) == 0
        assert list(built(tmp_path / f"out-{split}").values()) == [draw(number)[1] for number in numbers]


# --- nothing left


def crowds(entry: Document) -> None:
    entry["iscrowd"] = 1


def panoptic(entry: Document) -> None:
    entry["segments_info"] = [{"id": 1, "category_id": entry.pop("category_id"), "bbox": entry.pop("bbox")}]


def key_points(entry: Document) -> None:
    entry |= {"bbox": [], "keypoints": [58, 23, 2]}


@pytest.mark.parametrize(
    ("change", "cause"),
    [(crowds, "objects_all_crowds"), (panoptic, "annotation_panoptic"), (key_points, "box_malformed")],
)
def test_a_dataset_without_a_box_is_refused_with_its_cause(
    export: tuple[Path, Document], change: Callable[[Document], None], cause: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, document = export
    for entry in document["annotations"]:
        change(entry)
    path = write_json(folder / "a.json", document)
    assert main(["data", "shard", str(path), str(folder / "images"), str(folder / "out")]) == 2
    told = capsys.readouterr().err
    assert "none of the annotated boxes can be used; mainly" in told and cause in told and "Traceback" not in told
    assert not (folder / "out" / "manifest.json").exists()
    assert main(["data", "check", str(path), str(folder / "images"), "--strict"]) == 1
    assert cause in capsys.readouterr().err


@pytest.mark.parametrize(("num_crowds", "is_told"), [(4, False), (5, True), (8, True)])
def test_a_dataset_that_is_mostly_crowds_is_told(
    export: tuple[Path, Document], num_crowds: int, is_told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, document = export
    for entry in document["annotations"][:num_crowds]:
        crowds(entry)
    path = write_json(folder / "a.json", document)
    for command in (
        ["shard", str(path), str(folder / "images"), str(folder / "out")],
        ["check", str(path), str(folder / "images")],
    ):
        assert main(["data", *command]) == 0
        told = capsys.readouterr().err
        assert (f"({num_crowds} crowds, {9 - num_crowds} other object" in told) is is_told
        assert ("objects_mostly_crowds" in told) is is_told


@pytest.mark.parametrize(("num_bad", "code"), [(2, 0), (5, 2)])
def test_more_lost_boxes_than_allowed_are_an_error(
    export: tuple[Path, Document], num_bad: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, document = export
    for entry in document["annotations"][:num_bad]:
        entry["category_id"] = 77
    path = write_json(folder / "a.json", document)
    arguments = ["data", "shard", str(path), str(folder / "images"), str(folder / "out")]
    assert main(arguments) == code
    assert ("56% of the annotated objects are lost" in capsys.readouterr().err) == (code == 2)
    assert main([*arguments, "--max-skipped", "0.9"]) == 0
    shutil.rmtree(folder / "out")
    assert main([*arguments, "--max-skipped", "0.9", "--split", "0.0-0.5"]) in (0, 2)


@pytest.mark.parametrize("is_null", [False, True])
def test_a_test_set_has_no_annotations(export: tuple[Path, Document], is_null: bool) -> None:
    folder, document = export
    document.pop("annotations")
    document |= {"annotations": None} if is_null else {}
    path = write_json(folder / "image_info_test-dev2017.json", copy.deepcopy(document))
    assert main(["data", "shard", str(path), str(folder / "images"), str(folder / "out")]) == 0
    assert built(folder / "out") == {name: [] for name in FILES}
