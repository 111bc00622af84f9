"""YOLO folders as tools write them: key points, segments, oriented boxes, names of classes and of files, data.yaml."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from data.exports import boxes_by_name, built, read, save_images, save_labels, yolo_line
from yolofleet.cli.main import main
from yolofleet.core.errors import UserError
from yolofleet.data.problems import ProblemLog
from yolofleet.data.yolo_lines import LabelLine, key_point_numbers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "labels").mkdir()
    return tmp_path


# --- lines


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("count", [2, 3, 4, 5, 17, 21])
@pytest.mark.parametrize("stated", [False, True])
def test_the_box_of_a_line_with_key_points_is_its_first_four_numbers(
    folder: Path, dimensions: int, count: int, stated: bool
) -> None:
    every = save_images(folder / "images", "a.jpg", "b.jpg")
    generator = np.random.default_rng(count)
    for stem, boxes in zip("ab", every, strict=True):
        lines = []
        for category, (x, y, width, height) in enumerate(boxes):
            points = [[x / 160, y / 120], [(x + width) / 160, (y + height) / 120]]
            for _ in range(count - 2):
                points.append([generator.uniform(x, x + width) / 160, generator.uniform(y, y + height) / 120])
            flags = [[int(generator.integers(1, 3))] for _ in points] if dimensions == 3 else [[]] * count
            numbers = [value for point, flag in zip(points, flags, strict=True) for value in (*point, *flag)]
            lines.append(yolo_line(category, [x, y, width, height], *numbers))
        (folder / "labels" / f"{stem}.txt").write_text("\n".join(lines))
    (folder / "names.yaml").write_text(f"names: [red, green, blue]\nkpt_shape: [{count}, {dimensions}]\n")
    source, counts = read(folder / "labels", folder / "images", folder / "names.yaml" if stated else None)
    assert boxes_by_name(source) == dict(zip(("a.jpg", "b.jpg"), every, strict=True))
    assert counts == {"key_points_left_out": 6} | ({} if stated else {"class_names_missing": 1})
    assert all(polygon is None for record in source.records for polygon in record.segmentations)


def lines_of(rows: list[list[float]]) -> list[LabelLine]:
    return [LabelLine(0, row, "") for row in rows]


@pytest.mark.parametrize("size", [0.03, 0.1, 0.3, 0.6])
@pytest.mark.parametrize("corners", [4, 5, 6, 8, 12])
def test_polygons_of_one_length_are_no_key_points(size: float, corners: int) -> None:
    generator = np.random.default_rng(corners)
    rows = []
    for _ in range(200):
        centre, radius = generator.uniform(size / 2, 1 - size / 2, 2), generator.uniform(0.6, 1, corners) * size / 2
        angles = np.sort(generator.uniform(0, 2 * np.pi, corners))
        points = centre + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        rows.append(points.ravel().tolist())
    assert key_point_numbers(lines_of(rows), "x", ProblemLog()) is None


@pytest.mark.parametrize("size", [0.03, 0.2, 0.5])
def test_oriented_boxes_are_polygons(size: float) -> None:
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(200):
        along = generator.uniform(0.3, 1, 2) * size / 2
        across = np.array([-along[1], along[0]]) * generator.uniform(0.2, 1)
        centre = generator.uniform(size, 1 - size, 2) if size < 0.5 else np.array([0.5, 0.5])
        corners = (centre + along + across, centre + along - across, centre - along - across, centre - along + across)
        rows.append(np.concatenate(corners).tolist())
    assert key_point_numbers(lines_of(rows), "x", ProblemLog()) is None


@pytest.mark.parametrize("side", [0.1, 0.5, 0.95])
def test_key_points_of_small_and_of_large_objects_are_told(side: float) -> None:
    generator = np.random.default_rng(1)
    rows = []
    for _ in range(200):
        sides = generator.uniform(0.7, 1, 2) * side
        centre = generator.uniform(sides / 2, 1 - sides / 2)
        points = centre + generator.uniform(-0.5, 0.5, (5, 2)) * sides
        rows.append([*centre, *sides, *points.ravel()])
    assert key_point_numbers(lines_of(rows), "x", ProblemLog()) == 10


@pytest.mark.parametrize(
    ("line", "look"),
    [
        ("0 0.5 0.5 0.2 0.2 0.87", "a confidence at the end"),
        ("0,0.5,0.5,0.2,0.2", "commas"),
        ("cat 0.5 0.5 0.2 0.2", "a name in place of the class's number"),
        ("0 10 20 60 80", "pixels instead of shares of the image's sides and corners"),
        ("0 60 80 10 20", "pixels instead of shares"),
    ],
)
def test_lines_that_cannot_be_read_say_what_they_look_like(
    folder: Path, capsys: pytest.CaptureFixture[str], line: str, look: str
) -> None:
    save_images(folder / "images", "a.jpg")
    (folder / "labels" / "a.txt").write_text(f"{line}\n" * 3)
    assert main(["data", "shard", str(folder / "labels"), str(folder / "images"), str(folder / "out")]) == 2
    told = capsys.readouterr().err
    assert look in told and "label_line_malformed: 3" in told and "--classes" not in told
    (folder / "names.txt").write_text("red\n")
    options = ("--classes", str(folder / "names.txt"))
    assert main(["data", "shard", str(folder / "labels"), str(folder / "images"), str(folder / "out"), *options]) == 2
    assert look in capsys.readouterr().err


OUTLINES = {
    "a box of which nothing is lost": ("0 0.5 0.5 1.0005 0.5", [-0.04, 30.0, 160.08, 60.0], 0),
    "a polygon by less than a pixel": ("0 0.5 0.25 1.0005 0.25 1.0005 0.75 0.5 0.75", [80.0, 30.0, 80.08, 60.0], 0),
    "a polygon by more": ("0 0.5 0.25 1.05 0.25 1.05 0.75 0.5 0.75", [80.0, 30.0, 80.0, 60.0], 1),
    "a corner of an oriented box": ("0 0.9 0.2 1.05 0.5 0.9 0.8 0.75 0.5", [120.0, 24.0, 40.0, 72.0], 1),
    "a whole outline": ("0 1.02 0.2 1.08 0.2 1.08 0.5 1.02 0.5", None, 0),
    "one that is too far outside": ("0 0.5 0.25 1.2 0.25 1.2 0.75 0.5 0.75", None, 0),
}


@pytest.mark.parametrize("case", OUTLINES)
def test_what_reaches_a_little_out_of_its_image_is_clipped_and_not_lost(folder: Path, case: str) -> None:
    line, box, clipped = OUTLINES[case]
    inside = save_images(folder / "images", "a.jpg")[0]
    (folder / "labels" / "a.txt").write_text(f"{line}\n{yolo_line(1, inside[0])}\n")
    assert main(["data", "shard", str(folder / "labels"), str(folder / "images"), str(folder / "out")]) == 0
    assert built(folder / "out")["a.jpg"] == [*([box] if box is not None else []), inside[0]]
    problems = json.loads((folder / "out" / "manifest.json").read_text())["problems"]
    assert problems.get("box_clipped", {"count": 0})["count"] == clipped


def test_the_box_of_an_outline_that_leaves_its_image_is_that_of_its_visible_part(folder: Path) -> None:
    save_images(folder / "images", "a.jpg")
    (folder / "labels" / "a.txt").write_text("0 0.9 0.0 1.1 0.5 0.9 0.2 0.8 0.1\n")
    assert main(["data", "shard", str(folder / "labels"), str(folder / "images"), str(folder / "out")]) == 0
    (box,) = built(folder / "out")["a.jpg"]
    assert np.allclose(box, [128.0, 0.0, 32.0, 42.0])  # and not down to the corner outside, at 60


def test_corners_in_place_of_centre_and_sides_are_told(folder: Path) -> None:
    save_images(folder / "images", "a.jpg")
    rows = [f"0 {x} {y} {x + 0.2} {y + 0.3}" for x in (0.1, 0.3, 0.5) for y in (0.1, 0.4)]
    (folder / "labels" / "a.txt").write_text("\n".join(rows))
    assert read(folder / "labels", folder / "images")[1]["boxes_look_like_corners"] == 1


# --- names of files


def test_images_named_like_lists_keep_their_labels(folder: Path) -> None:
    stems = ("car", "classes", "labels", "test", "train", "val")
    every = dict(zip(stems, save_images(folder / "images", *(f"{stem}.jpg" for stem in stems)), strict=True))
    save_labels(folder / "labels", every)
    source, counts = read(folder / "labels", folder / "images")
    assert boxes_by_name(source) == {f"{stem}.jpg": boxes for stem, boxes in every.items()}
    assert counts == {"class_names_missing": 1}


def test_labels_are_found_in_other_forms_of_the_names_and_lost_ones_are_told(folder: Path) -> None:
    names = (unicodedata.normalize("NFD", "café.jpg"), "IMG_1.JPG", "sub/deep.jpg", "lonely.jpg")
    every = save_images(folder / "images", *names)
    stems = (unicodedata.normalize("NFC", "café"), "img_1", "deep", "other")
    save_labels(folder / "labels", dict(zip(stems, every, strict=True)))
    source, counts = read(folder / "labels", folder / "images")
    found = boxes_by_name(source)
    assert [found[name] for name in names] == [*every[:3], []]
    assert counts == {
        "file_name_repaired": 3,
        "label_file_missing": 1,
        "label_without_image": 1,
        "class_names_missing": 1,
    }


def test_litter_is_no_image_and_no_label(folder: Path) -> None:
    every = save_images(folder / "images", "a.jpg", ".ipynb_checkpoints/a-checkpoint.jpg", "__MACOSX/._a.jpg")
    save_labels(folder / "labels", {"a": every[0], ".ipynb_checkpoints/a-checkpoint": every[1]})
    for name in ("images/._a.jpg", "images/Thumbs.db", "images/.DS_Store", "labels/._a.txt"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    (folder / "images" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    source, counts = read(folder / "labels", folder / "images")
    assert boxes_by_name(source) == {"a.jpg": every[0]}
    assert counts == {"file_hidden": 7, "file_not_image": 1, "class_names_missing": 1}


def test_nothing_fits_is_refused_with_both_names(folder: Path) -> None:
    every = save_images(folder / "images", "one.jpg")
    save_labels(folder / "labels", {"two": every[0]})
    with pytest.raises(UserError, match=r"no label file has the name of an image: labels are such as 'two\.txt'"):
        read(folder / "labels", folder / "images")


def test_labels_under_other_names_than_most_images_count_as_the_boxes_that_they_hold(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every = save_images(folder / "images", "a.jpg", "b.jpg", "c.jpg")
    save_labels(folder / "labels", {"a": every[0][:1], "hash-b": every[1], "hash-c": every[2]})
    assert main(["data", "shard", str(folder / "labels"), str(folder / "images"), str(folder / "out")]) == 2
    assert "86% of the annotated objects are lost" in (told := capsys.readouterr().err)
    assert "label_name_unmatched: 6" in told


@pytest.mark.parametrize(
    ("labels", "images", "others", "num_told"),
    [
        ("labels/{0}", "images/train/{0}", "labels/x{0}", 9),
        ("labels/val/{0}", "images/val/{0}", "labels/train/x{0}", 0),
        ("labels/{0}", "images/val/{0}", "labels/backup/{0}", 6),
        ("labels/s{0}/image", "images/val/s{0}/image", "labels/t{0}/image", 9),
    ],
)
def test_labels_of_other_images_are_no_loss(folder: Path, labels: str, images: str, others: str, num_told: int) -> None:
    every = save_images(folder, *(f"{images.format(number)}.jpg" for number in range(3)))
    save_labels(folder, {labels.format(number): boxes for number, boxes in enumerate(every)})
    save_labels(folder, {others.format(number): every[0] for number in range(9)})
    source, counts = read(folder / "labels", folder / "images" / images.split("/")[1])
    assert sum(len(record.boxes) for record in source.records) == sum(map(len, every))
    assert counts.get("label_without_image", 0) == num_told and "label_name_unmatched" not in counts
