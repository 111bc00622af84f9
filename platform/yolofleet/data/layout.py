"""What a folder of annotated images holds: the form of its annotations, its splits, the labels of each image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Literal

from yolofleet.core.text import plural
from yolofleet.data.file_tree import split_of

Form = Literal["COCO", "YOLO", "VOC"]


@dataclass(frozen=True)
class Part:
    """The files of one split, by the names that its annotations use."""

    images: dict[str, str]
    """Keys of images by name."""
    labels: dict[str, str]
    """Keys of label files by name; of COCO the one file. Those without an image are counted where they are read."""
    missing: tuple[str, ...] = ()
    """The images that its lists name and the folder has not, as the lists write them."""
    left_out: tuple[str, ...] = ()
    """Images of folders without a label, beside folders with labels."""


@dataclass(frozen=True)
class Layout:
    """What a folder holds."""

    form: Form
    """Form of the annotations."""
    evidence: str
    """The file or folder that says so."""
    splits: dict[str, Part]
    """By train, val, test; ``all`` where the images are not split."""
    names_file: str | None = None
    """The file with the names of the classes, where annotations do not hold them."""
    notes: tuple[str, ...] = ()
    """What was left out, a sentence each."""


def by_folder(images: Sequence[str], labelled: Set[str], notes: list[str]) -> dict[str, list[str]]:
    """Return images by the split that their folders speak of; ``all`` are those of none, unless others are for train.

    Folders of a split without a labelled image, such as one of images to try a model on, are left out. A folder called
    train beside other folders of labelled images, without one for val or test, is that of a class.
    """
    groups: defaultdict[str | None, list[str]] = defaultdict(list)
    for image in images:
        groups[split_of(image.rpartition("/")[0])].append(image)
    rest = groups.pop(None, [])
    has_main_set = not labelled.isdisjoint(rest)
    splits = {}
    for split, found in groups.items():
        if split is not None and (not labelled.isdisjoint(found) or (split == "train" and not has_main_set)):
            splits[split] = found
        else:
            notes.append(f"{split} is left out: no annotations, and {plural(len(found), 'image')}, such as {found[0]}")
    if has_main_set and splits.keys() == {"train"}:
        return {"all": sorted([*rest, *splits["train"]])}
    if not splits or (has_main_set and splits.keys().isdisjoint(("train", "trainval"))):
        return {"all": rest, **splits}
    if rest:
        images_are = plural(len(rest), "image is", "images are")
        notes.append(f"{images_are} in no folder of a split, and left out, such as {rest[0]}")
    return splits
