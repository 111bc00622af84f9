"""What a folder of annotated images holds: the form of its annotations, its splits, the labels of each image."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from yolofleet.core.text import short
from yolofleet.data.file_finder import find_files
from yolofleet.data.file_tree import FileTree, split_of

Form = Literal["COCO", "YOLO", "VOC"]
Read = Callable[[str], bytes]
"""Returns the bytes of a file by its key."""


@dataclass(frozen=True)
class Part:
    """The files of one split, by the names that its annotations use."""

    images: dict[str, str]
    """Keys of images by name."""
    labels: dict[str, str]
    """Keys of label files by name; of COCO the one file."""


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


def by_folder(images: Sequence[str], notes: list[str]) -> dict[str, list[str]]:
    """Return images by the split that their folders speak of; all of them as one where not one does."""
    groups: defaultdict[str | None, list[str]] = defaultdict(list)
    for image in images:
        groups[split_of(image.rpartition("/")[0])].append(image)
    rest = groups.pop(None, [])
    if not groups:
        return {"all": rest}
    if rest:
        notes.append(f"{len(rest)} images are in no folder of a split, and left out, such as {rest[0]}")
    return {split: found for split, found in groups.items() if split is not None}


def images_of_list(tree: FileTree, read: Read, key: str, notes: list[str]) -> list[str]:
    """Return the images that a list names, one a line."""
    lines = [line.strip() for line in read(key).decode("utf-8-sig", errors="replace").splitlines() if line.strip()]
    images = set(tree.images)
    beside = [posixpath.normpath(posixpath.join(posixpath.dirname(key), line)) for line in lines]
    # A path that is not one below the list or below the root is of another root, of which only the end agrees.
    names = [
        next((path for path in (line, other) if path in images), f"/{line}")
        for line, other in zip(lines, beside, strict=True)
    ]
    found = find_files(names, images)
    if missing := [line for line, image in zip(lines, found, strict=True) if image is None]:
        notes.append(f"{key}: {len(missing)} of {len(lines)} images are missing, such as {short(missing[0])}")
    return [image for image in found if image is not None]
