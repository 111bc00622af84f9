"""The splits of a folder are those that its files and folders speak of, each with its own images, boxes and classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.folders import (
    CLASSES,
    Drawn,
    coco,
    draw,
    halves,
    plain_yolo,
    voc_devkit,
    voc_xml,
    write_json,
    write_lines,
    yolo_lines,
)
from data.found import boxes_of, find, truth
from yolofleet.core.errors import UserError
from yolofleet.data.layout_reader import assign_splits


def save_yolo(images: list[Drawn], image_folder: Path, label_folder: Path) -> None:
    for image in images:
        image.save(image_folder / f"{image.name}.jpg")
        write_lines(label_folder / f"{image.name}.txt", yolo_lines(image))


# --- the names of the classes


@pytest.mark.parametrize(
    ("files", "file"),
    [
        ({"train/classes.txt": CLASSES, "val/classes.txt": CLASSES}, "train/classes.txt"),
        ({"train/classes.txt": CLASSES[:2], "val/classes.txt": CLASSES}, "val/classes.txt"),
        ({"obj.names": CLASSES, "val/classes.txt": CLASSES[:1]}, "obj.names"),
        ({"predefined_classes.txt": ("person", "car"), "train/classes.txt": CLASSES}, "train/classes.txt"),
        ({"predefined_classes.txt": CLASSES}, "predefined_classes.txt"),
        ({"a/data.yaml": [f"names: {list(CLASSES)}"], "b/data.yaml": [f"names: {list(CLASSES)}"]}, "a/data.yaml"),
    ],
)
def test_lists_of_classes_that_agree_are_one(tmp_path: Path, files: dict[str, list[str]], file: str) -> None:
    parts = halves(draw())
    for split, part in parts.items():
        save_yolo(part, tmp_path / split, tmp_path / split)
    for name, lines in files.items():
        write_lines(tmp_path / name, lines)
    layout, splits, _ = find(tmp_path)
    assert layout.names_file == file
    assert {split: boxes_of(found) for split, found in splits.items()} == {
        split: truth(part) for split, part in parts.items()
    }


@pytest.mark.parametrize("name", ["classes.txt", "data.yaml"])
def test_lists_of_classes_that_differ_are_refused_with_both_named(tmp_path: Path, name: str) -> None:
    for split, part in halves(draw()).items():
        save_yolo(part, tmp_path / split, tmp_path / split)
        names = list(CLASSES) if split == "train" else ["dog", "cat"]
        write_lines(tmp_path / split / name, names if name == "classes.txt" else [f"names: {names}"])
    with pytest.raises(UserError, match=f"class 0 is 'cat' in train/{name} and 'dog' in val/{name}"):
        find(tmp_path)


# --- the images of COCO files


def test_an_image_that_is_missing_does_not_bring_those_of_another_split(tmp_path: Path) -> None:
    parts = {"train": draw(10), "valid": draw(4, seed=5)}
    for split, part in parts.items():
        write_json(tmp_path / split / "_annotations.coco.json", coco(part, lambda image: f"{image.name}.jpg"))
        for image in part:
            image.save(tmp_path / split / f"{image.name}.jpg")
    (tmp_path / "train/photo_002.jpg").unlink()
    for named in (None, "train/_annotations.coco.json"):
        _, splits, _ = find(tmp_path, named)
        keys = splits["train"].image_keys()
        assert keys == [None if number == 2 else f"train/photo_{number:03}.jpg" for number in range(10)]
        assert splits["val"].image_keys() == [f"valid/photo_{number:03}.jpg" for number in range(4)]
    _, splits, _ = find(tmp_path, "valid/_annotations.coco.json")
    assert splits["all"].image_keys() == [f"valid/photo_{number:03}.jpg" for number in range(4)]


def test_splits_that_were_drawn_anew_without_moving_images_find_them_all(tmp_path: Path) -> None:
    images = draw(10)
    for number, image in enumerate(images):
        image.save(tmp_path / f"{'val' if number % 5 == 0 else 'train'}/{image.name}.jpg")
    for split, part in halves(images).items():
        write_json(tmp_path / f"{split}.json", coco(part, lambda image: f"{image.name}.jpg"))
    _, splits, _ = find(tmp_path)
    assert all(None not in split.image_keys() for split in splits.values())


def test_urls_count_only_where_a_coco_file_names_no_file(tmp_path: Path) -> None:
    images = draw()
    document = coco(images, lambda image: f"{image.name}.jpg")
    for entry in document["images"]:
        entry["coco_url"] = f"http://images.cocodataset.org/train2017/{entry['file_name']}"
    write_json(tmp_path / "annotations/instances_train2017.json", document)
    for image in images:
        image.save(tmp_path / f"train2017/{image.name}.jpg")
        image.save(tmp_path / f"backup/train2017/{image.name}.jpg")
    layout, _, _ = find(tmp_path)
    assert layout.splits["train"].images == {f"{image.name}.jpg": f"train2017/{image.name}.jpg" for image in images}


# --- VOC files of other names than their images


def save_voc(images: list[Drawn], image_folder: Path, xml_folder: Path, first: int = 0) -> None:
    """XML files 0.xml, 1.xml, ... that name their images."""
    for number, image in enumerate(images, first):
        image.save(image_folder / f"{image.name}.jpg")
        write_lines(xml_folder / f"{number}.xml", [voc_xml(image, f"{image.name}.jpg")])


@pytest.mark.parametrize("folders", ["{split}/images {split}/annotations", "images/{split} annotations/{split}"])
def test_xml_files_of_other_names_stay_in_the_split_of_their_folder(tmp_path: Path, folders: str) -> None:
    parts = {"test": draw(2, seed=1), "train": draw(5), "valid": draw(3, seed=2)}
    for split, part in parts.items():
        image_folder, xml_folder = (tmp_path / folder for folder in folders.format(split=split).split())
        save_voc(part, image_folder, xml_folder)
    next(tmp_path.glob(folders.format(split="train").split()[0] + "/photo_001.jpg")).unlink()
    layout, splits, _ = find(tmp_path)
    assert not layout.notes
    for split, part in parts.items():
        assert boxes_of(splits["val" if split == "valid" else split]) == truth(part), "the missing one stays in train"
    assert splits["train"].image_keys().count(None) == 1 and None not in splits["val"].image_keys()


def test_xml_files_of_other_names_follow_the_lists_of_images(tmp_path: Path) -> None:
    images = draw()
    save_voc(images, tmp_path / "JPEGImages", tmp_path / "Annotations")
    for split, part in halves(images).items():
        write_lines(tmp_path / f"ImageSets/Main/{split}.txt", [image.name for image in part])
    _, splits, _ = find(tmp_path)
    for split, part in halves(images).items():
        assert boxes_of(splits[split]) == truth(part)


# --- folders of images without annotations


@pytest.mark.parametrize("form", ["YOLO", "VOC"])
@pytest.mark.parametrize("has_val", [False, True])
@pytest.mark.parametrize("name", ["test/demo.jpg", "train/demo.jpg", "images/test/demo.jpg"])
def test_images_to_try_a_model_on_hide_no_annotated_ones(tmp_path: Path, form: str, has_val: bool, name: str) -> None:
    parts = halves(draw())
    main = parts["train"] if has_val else draw()
    for part, folder in ((main, ""), (parts["val"] if has_val else [], "val")):
        if form == "YOLO":
            save_yolo(part, tmp_path / "images" / folder, tmp_path / "labels" / folder)
        for image in part if form == "VOC" else []:
            image.save(tmp_path / f"images/{folder}/{image.name}.jpg")
            write_lines(tmp_path / f"annotations/{folder}/{image.name}.xml", [voc_xml(image, f"{image.name}.jpg")])
    draw(1)[0].save(tmp_path / name)
    if form == "YOLO":
        write_lines(tmp_path / "classes.txt", CLASSES)
    layout, splits, _ = find(tmp_path)
    assert boxes_of(splits["all"]) == truth(main) and set(splits) == ({"all", "val"} if has_val else {"all"})
    assert f"is left out: no annotations, and 1 image, such as {name}" in " ".join(layout.notes)
    assigned, _ = assign_splits(splits, 0.3)
    assert set(assigned) == {"train", "val"}
    if has_val:
        assert [boxes_of(assigned[split]) for split in ("train", "val")] == [truth(part) for part in parts.values()]


def test_a_test_split_without_labels_is_left_out_where_no_file_names_classes(tmp_path: Path) -> None:
    plain_yolo(tmp_path, draw())
    (tmp_path / "classes.txt").unlink()
    draw(1)[0].save(tmp_path / "images/test/demo.jpg")
    layout, splits, _ = find(tmp_path)
    assert set(splits) == {"train", "val"} and "test is left out" in layout.notes[0]
    for split in ("train", "val", "test"):
        names = sorted(path.name for path in (tmp_path / "images" / split).iterdir())
        write_lines(tmp_path / f"{split}.txt", [f"images/{split}/{name}" for name in names])
    found = {split: source.num_boxes for split, source in find(tmp_path)[1].items()}
    assert found == {"train": 15, "val": 9, "test": 0}, "a list names it"


# --- validation images beside a whole set


@pytest.mark.parametrize("more", ["", "test"])
def test_a_whole_set_without_its_validation_images_is_for_training(tmp_path: Path, more: str) -> None:
    images = draw()
    parts = {"": images, "_val": images[8:], **({"_test": images[6:8]} if more else {})}
    for ending, part in parts.items():
        write_json(tmp_path / f"annotations{ending}.json", coco(part, lambda image: f"{image.name}.jpg"))
    for image in images:
        image.save(tmp_path / f"images/{image.name}.jpg")
    assigned, how = assign_splits(find(tmp_path)[1], 0.3)
    expected = {"train": images[: 6 if more else 8], "val": images[8:], **({"test": images[6:8]} if more else {})}
    assert {split: boxes_of(found) for split, found in assigned.items()} == {
        split: truth(part) for split, part in expected.items()
    }
    assert how == f"for training: all images without the images of val{' and test' if more else ''}"


def test_a_validation_set_of_all_images_is_not_believed(tmp_path: Path) -> None:
    images = draw()
    for ending in ("", "_val"):
        write_json(tmp_path / f"annotations{ending}.json", coco(images, lambda image: f"{image.name}.jpg"))
    for image in images:
        image.save(tmp_path / f"images/{image.name}.jpg")
    assigned, how = assign_splits(find(tmp_path)[1], 0.3)
    assert boxes_of(assigned["train"]) | boxes_of(assigned["val"]) == truth(images)
    assert (
        how is not None and how.startswith("one set: 30% ") and how.endswith("; val holds all of them, and is left out")
    )


def test_the_lists_trainval_and_val_of_voc_are_train_and_val(tmp_path: Path) -> None:
    images = draw()
    voc_devkit(tmp_path, images)
    (tmp_path / "VOC2007/ImageSets/Main/train.txt").unlink()
    assigned, how = assign_splits(find(tmp_path)[1], 0.3)
    assert {split: boxes_of(found) for split, found in assigned.items()} == {
        split: truth(part) for split, part in halves(images).items()
    }
    assert how == "for training: trainval without the images of val"


def test_data_yaml_may_say_validation(tmp_path: Path) -> None:
    parts = halves(draw())
    for split, folder in (("train", "train"), ("val", "validation")):
        save_yolo(parts[split], tmp_path / "images" / folder, tmp_path / "labels" / folder)
    names = f"names: {list(CLASSES)}"
    write_lines(tmp_path / "data.yaml", ["train: ./images/train/", "validation: ./images/validation/", names])
    layout, splits, _ = find(tmp_path)
    assert layout.evidence == "data.yaml"
    assert {split: boxes_of(found) for split, found in splits.items()} == {
        split: truth(part) for split, part in parts.items()
    }


# --- what is decided for all splits


def test_the_first_pixel_is_the_same_in_every_split(tmp_path: Path) -> None:
    parts = {
        "train": [Drawn(f"photo_{number:03}", ((0, 0, 2 * number, 20, 20),)) for number in range(6)],
        "valid": [Drawn("photo_009", ((1, 4, 6, 20, 10), (2, 30, 8, 10, 10)))],
    }
    for split, part in parts.items():
        for image in part:
            image.save(tmp_path / split / f"{image.name}.jpg")
            edges = Drawn(image.name, tuple((n, x - 1, y - 1, w + 1, h + 1) for n, x, y, w, h in image.boxes))
            write_lines(tmp_path / split / f"{image.name}.xml", [voc_xml(edges, f"{image.name}.jpg")])
    _, splits, _ = find(tmp_path)
    assert boxes_of(splits["train"]) == truth(parts["train"]) and boxes_of(splits["val"]) == truth(parts["valid"])


def test_lines_hold_key_points_in_every_split_or_in_none(tmp_path: Path) -> None:
    parts = {"train": draw(24), "val": [Drawn("photo_099", ((1, 8, 6, 20, 30),))]}
    for split, part in parts.items():
        for image in part:
            image.save(tmp_path / f"images/{split}/{image.name}.jpg")
            points = [
                f"{line} " + ("0.9 0.9 0.1 0.9" if split == "val" else f"{x} {y} {x} {y}")
                for line in yolo_lines(image)
                for x, y in [line.split()[1:3]]
            ]
            write_lines(tmp_path / f"labels/{split}/{image.name}.txt", points)
    write_lines(tmp_path / "classes.txt", CLASSES)
    _, splits, _ = find(tmp_path)
    for split, part in parts.items():
        assert boxes_of(splits[split]) == truth(part)
