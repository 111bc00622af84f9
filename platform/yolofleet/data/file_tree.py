"""The names of the files in a folder that somebody else made: images, labels, the split that a path speaks of.

Nothing is opened here, and every path that a file of the folder names is looked for among the listed ones alone. So
``../../etc`` in a data.yaml, or a path of the computer that wrote it, leads to a file of this folder or to none.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property

from yolofleet.core.text import decode_text
from yolofleet.data.file_finder import find_files, name_parts, without_type
from yolofleet.data.source_folder import is_image_name, is_litter

Read = Callable[[str], bytes]
"""Returns the bytes of a file by its key."""
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
    "trainval": "trainval",
}
IMAGE_FOLDERS = ("images", "Images", "JPEGImages", "image", "imgs", "img", "data")
LABEL_FOLDERS = ("labels", "Labels", "Annotations", "annotations", "label", "annotation", "xmls", "xml")


def split_of(path: str) -> str | None:
    """Return the split that a path speaks of (train, val, test, trainval); its last part that names one decides."""
    for part in reversed(path.split("/")):
        found = {SPLIT_WORDS[word] for word in re.split(r"[^a-z]+", part.lower()) if word in SPLIT_WORDS}
        if len(found) == 1:
            return found.pop()
    return None


def without_split(path: str) -> str:
    """Return a path with the words of splits replaced, so that those of train and val are equal."""
    return re.sub(r"[a-z]+", lambda word: "*" if word[0] in SPLIT_WORDS else word[0], path.lower())


class FileTree:
    """The files of a folder that can be looked for by the ends of their paths.

    Args:
        keys: Their keys; litter is left out.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self.keys = sorted(key for key in keys if not is_litter(key))

    @cached_property
    def images(self) -> list[str]:
        """The images."""
        return [key for key in self.keys if is_image_name(key)]

    def ending(self, *endings: str) -> list[str]:
        """Return the files with one of these endings, those of the upper folders first."""
        return sorted(
            (key for key in self.keys if key.lower().endswith(endings)), key=lambda key: (key.count("/"), key)
        )

    def candidates(self, path: str) -> list[str]:
        """Return the images whose paths agree with most of a path's last parts, the name with or without its ending."""
        parts = name_parts(path)
        keys = (self._by_name.get(parts[-1]) or self._by_name.get(f"{parts[-1]}\0", [])) if parts else []
        tails = [num_common_last(parts[:-1], name_parts(key)[:-1]) for key in keys]
        return [key for key, tail in zip(keys, tails, strict=True) if tail == max(tails)]

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        """Images by their last part, and by it without its ending (then with a NUL)."""
        found: defaultdict[str, list[str]] = defaultdict(list)
        for key in self.images:
            name = name_parts(key)[-1]
            found[name].append(key)
            found[f"{without_type(name)}\0"].append(key)
        return found

    def images_named(self, path: str, bases: Sequence[str], read: Read) -> tuple[list[str], list[str]]:
        """Return the images that a path names: those in a folder or in a list of images (``.txt``), or one image.

        Args:
            path: As written, say in data.yaml: relative, with ``../``, or of another computer.
            bases: Folders that it may be relative to.
            read: Reads a list.

        Returns:
            The images, and the lines of the list whose image is missing.
        """
        if path.lower().endswith(".txt") and (key := self.file_at(path, bases)) is not None:
            return self.images_of_list(key, read)
        for folder in _readings(path, bases):
            prefix = f"{folder}/" if folder else ""
            if found := [key for key in self.images if key.startswith(prefix) or key == folder]:
                return found, []
        return [], []

    def images_of_list(self, key: str, read: Read) -> tuple[list[str], list[str]]:
        """Return the images that a file lists, one a line, and the lines whose image is missing."""
        lines = [line.strip() for line in decode_text(read(key), errors="replace").splitlines() if line.strip()]
        known = set(self.images)
        near = [posixpath.normpath(posixpath.join(posixpath.dirname(key), line)) for line in lines]
        # Of a path that leads to no image from here or from the list, the root is another one: the end alone counts.
        names = [
            next((path for path in pair if path in known), f"/{pair[0]}") for pair in zip(lines, near, strict=True)
        ]
        found = find_files(names, known)
        missing = [line for line, image in zip(lines, found, strict=True) if image is None]
        return [image for image in found if image is not None], missing

    def file_at(self, path: str, bases: Sequence[str]) -> str | None:
        """Return the file that a path means; None where there is none."""
        return next((key for key in _readings(path, bases) if key in self._known), None)

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.keys)


def _readings(path: str, bases: Sequence[str]) -> list[str]:
    """Return what a path may mean below some folders, the likeliest first: whole, and without its first parts.

    A last part alone must name a file or a split: ``images`` of ``valid/images`` could be those of all splits.
    """
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    tails = [parts[start:] for start in range(max(1, len(parts)))]
    if len(tails) > 1 and "." not in parts[-1] and split_of(parts[-1]) is None:
        tails.pop()
    return ["/".join([*(part for part in base.split("/") if part), *tail]) for tail in tails for base in bases]


def num_common_last(one: Sequence[str], other: Sequence[str]) -> int:
    """Return how many last parts of two paths agree."""
    count = 0
    for left, right in zip(reversed(one), reversed(other), strict=False):
        if left != right:
            break
        count += 1
    return count


def pair_labels(images: Sequence[str], labels: Collection[str]) -> dict[str, str]:
    """Return the label file of each image that has one.

    It has the image's name in the folder that goes with the image's (``labels`` with ``images``), beside the image, or
    anywhere, where a single label and a single image have the name.
    """
    by_stem = {without_type(label): label for label in labels}
    by_folded: defaultdict[str, list[str]] = defaultdict(list)
    by_name: defaultdict[str, list[str]] = defaultdict(list)
    for path, label in by_stem.items():
        folded = _folded(path)
        by_folded[folded].append(label)
        by_name[folded.rpartition("/")[2]].append(label)
    stems = {image: without_type(image) for image in images}
    num_images = Counter(_folded(path).rpartition("/")[2] for path in stems.values())
    pairs = {}
    for image, path in stems.items():
        paths = [*_partner_paths(path), path]
        found = next((by_stem[partner] for partner in paths if partner in by_stem), None)
        if found is None:
            name = _folded(path).rpartition("/")[2]
            groups = [by_folded.get(_folded(partner), []) for partner in paths]
            groups += [by_name.get(name, [])] if num_images[name] == 1 else []
            found = next((group[0] for group in groups if len(group) == 1), None)
        if found is not None:
            pairs[image] = found
    return pairs


def _folded(path: str) -> str:
    """Return a path in a form in which letters of either case, and accents of either form, are equal."""
    return unicodedata.normalize("NFC", path.casefold())


def _partner_paths(path: str) -> list[str]:
    parts = path.split("/")
    return [
        "/".join([*parts[:index], folder, *parts[index + 1 :]])
        for index in reversed(range(len(parts) - 1))
        if parts[index] in IMAGE_FOLDERS
        for folder in LABEL_FOLDERS
    ]


def common_folder(folders: Collection[str]) -> str:
    """Return the folder that holds all of these: keys that are empty or end with a slash."""
    parts = [folder.split("/")[:-1] for folder in folders]
    shared = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(f"{level[0]}/")
    return "".join(shared)
