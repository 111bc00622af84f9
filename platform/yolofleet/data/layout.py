"""What a folder of annotated images holds: the form of its annotations, its splits, the labels of each image."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Literal

from yolofleet.core.text import plural
from yolofleet.data.file_tree import IMAGE_FOLDERS, common_folder, folder_of, name_of, split_of

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


def no_samples(images: Sequence[str], labelled: Set[str]) -> list[str]:
    """Return the images of folders without a label that lie apart from the labelled ones or repeat their names (masks).

    The others in such folders are samples without objects: ``images/background``, ``images/train/negative``.
    """
    folders = {folder_of(image) for image in images if image in labelled}
    if not folders:
        return []  # all that is there for training
    parts = common_folder([f"{folder}/" if folder else "" for folder in folders]).split("/")[:-1]
    ends = [end for end, part in enumerate(parts, 1) if part in IMAGE_FOLDERS or split_of(part) is not None]
    inside = "".join(f"{part}/" for part in parts[: max(ends, default=len(parts))])
    num_of_name = Counter(name_of(image) for image in images if image in labelled)
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for image in images:
        if folder_of(image) not in folders:
            groups[folder_of(image)].append(image)
    return [
        image
        for group in groups.values()
        if not group[0].startswith(inside) or all(num_of_name[name_of(image)] == 1 for image in group)
        for image in group
    ]


def distinct(splits: dict[str, Part], notes: list[str]) -> dict[str, Part]:
    """Return the splits; one that holds the same images as another is left out, and images in two are noted."""
    kept: dict[str, Part] = {}
    for split, part in splits.items():
        same = next((other for other, found in kept.items() if found.images == part.images), None)
        if same is not None:
            notes.append(f"{split} has the same images as {same}, and is left out")
            continue
        for other, found in kept.items():
            if shared := found.images.keys() & part.images.keys():
                images_are = plural(len(shared), "image is", "images are")
                notes.append(f"{images_are} in {other} and in {split}, such as {min(shared)}")
        kept[split] = part
    return kept
