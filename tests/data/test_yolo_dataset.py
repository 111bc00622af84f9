"""data.yaml as a source: its splits, its lists, and what is missing of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.exports import NAMES, boxes_by_name, built, read, save_images, save_labels
from yolofleet.cli.main import main
from yolofleet.core.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "labels").mkdir()
    return tmp_path


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


@pytest.mark.parametrize("gone", ["val", "test"])
def test_a_split_for_validation_or_test_that_is_not_there_is_counted(folder: Path, gone: str) -> None:
    every = save_images(folder / "train" / "images", "a.jpg", "b.jpg")
    save_labels(folder / "train" / "labels", dict(zip("ab", every, strict=True)))
    (folder / "data.yaml").write_text(f"train: ../train/images\n{gone}: ../{gone}/images\nnames: [red, green, blue]\n")
    source, counts = read(folder / "data.yaml", None)
    assert len(source.records) == 2 and counts == {"split_missing": 1}
    with pytest.raises(UserError, match=f"{gone}: no image is found"):
        read(folder / "data.yaml", gone)
    (folder / "data.yaml").write_text(f"train: ../{gone}\nval: ../train/images\nnames: [red, green, blue]\n")
    with pytest.raises(UserError, match=r"train: no image is found .*give val as IMAGES"):
        read(folder / "data.yaml", None)


@pytest.mark.parametrize("form", ["./images/{}.jpg", "/home/me/set/images/{}.jpg", "C:\\set\\images\\{}.jpg"])
def test_images_of_a_list_that_are_missing_count_as_lost(
    folder: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    every = save_images(folder / "images", "a.jpg", "b.jpg")
    save_labels(folder / "labels", dict(zip("ab", every, strict=True)))
    (folder / "data.yaml").write_text("train: train.txt\nnames: [red, green, blue]\n")
    for stems, code in (("abc", 0), ("abcdefgh", 2)):
        (folder / "train.txt").write_text("".join(form.format(stem) + "\n" for stem in stems))
        assert main(["data", "shard", str(folder / "data.yaml"), "-", str(folder / f"out{code}")]) == code
        told = capsys.readouterr()
        assert ("2 images (1 left out)" in told.out) if code == 0 else "6 of 8 images are unusable" in told.err
        assert "image_file_missing" in told.err
    assert main(["data", "check", str(folder / "data.yaml"), "-"]) == 0
    assert "2 of 8 images can be used" in capsys.readouterr().out


def test_a_list_that_names_an_image_twice_in_other_words_gives_it_once(folder: Path) -> None:
    every = save_images(folder / "images", "a.jpg")
    save_labels(folder / "labels", {"a": every[0]})
    (folder / "train.txt").write_text("images/a.jpg\n../images/a.jpg\n")
    (folder / "data.yaml").write_text("train: train.txt\nnames: [red, green, blue]\n")
    assert boxes_by_name(read(folder / "data.yaml", None)[0]) == {"images/a.jpg": every[0]}


def test_the_folder_of_a_whole_dataset_is_labels_and_images(folder: Path) -> None:
    every = save_images(folder / "images" / "train", "a.jpg")
    save_labels(folder / "labels" / "train", {"a": every[0]})
    for images in (folder, None):
        source, _ = read(folder, images)
        assert boxes_by_name(source) == {"images/train/a.jpg": every[0]}
