from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from yolofleet.core.errors import UserError
from yolofleet.data.check import check_dataset
from yolofleet.data.class_names import read_class_names
from yolofleet.data.problems import ProblemLog
from yolofleet.data.read_source import read_source
from yolofleet.data.yolo import parse_label_lines, usable_lines

VOC = """<annotation><folder>x</folder><filename>{name}.jpg</filename>
<size><width>100</width><height>80</height><depth>3</depth></size>{objects}</annotation>"""
VOC_OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult>
<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("a", "b", "sub/c"):
        pixels = np.zeros((80, 100, 3), dtype=np.uint8)
        (folder / f"{name}.jpg").write_bytes(simplejpeg.encode_jpeg(pixels, colorspace="RGB"))
    return folder


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    folder = tmp_path / "labels"
    (folder / "sub").mkdir(parents=True)
    return folder


def test_yolo_labels_become_boxes_in_pixels(images: Path, labels: Path, tmp_path: Path) -> None:
    (labels / "a.txt").write_text("0 0.5 0.5 0.2 0.25\n2 0.1 0.2 0.4 0.2 0.4 0.6\n")
    (labels / "sub" / "c.txt").write_text("1 0.25 0.25 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("names: {0: cat, 1: dog, 2: owl}\n")
    problems = ProblemLog()
    names = read_class_names(str(tmp_path / "data.yaml"))
    source, store = read_source(str(labels), str(images), problems, class_names=names)
    assert [(entry.id, entry.name) for entry in source.classes] == [(0, "cat"), (1, "dog"), (2, "owl")]
    boxes = {record.file_name: record.boxes.tolist() for record in source.records}
    assert np.allclose(boxes["a.jpg"], [[40, 30, 20, 20], [10, 16, 30, 32]])
    assert boxes["b.jpg"] == [] and boxes["sub/c.jpg"] == [[0, 0, 50, 40]]
    assert source.records[0].segmentations[1] == [[10, 16, 40, 16, 40, 48]]
    assert problems.counts == {"label_file_missing": 1}
    assert check_dataset(source, store, problems).num_usable == 3


def test_the_bad_yolo_lines_of_the_hostile_corpus_are_counted(test_data: Path) -> None:
    text = (test_data / "hostile" / "annotations" / "yolo_bad.txt").read_text()
    problems = ProblemLog()
    names = [str(number) for number in range(8)]
    lines = usable_lines(parse_label_lines(text, "yolo_bad.txt", problems), None, names, problems)
    assert [line.category for line in lines] == [0, 7]
    assert problems.counts == {"label_line_malformed": 5, "category_unknown": 1}


def test_voc_corners_count_from_one_and_difficult_objects_are_no_targets(images: Path, labels: Path) -> None:
    objects = VOC_OBJECT.format(name="dog", difficult=0, x1=1, y1=1, x2=100, y2=80) + VOC_OBJECT.format(
        name="cat", difficult=1, x1=11, y1=21, x2=30, y2=40
    )
    (labels / "a.xml").write_text(VOC.format(name="a", objects=objects))
    (labels / "sub" / "c.xml").write_text(VOC.format(name="sub/c", objects=""))
    problems = ProblemLog()
    source, store = read_source(str(labels), str(images), problems)
    assert [(entry.id, entry.name) for entry in source.classes] == [(1, "cat"), (2, "dog")]
    first = source.records[0]
    assert first.boxes.tolist() == [[0, 0, 100, 80], [10, 20, 20, 20]] and first.iscrowd.tolist() == [False, True]
    report = check_dataset(source, store, problems)
    assert (report.num_usable, report.num_boxes, report.num_crowds, problems.counts) == (2, 1, 1, {})


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("<annotation>", "annotation_malformed"),
        ("", "annotation_malformed"),
        ('<!DOCTYPE x [<!ENTITY a "aaaa">]><annotation>&a;</annotation>', "annotation_malformed"),
        (
            VOC.format(name="a", objects=VOC_OBJECT.format(name="x", difficult=0, x1="?", y1=1, x2=9, y2=9)),
            "box_malformed",
        ),
        (
            VOC.format(name="a", objects=VOC_OBJECT.format(name="x", difficult=0, x1=9, y1=1, x2=1, y2=9)),
            "box_negative",
        ),
        (
            VOC.format(name="a", objects=VOC_OBJECT.format(name="", difficult=0, x1=1, y1=1, x2=9, y2=9)),
            "category_missing",
        ),
        (VOC.format(name="gone", objects="").replace("gone", "gone/x"), None),
    ],
)
def test_bad_voc_files_are_counted(images: Path, labels: Path, text: str, kind: str | None) -> None:
    (labels / "z.xml").write_text(text)
    good = VOC_OBJECT.format(name="dog", difficult=0, x1=1, y1=1, x2=50, y2=50)
    (labels / "b.xml").write_text(VOC.format(name="b", objects=good))
    problems = ProblemLog()
    source, store = read_source(str(labels), str(images), problems)
    report = check_dataset(source, store, problems)
    assert report.num_boxes == 1
    assert (kind or "image_file_missing") in problems.counts


@pytest.mark.parametrize(
    ("arrange", "message"),
    [
        (lambda folder: None, "no such file"),
        (lambda folder: (folder / "x.jpg").write_bytes(b""), "a folder without label files"),
    ],
)
def test_what_is_no_source_is_refused(tmp_path: Path, arrange: Callable[[Path], object], message: str) -> None:
    folder = tmp_path / "nothing"
    folder.mkdir()
    arrange(folder)
    with pytest.raises(UserError, match=message):
        read_source(str(folder) if any(folder.iterdir()) else str(tmp_path / "missing.json"), None, ProblemLog())


def test_a_coco_file_needs_its_images(drawn: Path) -> None:
    with pytest.raises(UserError, match="the folder of images is missing"):
        read_source(str(drawn / "instances.json"), None, ProblemLog())


def test_our_own_shards_are_a_source_too(shards: Path, dataset: object, tmp_path: Path) -> None:
    shutil.copytree(shards / "shards", tmp_path / "tars", ignore=shutil.ignore_patterns("*.index"))
    problems = ProblemLog()
    source, store = read_source(str(tmp_path / "tars"), None, problems)
    report = check_dataset(source, store, problems)
    assert (report.num_usable, problems.num(["drop", "repair"])) == (45, 0)
    assert [record.image_id for record in source.records] == list(range(1, 46))


@pytest.mark.parametrize("text", ["", "names: 3", "names: {1: a}", "{", "- \n"])
def test_class_names_that_make_no_sense_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "names.yaml").write_text(text)
    with pytest.raises(UserError, match=r"names\.yaml"):
        read_class_names(str(tmp_path / "names.yaml"))


def test_class_names_one_a_line(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\ndog\n\n")
    assert read_class_names(str(tmp_path / "classes.txt")) == ["cat", "dog"]
