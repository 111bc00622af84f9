"""The names of classes of YOLO labels: where they are found, and which are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.exports import NAMES, read, save_images, save_labels, yolo_line
from yolofleet.cli.main import main
from yolofleet.core.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "labels").mkdir()
    return tmp_path


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


NAMES_TEXT = "red\ngreen\nblue\n"
NAMES_YAML = "names: [red, green, blue]\ntrain: images\n"


@pytest.mark.parametrize("where", ["labels", "labels/sub", "."])
@pytest.mark.parametrize(
    "name",
    ["classes.txt", "labels.txt", "class_names.txt", "names.txt", "predefined_classes.txt", "coco.names", "data.yaml"],
)
def test_names_are_found_among_the_labels_and_one_folder_up(
    folder: Path, capsys: pytest.CaptureFixture[str], where: str, name: str
) -> None:
    save_labels(folder / "labels", {"a": save_images(folder / "images", "a.jpg")[0]})
    (folder / where).mkdir(exist_ok=True)
    (folder / where / name).write_text(NAMES_YAML if name.endswith(".yaml") else NAMES_TEXT)
    source, counts = read(folder / "labels", folder / "images")
    assert [entry.name for entry in source.classes] == list(NAMES) and counts == {"class_names_found": 1}
    assert main(["data", "check", str(folder / "labels"), str(folder / "images"), "--strict"]) == 0
    told = capsys.readouterr()
    assert "0 problems" in told.out and name in told.err


@pytest.mark.parametrize("name", ["data.yaml", "classes.txt", "labels.txt", "names.txt"])
def test_what_holds_no_names_gives_none_and_their_lack_is_told_but_no_problem(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    save_labels(folder / "labels", {"a": save_images(folder / "images", "a.jpg")[0]})
    (folder / name).write_text("data:\n  train: shards\n" if name.endswith(".yaml") else "0 0.5 0.5 0.1 0.1\n")
    (folder / "outside.txt").write_text(NAMES_TEXT)
    source, counts = read(folder / "labels", folder / "images")
    assert [entry.name for entry in source.classes] == ["0", "1", "2"] and counts == {"class_names_missing": 1}
    assert main(["data", "check", str(folder / "labels"), str(folder / "images"), "--strict"]) == 0
    told = capsys.readouterr()
    assert "0 problems" in told.out and "--classes names them" in told.err


def test_names_one_folder_up_are_not_read_through_a_link_that_leads_out(folder: Path) -> None:
    save_labels(folder / "set" / "labels", {"a": save_images(folder / "set" / "images", "a.jpg")[0]})
    (folder / "secret").write_text(NAMES_TEXT)
    (folder / "set" / "classes.txt").symlink_to(folder / "secret")
    assert read(folder / "set" / "labels", folder / "set" / "images")[1] == {"class_names_missing": 1}


def test_lists_of_names_that_number_the_classes_differently_are_refused(folder: Path) -> None:
    every = save_images(folder / "images", "a/x.jpg", "b/y.jpg")
    save_labels(folder / "labels", dict(zip(("a/x", "b/y"), every, strict=True)))
    (folder / "labels" / "a" / "classes.txt").write_text(NAMES_TEXT)
    (folder / "labels" / "b" / "classes.txt").write_text("red\ngreen\n")
    assert [entry.name for entry in read(folder / "labels", folder / "images")[0].classes] == list(NAMES)
    (folder / "labels" / "b" / "classes.txt").write_text("red\nblue\n")
    with pytest.raises(UserError, match=r"class 1 is 'green' in .* and 'blue' in .*--classes"):
        read(folder / "labels", folder / "images")


@pytest.mark.parametrize("numbers", [(1, 2, 3), (3,), (1, 3)])
@pytest.mark.parametrize("how", ["found", "named", "data.yaml"])
def test_classes_that_count_from_one_are_refused_with_the_cure(
    folder: Path, numbers: tuple[int, ...], how: str
) -> None:
    (boxes,) = save_images(folder / "images", "a.jpg")
    lines = [yolo_line(number, box) for number, box in zip(numbers, boxes, strict=False)]
    (folder / "labels" / "a.txt").write_text("\n".join(lines))
    files = {"found": "labels/classes.txt", "named": "classes.txt", "data.yaml": "data.yaml"}
    (folder / files[how]).write_text(NAMES_YAML if how == "data.yaml" else NAMES_TEXT)
    with pytest.raises(UserError, match=r"count from 1: none is 0, and one is 3, too large for 3 names .*subtract 1"):
        if how == "data.yaml":
            read(folder / "data.yaml", None)
        else:
            read(folder / "labels", folder / "images", folder / "classes.txt" if how == "named" else None)


@pytest.mark.parametrize("numbers", [(0, 1, 3), (1, 2), (1, 4)])
def test_a_class_that_no_name_covers_is_counted_where_classes_may_count_from_zero(
    folder: Path, numbers: tuple[int, ...]
) -> None:
    (boxes,) = save_images(folder / "images", "a.jpg")
    lines = [yolo_line(number, box) for number, box in zip(numbers, boxes, strict=False)]
    (folder / "labels" / "a.txt").write_text("\n".join(lines))
    (folder / "labels" / "classes.txt").write_text(NAMES_TEXT)
    counts = read(folder / "labels", folder / "images")[1]
    assert counts.get("category_unknown", 0) == sum(number > 2 for number in numbers)


@pytest.mark.parametrize(
    ("files", "counts"),
    [
        ({"data.yaml": "train: other/images\nnames: [ship, boat, car]\n"}, {}),
        ({"data.yaml": "path: ../other\ntrain: train.txt\nnames: [ship, boat, car]\n", "train.txt": "other/a.jpg"}, {}),
        ({"data.yaml": "train: mine\nnames: [ship]\n"}, {"class_names_ignored": 1}),
        ({"classes.txt": "ship\n"}, {"class_names_ignored": 1}),
        ({"classes.txt": "ship\nboat\n"}, {"class_names_ignored": 1}),
        ({"one.names": "ship\nboat\ncar\n", "two.names": "red\ngreen\nblue\n"}, {}),
        ({"mine/names.txt": "Alice\n"}, {"class_names_ignored": 1}),
        ({"mine/names.txt": "Alice\nBob\nCarol\n", "mine/labels.txt": "1\n2\n3\n"}, {"class_names_ignored": 1}),
    ],
)
def test_names_of_another_dataset_are_not_taken(folder: Path, files: dict[str, str], counts: dict[str, int]) -> None:
    (boxes,) = save_images(folder / "mine", "a.jpg")
    save_labels(folder / "mine", {"a": boxes})
    for name, text in files.items():
        (folder / name).write_text(text)
    source, found = read(folder / "mine", folder / "mine")
    assert [entry.name for entry in source.classes] == ["0", "1", "2"]
    assert found == {"class_names_missing": 1, **counts} and len(source.records[0].boxes) == len(boxes)


@pytest.mark.parametrize(
    "text",
    [
        "train: mine",
        "train: ../mine/images",
        "train: [/home/me/mine/train]",
        "path: /home/me/mine\nval: images",
        "val: val.txt",
    ],
)
def test_the_names_of_a_description_that_leads_to_the_labels_are_taken(folder: Path, text: str) -> None:
    save_labels(folder / "mine", {"a": save_images(folder / "mine", "a.jpg")[0]})
    (folder / "val.txt").write_text("./mine/a.jpg\n")
    (folder / "data.yaml").write_text(f"{text}\nnames: [red, green, blue]\n")
    source, counts = read(folder / "mine", folder / "mine")
    assert [entry.name for entry in source.classes] == list(NAMES) and counts == {"class_names_found": 1}
