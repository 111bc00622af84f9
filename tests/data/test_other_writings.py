"""Annotations that say the right thing in another way: other sizes, units, encodings, names of elements, archives."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.exports import (
    HEIGHT,
    NAMES,
    WIDTH,
    Box,
    built,
    coco,
    read,
    save_images,
    save_labels,
    voc,
    write_json,
    yolo_line,
)
from yolofleet.cli.main import main
from yolofleet.core.errors import UserError
from yolofleet.data.image_formats import has_more_frames
from yolofleet.data.other_tools import other_tool
from yolofleet.data.problems import ProblemLog
from yolofleet.data.zip_folder import ZipFolder

STEMS = ("a", "b", "c")
FILES = [f"{stem}.jpg" for stem in STEMS]


def save_voc(folder: Path, every: list[list[Box]], change: Callable[[str], str | bytes] = str) -> None:
    (folder / "Annotations").mkdir()
    for stem, boxes in zip(STEMS, every, strict=True):
        text = change(voc(boxes, f"{stem}.jpg"))
        (folder / "Annotations" / f"{stem}.xml").write_bytes(text if isinstance(text, bytes) else text.encode())


def save_yolo(folder: Path) -> list[list[Box]]:
    every = save_images(folder / "images", *FILES)
    save_labels(folder / "labels", dict(zip(STEMS, every, strict=True)))
    (folder / "classes.txt").write_text("\n".join(NAMES))
    return every


@pytest.mark.parametrize("gain", [0.25, 0.5, 3.0])
def test_boxes_of_a_larger_or_smaller_copy_are_scaled(tmp_path: Path, gain: float) -> None:
    every = save_images(tmp_path / "images", *FILES)
    scaled = coco([[[side * gain for side in box] for box in boxes] for boxes in every], FILES)
    for image in scaled["images"]:
        image |= {"width": int(WIDTH * gain), "height": int(HEIGHT * gain)}
    path = write_json(tmp_path / "a.json", scaled)
    assert main(["data", "shard", str(path), str(tmp_path / "images"), str(tmp_path / "out")]) == 0
    for name, boxes in zip(FILES, every, strict=True):
        assert np.allclose(sorted(built(tmp_path / "out")[name]), sorted(boxes), atol=1e-6)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {kind: entry["count"] for kind, entry in manifest["problems"].items()} == {"image_size_scaled": 3}


@pytest.mark.parametrize("size", [(WIDTH - 1, HEIGHT), (WIDTH * 2, HEIGHT), (HEIGHT, WIDTH), (WIDTH // 4, HEIGHT // 4)])
def test_a_size_of_another_shape_or_one_that_does_not_hold_the_boxes_is_only_counted(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    every = save_images(tmp_path / "images", *FILES)
    document = coco(every, FILES)
    for image in document["images"]:
        image |= {"width": size[0], "height": size[1]}
    path = write_json(tmp_path / "a.json", document)
    assert main(["data", "shard", str(path), str(tmp_path / "images"), str(tmp_path / "out")]) == 0
    assert built(tmp_path / "out") == dict(zip(FILES, every, strict=True))
    problems = json.loads((tmp_path / "out" / "manifest.json").read_text())["problems"]
    assert problems["image_size_wrong"]["count"] == 3 and "image_size_scaled" not in problems


@pytest.mark.parametrize("form", ["coco", "voc"])
def test_shares_in_place_of_pixels_are_refused_with_the_cure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    every = save_images(tmp_path / "images", *FILES)
    shares = [[[x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT] for x, y, w, h in boxes] for boxes in every]
    if form == "coco":
        source = write_json(tmp_path / "a.json", coco(shares, FILES))
    else:
        save_voc(tmp_path, [[[x - 1, y - 1, w + 1, h + 1] for x, y, w, h in boxes] for boxes in shares])
        source = tmp_path / "Annotations"
    assert main(["data", "shard", str(source), str(tmp_path / "images"), str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "9 of 9 boxes lie in the first pixel" in message and "multiply them" in message and str(source) in message


def test_a_box_in_the_first_pixel_is_a_box_where_the_others_are_not(tmp_path: Path) -> None:
    every = save_images(tmp_path / "images", *FILES)
    every[0][0] = [0.0, 0.0, 0.5, 0.5]
    source, counts = read(write_json(tmp_path / "a.json", coco(every, FILES)), tmp_path / "images")
    assert source.records[0].boxes.tolist() == every[0] and not counts


VOC_FORMS: dict[str, Callable[[str], str | bytes]] = {
    "namespace": lambda text: text.replace("<annotation>", '<annotation xmlns="http://example.org/voc">'),
    "upper case": lambda text: text.replace("object>", "Object>").replace("bndbox>", "BndBox>"),
    "blank lines before the declaration": lambda text: f"\n\n<?xml version='1.0'?>\n{text}",
    "UTF-16": lambda text: f"<?xml version='1.0' encoding='utf-16'?>{text}".encode("utf-16"),
}


@pytest.mark.parametrize("form", VOC_FORMS)
def test_elements_of_voc_are_known_however_they_are_written(tmp_path: Path, form: str) -> None:
    every = save_images(tmp_path / "images", *FILES)
    save_voc(tmp_path, every, VOC_FORMS[form])
    source, counts = read(tmp_path / "Annotations", tmp_path / "images")
    assert [record.boxes.tolist() for record in source.records] == every and not counts


def test_an_xml_of_something_else_is_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every = save_images(tmp_path / "images", *FILES)
    save_voc(tmp_path, every)
    (tmp_path / "Annotations" / "a.xml").write_text("<annotations><image/></annotations>")
    source, counts = read(tmp_path / "Annotations", tmp_path / "images")
    assert [record.file_name for record in source.records] == ["b.jpg", "c.jpg"] and counts == {
        "annotation_malformed": 1
    }
    for stem in STEMS:
        (tmp_path / "Annotations" / f"{stem}.xml").write_text("<annotations><image/></annotations>")
    assert main(["data", "check", str(tmp_path / "Annotations"), str(tmp_path / "images")]) == 2
    assert "is CVAT's own XML" in capsys.readouterr().err


def test_objects_without_a_box_are_named_where_no_object_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every = save_images(tmp_path / "images", *FILES)
    save_voc(tmp_path, every, lambda text: text.replace("bndbox>", "robndbox>"))
    assert main(["data", "check", str(tmp_path / "Annotations"), str(tmp_path / "images")]) == 2
    assert "no object can be used; box_malformed: 9" in capsys.readouterr().err


def test_text_of_windows_is_read_by_its_byte_order_mark(tmp_path: Path) -> None:
    every = save_yolo(tmp_path)
    for path in (*(tmp_path / "labels").iterdir(), tmp_path / "classes.txt"):
        path.write_bytes(path.read_text().replace("\n", "\r\n").encode("utf-16"))
    (tmp_path / "train.txt").write_bytes("\r\n".join(f"images/{name}" for name in FILES).encode("utf-16"))
    (tmp_path / "data.yaml").write_text(f"names: {list(NAMES)}\ntrain: train.txt\n")
    source, counts = read(tmp_path / "labels", tmp_path / "images", classes=tmp_path / "classes.txt")
    assert [record.boxes.round(6).tolist() for record in source.records] == every and not counts
    source, counts = read(tmp_path / "data.yaml", None)
    assert [record.boxes.round(6).tolist() for record in source.records] == every and not counts


def test_images_that_differ_only_in_their_ending_are_told(tmp_path: Path) -> None:
    every = save_yolo(tmp_path)
    save_images(tmp_path / "images", "a.png")
    assert read(tmp_path / "labels", tmp_path / "images")[1]["label_of_several_images"] == 1
    save_voc(tmp_path, every)
    assert read(tmp_path / "Annotations", tmp_path / "images")[1] == {"label_of_several_images": 1}


def test_a_confidence_and_a_track_number_are_left_out(tmp_path: Path) -> None:
    every = save_yolo(tmp_path)
    for stem, boxes in zip(STEMS, every, strict=True):
        lines = [yolo_line(number, box, 0.9, number) for number, box in enumerate(boxes)]
        (tmp_path / "labels" / f"{stem}.txt").write_text("\n".join(lines))
    source, counts = read(tmp_path / "labels", tmp_path / "images", classes=tmp_path / "classes.txt")
    assert [record.boxes.round(6).tolist() for record in source.records] == every
    assert counts == {"key_points_left_out": 9}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_list_that_is_there_twice_is_refused(tmp_path: Path, encoding: str) -> None:
    every = save_images(tmp_path / "images", *FILES)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(coco(every, FILES))[:-1] + ', "annotations": []}', encoding=encoding)
    with pytest.raises(UserError, match=r"a\.json: key 'annotations' is there 2 times; leave one of them"):
        read(path, tmp_path / "images")
    harmless = coco(every, FILES) | {"info": {"annotations": "by hand", "images": "ours"}}
    source, counts = read(write_json(path, harmless), tmp_path / "images")
    assert [record.boxes.tolist() for record in source.records] == every and not counts


FOREIGN: dict[str, tuple[str, Any]] = {
    "labelme": ("a.json", {"shapes": [], "imagePath": "a.jpg"}),
    "Label Studio": ("a.json", [{"image": "a.jpg", "label": [{"rectanglelabels": ["red"], "x": 1}]}]),
    "Supervisely": ("a.json", {"objects": [{"classTitle": "red", "geometryType": "rectangle"}]}),
    "CreateML": ("a.json", [{"image": "a.jpg", "annotations": [{"label": "red", "coordinates": {"x": 1}}]}]),
    "FiftyOne": ("a.json", {"samples": [{"filepath": "a.jpg", "detections": [{"bounding_box": [0, 0, 1, 1]}]}]}),
    "VIA": ("a.json", {"_via_settings": {}, "_via_img_metadata": {}}),
    "Darwin": ("a.json", {"version": "2.0", "item": {"slots": []}, "annotations": [{"bounding_box": {"h": 1}}]}),
    "Scale": ("a.json", [{"task_id": "1", "response": {"annotations": [{"left": 1, "top": 2}]}}]),
    "BDD": ("a.json", [{"name": "a.jpg", "labels": [{"category": "car", "box2d": {"x1": 1}}]}]),
    "VoTT": ("a.json", {"assets": {"a": {"asset": {"name": "a.jpg"}, "regions": [{"boundingBox": {"left": 3}}]}}}),
    "CrowdHuman": ("a.odgt", {"ID": "a", "gtboxes": [{"tag": "person", "fbox": [1, 2, 3, 4]}]}),
    "Ultralytics": ("a.ndjson", {"type": "dataset", "task": "detect", "class_names": {"0": "red"}}),
    "Labelbox": ("a.ndjson", {"data_row": {"external_id": "a.jpg"}, "projects": {}}),
    "SageMaker": ("a.manifest", {"source-ref": "s3://x/a.jpg", "bb": {"annotations": []}}),
    "dlib": ("a.xml", "<dataset><images><image file='a.jpg'><box top='1'/></image></images></dataset>"),
}


@pytest.mark.parametrize("tool", FOREIGN)
def test_a_file_of_another_tool_is_known_by_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tool: str
) -> None:
    name, document = FOREIGN[tool]
    save_images(tmp_path, "x.jpg")
    path = write_json(tmp_path / name, document)
    if isinstance(document, str):
        path.write_text(document)
    (tmp_path / f"b{path.suffix}").write_text(path.read_text())
    for arguments in (
        ["data", "shard", str(path), str(tmp_path), str(tmp_path / "out")],
        ["data", "check", str(tmp_path), str(tmp_path)],
        ["init", str(tmp_path), "--out", str(tmp_path / "made")],
    ):
        assert main(arguments) == 2
        message = capsys.readouterr().err
        assert tool in message and "cannot be read" in message and name in message, arguments


def test_annotations_that_are_read_are_of_no_other_tool(tmp_path: Path) -> None:
    every = save_images(tmp_path, *FILES)
    assert other_tool("a.json", json.dumps(coco(every, FILES)).encode()) is None
    assert other_tool("a.xml", voc(every[0], "a.jpg").encode()) is None


def pack(path: Path, files: list[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files:
            entry = zipfile.ZipInfo("x")
            entry.filename = name  # the constructor would change it
            archive.writestr(entry, data)
    return path


def test_a_zip_with_backslashes_is_read_and_leads_nowhere_else(tmp_path: Path) -> None:
    every = save_yolo(tmp_path)
    files = [
        ("\\".join(("set", *path.relative_to(tmp_path).parts)), path.read_bytes())
        for path in sorted(tmp_path.rglob("*.*"))
    ]
    path = pack(tmp_path / "set.zip", [*files, ("set\\..\\..\\evil.jpg", b"x")])
    assert (
        main(["data", "shard", str(path), "-", str(tmp_path / "out"), "--classes", str(tmp_path / "classes.txt")]) == 0
    )
    assert {
        name.rpartition("/")[2]: np.round(boxes, 6).tolist() for name, boxes in built(tmp_path / "out").items()
    } == (dict(zip(FILES, every, strict=True)))
    problems = json.loads((tmp_path / "out" / "manifest.json").read_text())["problems"]
    assert problems["file_name_unusable"]["count"] == 1


def test_a_zip_in_which_some_names_have_backslashes_is_read_whole(tmp_path: Path) -> None:
    every = save_images(tmp_path / "images", *FILES)
    images = [(f"set/images/{name}", (tmp_path / "images" / name).read_bytes()) for name in FILES]
    document = json.dumps(coco(every, FILES)).encode()
    path = pack(tmp_path / "set.zip", [("set\\notes\\", b""), ("set\\notes\\a.json", document), *images])
    problems = ProblemLog()
    keys = [entry.key for entry in ZipFolder(path, problems).list()]
    assert keys == [*(name for name, _ in images), "set/notes/a.json"] and not problems.counts


def test_an_archive_in_an_archive_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inner = pack(tmp_path / "inner.zip", [("images/a.jpg", b"x")])
    path = pack(tmp_path / "outer.zip", [("export/inner.zip", inner.read_bytes())])
    assert main(["data", "shard", str(path), "-", str(tmp_path / "out")]) == 2
    assert "unpack the archive in it, and name that: export/inner.zip" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_a_zip_has_twice_is_told(tmp_path: Path) -> None:
    save_yolo(tmp_path)
    files = [(path.relative_to(tmp_path).as_posix(), path.read_bytes()) for path in sorted(tmp_path.rglob("*.*"))]
    source, counts = read(pack(tmp_path / "set.zip", [*files, ("labels/a.txt", b"")]), None)
    assert counts["file_name_repeated"] == 1 and not len(source.records[0].boxes)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_file_that_a_zip_would_unpack_at_once_is_counted_and_never_opened(tmp_path: Path, method: int) -> None:
    save_yolo(tmp_path)
    files = [(path.relative_to(tmp_path).as_posix(), path.read_bytes()) for path in sorted(tmp_path.rglob("*.*"))]
    path = pack(tmp_path / "set.zip", files)
    with zipfile.ZipFile(path, "a", method) as archive:
        archive.writestr("images/more.jpg", bytes(1 << 20))
    problems = ProblemLog()
    folder = ZipFolder(path, problems)
    assert [entry.key for entry in folder.list()] == sorted(name for name, _ in files)
    assert problems.counts == {"file_unreadable": 1}
    assert problems.examples["file_unreadable"][0].endswith("and only deflate is read; unpack the archive")


def test_a_set_that_data_yaml_names_and_that_is_not_found_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_images(tmp_path, *(f"images/{split}/{name}" for split in ("train", "val") for name in FILES))
    for split in ("train", "val"):
        save_labels(tmp_path / "labels" / split, {stem: [[5.0, 5.0, 20.0, 20.0]] for stem in STEMS})
    for wrong in ("train", "val"):
        paths = {split: f"images/{split}" for split in ("train", "val")} | {wrong: "images/elsewhere"}
        (tmp_path / "data.yaml").write_text(json.dumps({"names": list(NAMES), **paths}))
        assert main(["init", str(tmp_path), "--out", str(tmp_path / "made")]) == 2
        assert f"{wrong} has no image where it says" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("form", ["PNG", "WEBP", "GIF", "TIFF", "AVIF"])
def test_further_frames_and_pages_are_told_and_single_ones_are_not(form: str) -> None:
    frames = [Image.new("RGB", (24, 24), colour) for colour in ("red", "blue")]
    for more in (frames[1:], []):
        data = io.BytesIO()
        frames[0].save(data, form, save_all=True, append_images=more)
        assert has_more_frames(data.getvalue()) is bool(more)
