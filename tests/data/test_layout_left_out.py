"""Which images and labels of a folder are no samples: they are left out and counted, and all others are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.folders import CLASSES, Drawn, draw, write_lines, yolo_lines
from data.found import boxes_of, find, truth
from yolofleet.data.layout_reader import assign_splits, shard_split
from yolofleet.storage import open_storage


def save(image: Drawn, root: Path, name: str, *, label: str | None = None) -> None:
    """Save an image, and its label where one is named; both names without an ending."""
    image.save(root / f"{name}.jpg")
    if label is not None:
        write_lines(root / f"{label}.txt", yolo_lines(image))


@pytest.mark.parametrize("folder", ["masks", "runs/detect/exp"])
def test_folders_of_pictures_that_are_no_samples_are_left_out_and_counted(tmp_path: Path, folder: str) -> None:
    images = draw(4)
    for image in images:
        save(image, tmp_path, f"images/{image.name}", label=f"labels/{image.name}")
    for image in draw(3, names=lambda number: f"mask_{number}"):
        image.save(tmp_path / folder / f"{image.name}.png")
    save(images[0], tmp_path, "images/negative")
    _, splits, problems = find(tmp_path)
    assert boxes_of(splits["all"]).keys() == {*truth(images), "photo_negative"}
    assert problems.counts["folder_without_labels"] == 3


@pytest.mark.parametrize(
    ("labelled", "negatives"),
    [
        ("images/train/{0}", "images/train/neg/n{0}"),
        ("images/train/cats/{0}", "images/train/neg/n{0}"),
        ("images/s{0}/a{0}", "images/background/n{0}"),
        ("images/s{0}/image", "images/n{0}/image"),
        ("s{0}/image", "n{0}/image"),
    ],
)
def test_folders_of_images_without_objects_are_kept(tmp_path: Path, labelled: str, negatives: str) -> None:
    for number, image in enumerate(draw(8)):
        name = (labelled if number % 2 else negatives).format(number)
        save(image, tmp_path, name, label=name.replace("images/", "labels/") if number % 2 else None)
    (split,) = find(tmp_path)[1].values()
    assert len(split.source.records) == 8 and split.problems.counts["label_file_missing"] == 4


def test_masks_with_the_names_of_labelled_images_are_left_out(tmp_path: Path) -> None:
    for image in draw(4):
        save(image, tmp_path, f"images/{image.name}", label=f"images/{image.name}")
        image.save(tmp_path / f"images/masks/{image.name}.png")
    write_lines(tmp_path / "classes.txt", CLASSES)
    _, splits, problems = find(tmp_path)
    assert boxes_of(splits["all"]) == truth(draw(4)) and problems.counts["folder_without_labels"] == 4


@pytest.mark.parametrize("where", ["labels", "runs/detect/exp/labels"])
def test_labels_of_images_that_were_removed_are_told_and_cost_no_box(tmp_path: Path, where: str) -> None:
    images = draw()
    for image in images[:3]:
        save(image, tmp_path, f"set/images/{image.name}", label=f"set/labels/{image.name}")
    for image in images[3:]:
        write_lines(tmp_path / f"set/{where}/{image.name}.txt", yolo_lines(image))
    write_lines(tmp_path / "set/classes.txt", CLASSES)
    for split, found in assign_splits(find(tmp_path / "set")[1], 0.3)[0].items():
        shard_split(found, open_storage(str(tmp_path / "out" / split)))
    _, splits, _ = find(tmp_path / "set")
    assert boxes_of(splits["all"]) == truth(images[:3])
    problems = splits["all"].problems
    assert problems.counts["label_without_image"] == 9 and not problems.num_boxes_lost()


def test_labels_in_a_folder_called_dev_labels_are_those_of_the_images_for_training(tmp_path: Path) -> None:
    images = draw(4)
    for image in images:
        save(image, tmp_path, f"train_images/{image.name}", label=f"dev_labels/{image.name}")
    write_lines(tmp_path / "classes.txt", CLASSES)
    assert boxes_of(find(tmp_path)[1]["train"]) == truth(images)
