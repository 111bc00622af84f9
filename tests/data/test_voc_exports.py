"""VOC folders as tools write them: which image an XML is of."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data.exports import boxes_by_name, built, draw, read, save_images, voc
from yolofleet.cli.main import main


def save(folder: Path, xmls: dict[str, str]) -> None:
    for number, (stem, filename) in enumerate(xmls.items()):
        path = folder / "Annotations" / f"{stem}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(voc(draw(number)[1], filename))


@pytest.mark.parametrize(
    ("images", "xmls", "expected", "counts"),
    [
        (["a", "b", "c"], {"a": "a.jpg", "b": "a.jpg", "c": "a.jpg"}, ["a", "b", "c"], {"file_name_differs": 2}),
        (["a", "b"], {"a": "b.jpg", "b": "a.jpg"}, ["a", "b"], {"file_name_differs": 2}),
        (["a", "b"], {"x1": "a.jpg", "x2": "b.jpg"}, ["a", "b"], {"file_name_repaired": 2}),
        (["a", "b"], {"a": "a", "b": "C:\\me\\b.jpg"}, ["a", "b"], {}),
        (["a", "b"], {"a": "", "b": "renamed.png"}, ["a", "b"], {"file_name_differs": 1}),
        (["s1/a", "a"], {"s1/a": "a.jpg", "a": "a.jpg"}, ["s1/a", "a"], {}),
        (["a"], {"a": "a.jpg", "copy": "a.jpg"}, ["a", "a"], {"file_name_repaired": 1, "image_duplicate_file": 1}),
        (["deep/a"], {"a": "a.jpg"}, ["deep/a"], {"file_name_repaired": 1}),
        (["A"], {"a": "a.jpg"}, ["A"], {"file_name_repaired": 1}),
        (["a"], {"a": "a.jpg", "gone": "gone.jpg"}, ["a", "gone"], {}),
    ],
)
def test_an_xml_is_of_the_image_of_its_own_name(
    tmp_path: Path, images: list[str], xmls: dict[str, str], expected: list[str], counts: dict[str, int]
) -> None:
    save_images(tmp_path / "images", *(f"{name}.jpg" for name in images))
    save(tmp_path, xmls)
    source, counted = read(tmp_path / "Annotations", tmp_path / "images")
    order = sorted(range(len(xmls)), key=lambda number: f"{list(xmls)[number]}.xml")
    assert [record.file_name for record in source.records] == [f"{expected[number]}.jpg" for number in order]
    assert [record.boxes.tolist() for record in source.records] == [draw(number)[1] for number in order]
    assert counted == counts


def test_two_images_of_one_stem_are_told_apart_by_the_filename(tmp_path: Path) -> None:
    save_images(tmp_path / "images", "a.jpg", "a.jpeg")
    for filename in ("a.jpg", "a.jpeg"):
        save(tmp_path, {"a": filename})
        source, counts = read(tmp_path / "Annotations", tmp_path / "images")
        assert list(boxes_by_name(source)) == [filename] and counts == {"label_of_several_images": 1}


def test_a_zip_of_voc_is_read_as_it_was_exported(tmp_path: Path) -> None:
    save_images(tmp_path / "JPEGImages", "a.jpg", "b.jpg")
    save(tmp_path, {"a": "b.jpg", "b": "a.jpg"})
    with zipfile.ZipFile(tmp_path / "voc.zip", "w") as target:
        for path in sorted(tmp_path.rglob("*.*")):
            if path.suffix in (".jpg", ".xml"):
                target.write(path, path.relative_to(tmp_path))
        target.writestr("ImageSets/Main/default.txt", "a\nb\n")
    assert main(["data", "shard", str(tmp_path / "voc.zip"), "-", str(tmp_path / "out")]) == 0
    assert built(tmp_path / "out") == {f"JPEGImages/{stem}.jpg": draw(number)[1] for number, stem in enumerate("ab")}


def test_class_names_that_are_there_twice_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_images(tmp_path / "images", "a.jpg")
    save(tmp_path, {"a": "a.jpg"})
    (tmp_path / "names.txt").write_text("red\ngreen\nred\nblue\n")
    arguments = ["data", "check", str(tmp_path / "Annotations"), str(tmp_path / "images")]
    assert main([*arguments, "--classes", str(tmp_path / "names.txt")]) == 2
    assert "'red' is there twice" in capsys.readouterr().err


def drawn_object(corners: tuple[object, ...]) -> str:
    names = ("xmin", "ymin", "xmax", "ymax")
    sides = "".join(f"<{side}>{value}</{side}>" for side, value in zip(names, corners, strict=True))
    return f"<object><name>red</name><bndbox>{sides}</bndbox></object>"


@pytest.mark.parametrize(
    ("first", "second", "expected", "num_counted"),
    [
        ((0, 5, 30, 20), (40, 0, 60, 9), ([0, 5, 30, 15], [40, 0, 20, 9]), 2),  # edges, counted from 0
        ((1, 6, 30, 20), (41, 1, 60, 9), ([0, 5, 30, 15], [40, 0, 20, 9]), 0),  # pixels, counted from 1
        ((1, 0, 30, 20), (41, 1, 60, 9), ([0, -1, 30, 21], [40, 0, 20, 9]), 1),  # a slip; clipped where it is used
    ],
)
def test_corners_counted_from_0_are_read_as_edges(
    tmp_path: Path, first: tuple[int, ...], second: tuple[int, ...], expected: tuple[list[int], ...], num_counted: int
) -> None:
    save_images(tmp_path / "images", "a.jpg", "b.jpg")
    (tmp_path / "xml").mkdir()
    for stem, box in (("a", first), ("b", second)):
        text = f"<annotation><size><width>160</width><height>120</height></size>{drawn_object(box)}</annotation>"
        (tmp_path / "xml" / f"{stem}.xml").write_text(text)
    source, counts = read(tmp_path / "xml", tmp_path / "images")
    assert counts == ({"corners_from_zero": num_counted} if num_counted else {})
    assert boxes_by_name(source) == {f"{stem}.jpg": [box] for stem, box in zip("ab", expected, strict=True)}


def annotation(*objects: str) -> str:
    return f"<annotation><size><width>160</width><height>120</height></size>{''.join(objects)}</annotation>"


@pytest.mark.parametrize(
    ("corners", "expected", "counts"),
    [
        (["58.25 23.5 103.5 55.25"], [[58.25, 23.5, 45.25, 31.75]], {"corners_with_decimals": 1}),
        (["58.25 23 103 55", "1 9 20 30"], [[58.25, 23, 44.75, 32], [1, 9, 19, 21]], {"corners_with_decimals": 1}),
        (
            ["1.0 24.5 103.0 55.0"] * 3 + ["59.25 24 103.5 55"] * 17,
            [[0, 23.5, 103, 31.5]] * 3 + [[58.25, 23, 45.25, 32]] * 17,
            {"corners_with_decimals": 1},
        ),
        (
            ["1.0 24.5 103.0 55.0"] * 3 + ["0.0 24.5 103.0 55.0"] * 3,
            [[1, 24.5, 102, 30.5]] * 3 + [[0, 24.5, 103, 30.5]] * 3,
            {"corners_from_zero": 1, "corners_with_decimals": 1},
        ),
        (["58.0 23.0 103.0 55.0"], [[58, 23, 45, 32]], {"corners_unclear": 1}),
        (
            ["0.0 23.0 103.0 55.0", "58.0 23.0 103.0 55.0"],
            [[0, 23, 103, 32], [58, 23, 45, 32]],
            {"corners_from_zero": 1},
        ),
        (
            ["58.0 23.0 103.0 55.0"] * 11 + ["9.0 1.0 20.0 30.0"],
            [[58, 23, 45, 32]] * 11 + [[9, 1, 11, 29]],
            {"corners_unclear": 1},
        ),
        (["1.0 24.0 103.0 55.0", "59.0 24.0 103.0 55.0"], [[0, 23, 103, 32], [58, 23, 45, 32]], {}),
        (["59 24 103 55"], [[58, 23, 45, 32]], {}),
        (
            ["59 24 103 55"] * 20 + ["59.5 24 103 55"],
            [[58, 23, 45, 32]] * 20 + [[58.5, 23, 44.5, 32]],
            {"corners_with_decimals": 1},
        ),
    ],
)
def test_corners_with_decimals_are_edges_unless_the_whole_source_says_pixels(
    tmp_path: Path, corners: list[str], expected: list[list[float]], counts: dict[str, int]
) -> None:
    save_images(tmp_path / "images", "a.jpg")
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml" / "a.xml").write_text(annotation(*(drawn_object(tuple(box.split())) for box in corners)))
    source, counted = read(tmp_path / "xml", tmp_path / "images")
    assert source.records[0].boxes.tolist() == expected and counted == counts


def test_a_rotated_box_of_ro_label_img_becomes_the_upright_one_around_it(tmp_path: Path) -> None:
    sides = "<cx>80.5</cx><cy>60</cy><w>40</w><h>20</h>"
    rotated = f"<object><name>red</name><robndbox>{sides}<angle>{{}}</angle></robndbox></object>"
    save_images(tmp_path / "images", "a.jpg")
    (tmp_path / "xml").mkdir()
    objects = [rotated.format(angle) for angle in (0, math.pi / 2, math.pi / 6)]
    (tmp_path / "xml" / "a.xml").write_text(annotation(*objects, drawn_object((59, 24, 103, 55))))
    source, counts = read(tmp_path / "xml", tmp_path / "images")
    width, height = 40 * math.cos(math.pi / 6) + 10, 20 + 20 * math.cos(math.pi / 6)
    tilted = [80.5 - width / 2, 60 - height / 2, width, height]
    expected = [[60.5, 50, 40, 20], [70.5, 40, 20, 40], tilted, [58, 23, 45, 32]]
    assert np.allclose(source.records[0].boxes, expected) and counts == {"box_rotated": 3}
    (tmp_path / "xml" / "a.xml").write_text(annotation(rotated.format("nan"), rotated.format("inf"), rotated.format(0)))
    source, counts = read(tmp_path / "xml", tmp_path / "images")
    assert len(source.records[0].boxes) == 1 and counts["box_malformed"] + counts["box_not_finite"] == 2


@pytest.mark.parametrize("encoding", ["gb2312", "GBK", "gb18030", "Big5", "Shift-JIS", "EUC-JP", "euc-kr", "UTF-16"])
def test_an_xml_file_in_another_encoding_is_read(tmp_path: Path, encoding: str) -> None:
    save_images(tmp_path / "images", "a.jpg")
    name = "사과" if encoding == "euc-kr" else "水果"
    text = f'<?xml version="1.0" encoding="{encoding}"?>' + voc(draw(0)[1], "a.jpg").replace("red", name)
    (tmp_path / "a.xml").write_bytes(text.encode(encoding))
    source, counts = read(tmp_path, tmp_path / "images")
    assert name in [category.name for category in source.classes] and counts == {}
