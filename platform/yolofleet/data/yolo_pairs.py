"""Which label file of YOLO belongs to which image, and which to none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Set

from yolofleet.data.annotation_kind import is_no_label
from yolofleet.data.file_finder import beside, find_files, without_type
from yolofleet.data.file_tree import folder_of, name_of, split_of
from yolofleet.data.problems import ProblemLog
from yolofleet.data.source_folder import is_image_name


def pair(image_keys: list[str], label_files: Collection[str], problems: ProblemLog) -> dict[str, str]:
    """Return the label file of each image that has one."""
    by_stem = {without_type(key): key for key in label_files if key.lower().endswith(".txt")}
    stems = [without_type(key) for key in image_keys]
    stems = [stem if stem in by_stem else beside(stem, "images", "labels") for stem in stems]
    pairs: dict[str, str] = {}
    owners: dict[str, str] = {}
    for image, stem, found in zip(image_keys, stems, find_files(stems, by_stem.keys()), strict=True):
        if found is None:
            problems.add("label_file_missing", image)
            continue
        pairs[image] = by_stem[found]
        if (other := owners.setdefault(found, image)) != image:
            problems.add("label_of_several_images", f"{by_stem[found]}: {other}, {image}")
        if found != stem:
            problems.add("file_name_repaired", f"{image}: its label is {by_stem[found]}")
    return pairs


def labels_alone(files: Set[str], images: Collection[str], paired: Set[str]) -> list[str]:
    """Return the label files that belong to no image.

    Those of another split are not meant, nor those of an image that lies with the labels, nor second ones of an image
    (``backup/labels``).

    Args:
        files: Keys in the folder of labels.
        images: Keys of the images.
        paired: Keys of the labels of these.
    """
    folders = {folder_of(key) for key in paired}
    splits = {split_of(folder) for folder in folders.union(map(folder_of, images))} - {None}
    names = Counter(name_of(key) for key in paired)
    others = {without_type(key) for key in files if is_image_name(key)}

    def is_alone(key: str) -> bool:
        stem, folder = without_type(key), folder_of(key)
        is_of_other_split = bool(splits) and split_of(folder) not in {*splits, None}
        is_second = folder not in folders and names[name_of(key)] == 1
        has_image = not others.isdisjoint((stem, beside(stem, "labels", "images")))
        return not (is_no_label(key) or is_of_other_split or is_second or has_image)

    return sorted(key for key in files - paired if key.lower().endswith(".txt") and is_alone(key))
