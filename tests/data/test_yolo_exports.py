"""YOLO folders as tools write them: key points, segments, oriented boxes, names of classes and of files, data.yaml."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from data.exports import NAMES, boxes_by_name, built, read, save_images, save_labels, yolo_line
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
    assert counts == {"key_points_left_out": 6}
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
    assert boxes_by_name(source) == {f"{stem}.jpg": boxes for stem, boxes in every.items()} and not counts


def test_labels_are_found_in_other_forms_of_the_names_and_lost_ones_are_told(folder: Path) -> None:
    names = (unicodedata.normalize("NFD", "café.jpg"), "IMG_1.JPG", "sub/deep.jpg", "lonely.jpg")
    every = save_images(folder / "images", *names)
    stems = (unicodedata.normalize("NFC", "café"), "img_1", "deep", "other")
    save_labels(folder / "labels", dict(zip(stems, every, strict=True)))
    source, counts = read(folder / "labels", folder / "images")
    found = boxes_by_name(source)
    assert [found[name] for name in names] == [*every[:3], []]
    assert counts == {"file_name_repaired": 3, "label_file_missing": 1, "label_without_image": 1}


def test_litter_is_no_image_and_no_label(folder: Path) -> None:
    every = save_images(folder / "images", "a.jpg", ".ipynb_checkpoints/a-checkpoint.jpg", "__MACOSX/._a.jpg")
    save_labels(folder / "labels", {"a": every[0], ".ipynb_checkpoints/a-checkpoint": every[1]})
    for name in ("images/._a.jpg", "images/Thumbs.db", "images/.DS_Store", "labels/._a.txt"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    (folder / "images" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    source, counts = read(folder / "labels", folder / "images")
    assert boxes_by_name(source) == {"a.jpg": every[0]}
    assert counts == {"file_hidden": 7, "file_not_image": 1}


def test_nothing_fits_is_refused_with_both_names(folder: Path) -> None:
    every = save_images(folder / "images", "one.jpg")
    save_labels(folder / "labels", {"two": every[0]})
    with pytest.raises(UserError, match=r"no label file has the name of an image: labels are such as 'two\.txt'"):
        read(folder / "labels", folder / "images")


# --- names of classes


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "red\n\nblue\n", "line 2 is blank"),
        ("a.yaml", 'names: [red, "", blue]', "class 1 is ''"),
        ("a.yaml", "names: {0: red, 1: , 2: blue}", "class 1 is None"),
        ("a.yaml", "names: [red, true, blue]", "class 1 is True"),
        ("a.yaml", "names: [red, 1.50, blue]", "class 1 is 1.5"),
        ("a.yaml", "names: {0: red, 2: blue}", "the numbers must be 0, 1, 2"),
        ("a.yaml", "nc: 5\nnames: [red, green, blue]", "nc is 5, but names holds 3"),
        ("a.yaml", "names: [red]\nkpt_shape: [17]", r"kpt_shape is \[17\]"),
        ("a.yaml", "names: [red, 007]", "octal"),
    ],
)
def test_names_that_would_move_up_are_refused(folder: Path, name: str, text: str, message: str) -> None:
    save_images(folder / "images", "a.jpg")
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read(folder / "labels", folder / "images", folder / name)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("names: [yes, no, on]", ["yes", "no", "on"]),
        ('names: {"0": red, "1": green}', ["red", "green"]),
        ("nc: 2\nnames: [7, x]", ["7", "x"]),
    ],
)
def test_names_are_kept_as_written(folder: Path, text: str, names: list[str]) -> None:
    save_labels(folder / "labels", {"a": save_images(folder / "images", "a.jpg")[0][:2]})
    (folder / "data.yaml").write_text(text)
    source, _ = read(folder / "labels", folder / "images", folder / "data.yaml")
    assert [entry.name for entry in source.classes] == names


@pytest.mark.parametrize("name", ["classes.txt", "obj.names"])
def test_names_among_the_labels_are_used_and_repeated_ones_told(folder: Path, name: str) -> None:
    save_labels(folder / "labels", {"a": save_images(folder / "images", "a.jpg")[0]})
    (folder / "labels" / name).write_text("apple\nbanana\napple\n")
    source, counts = read(folder / "labels", folder / "images")
    assert [entry.name for entry in source.classes] == ["apple", "banana", "apple"]
    assert counts == {"class_names_found": 1, "class_names_repeated": 1}


# --- data.yaml


LAYOUTS = {
    "ultralytics": ("{split}/{name}", "images", "labels", "path: .\ntrain: images/train\nval: images/val\n"),
    "absolute": ("{split}/{name}", "images", "labels", "path: /content/set\ntrain: images/train\nval: [images/val]\n"),
    "roboflow": ("{name}", "{split}/images", "{split}/labels", "train: ../train/images\nval: ../val/images\n"),
    "colab": (
        "{name}",
        "{split}/images",
        "{split}/labels",
        "train: /content/x/train/images\nval: /content/x/val/images\n",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("split", ["-", "train", "val"])
def test_data_yaml_is_one_source_of_all_splits_or_of_one(folder: Path, layout: str, split: str) -> None:
    inner, images, labels, text = LAYOUTS[layout]
    expected = {}
    for part, stems in (("train", "ab"), ("val", "c")):
        names = [inner.format(split=part, name=stem) for stem in stems]
        where = folder / "set" / images.format(split=part)
        every = save_images(where, *(f"{name}.jpg" for name in names))
        save_labels(folder / "set" / labels.format(split=part), dict(zip(names, every, strict=True)))
        if split in ("-", part):
            keys = [(where / f"{name}.jpg").relative_to(folder / "set").as_posix() for name in names]
            expected |= dict(zip(keys, every, strict=True))
    (folder / "set" / "data.yaml").write_text(f"{text}nc: 3\nnames: [red, green, blue]\n")
    assert main(["data", "shard", str(folder / "set" / "data.yaml"), split, str(folder / "out"), "--json"]) == 0
    assert built(folder / "out") == expected
    source, counts = read(folder / "set" / "data.yaml", None if split == "-" else split)
    assert counts == {} and [entry.name for entry in source.classes] == list(NAMES)


def test_data_yaml_may_name_lists_of_images(folder: Path) -> None:
    names = ["images/a.jpg", "images/b.jpg", "images/c.jpg"]
    every = save_images(folder, *names)
    save_labels(folder / "labels", dict(zip("abc", every, strict=True)))
    (folder / "train.txt").write_text("./images/a.jpg\n/home/me/set/images/b.jpg\n\n")
    (folder / "data.yaml").write_text("train: train.txt\nval: images/c.jpg\nnames: [red, green, blue]\n")
    source, counts = read(folder / "data.yaml", "train")
    assert boxes_by_name(source) == dict(zip(names[:2], every[:2], strict=True)) and not counts


@pytest.mark.parametrize(
    ("text", "split", "message"),
    [
        ("names: [a]", None, "no images are named for train, val or test"),
        ("names: [a]\ntrain: images", "val", "no images are named for val"),
        ("names: [a]\ntrain: gone", None, "no image is found at 'gone'"),
        ("names: [a]\ntrain: {x: 1}", None, "a path or a list of paths is needed"),
        ("names: [a]\ntrain: images", "elsewhere", "names its images"),
        ("names: [a]\npath: ..\ntrain: images", None, "leads out of the file's folder; --follow-links reads it"),
        ("[a]", None, "data.yaml holds names, train and val"),
    ],
)
def test_data_yaml_that_names_nothing_is_refused(folder: Path, text: str, split: str | None, message: str) -> None:
    save_images(folder / "set" / "images", "a.jpg")
    (folder / "set" / "data.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read(folder / "set" / "data.yaml", split)


def test_the_folder_of_a_whole_dataset_is_labels_and_images(folder: Path) -> None:
    every = save_images(folder / "images" / "train", "a.jpg")
    save_labels(folder / "labels" / "train", {"a": every[0]})
    for images in (folder, None):
        source, _ = read(folder, images)
        assert boxes_by_name(source) == {"images/train/a.jpg": every[0]}
