"""The classes of all splits are one list that loses none, and what cannot be learned of them is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data.folders import Drawn, coco, halves, write_json
from data.found import find
from yolofleet.data.layout_reader import assign_splits


def write_coco(root: Path, categories: dict[str, list[tuple[int, str]]], numbers: tuple[int, ...] = (1, 2, 3)) -> None:
    """Two splits of one box an image, whose categories are those of `numbers` in turn."""
    images = [Drawn(f"photo_{number:03}", ((number % len(numbers), 2, 2, 20, 20),)) for number in range(9)]
    for split, part in halves(images).items():
        document: dict[str, Any] = coco(part, lambda image: f"{image.name}.jpg")
        document["categories"] = [{"id": number, "name": name} for number, name in categories[split]]
        for entry in document["annotations"]:
            entry["category_id"] = numbers[entry["category_id"] - 1]
        write_json(root / f"{split}.json", document)
        for image in part:
            image.save(root / f"images/{image.name}.jpg")


@pytest.mark.parametrize("more", [[], [(4, "extra")], [(3, "extra"), (4, "blue")]])
def test_two_classes_of_one_name_stay_two_in_every_split(tmp_path: Path, more: list[tuple[int, str]]) -> None:
    names = [(1, "red"), (2, "red"), (3, "blue")]
    write_coco(tmp_path, {"train": names, "val": [*names[: 3 - (len(more) > 1)], *more]}, (1, 2))
    _, splits, _ = find(tmp_path)
    classes = splits["train"].source.classes
    assert splits["val"].source.classes == classes and [entry.name for entry in classes].count("red") == 2
    for found in splits.values():
        expected = {f"photo_{number:03}.jpg": number % 2 for number in range(9)}
        seen = {entry.file_name: int(entry.classes[0]) for entry in found.source.records}
        reds = [index for index, entry in enumerate(classes) if entry.name == "red"]
        assert {name: reds.index(index) for name, index in seen.items()} == {name: expected[name] for name in seen}


def test_classes_that_training_lacks_and_names_that_are_alike_are_reported(tmp_path: Path) -> None:
    train = [(1, "cat"), (2, "dog"), (3, "bird")]
    write_coco(tmp_path, {"train": train, "val": [(1, "cat"), (2, "Dog"), (3, "bird"), (9, "unused")]})
    assigned, _ = assign_splits(find(tmp_path)[1], 0.3)
    assert assigned["train"].problems.examples["class_names_alike"] == ["'Dog' and 'dog'"]
    assert assigned["val"].problems.examples["class_not_in_train"] == ["'Dog': 1 object in val"]
