"""The names of the files in a folder that somebody else made: images, labels, the split that a path speaks of.

Nothing is opened here, and every path that a file of the folder names is looked for among the listed ones alone. So
``../../etc`` in a data.yaml, or a path of the computer that wrote it, leads to a file of this folder or to none.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property

from yolofleet.data.file_finder import name_parts, without_type
from yolofleet.data.source_folder import is_image_name, is_litter

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

    def images_at(self, path: str, bases: Sequence[str]) -> list[str]:
        """Return the images in the folder that a path means, or the one image.

        Args:
            path: As written, say in data.yaml: relative, with ``../``, or of another computer.
            bases: Folders that it may be relative to.
        """
        for folder in _readings(path, bases):
            prefix = f"{folder}/" if folder else ""
            if found := [key for key in self.images if key.startswith(prefix) or key == folder]:
                return found
        return []

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
    by_name: defaultdict[str, list[str]] = defaultdict(list)
    for label in labels:
        by_name[without_type(label).rpartition("/")[2]].append(label)
    num_images = Counter(without_type(image).rpartition("/")[2] for image in images)
    pairs = {}
    for image in images:
        name = without_type(image).rpartition("/")[2]
        alone = by_name[name] if num_images[name] == len(by_name[name]) == 1 else []
        paired = (
            by_stem[path] for path in [*_partner_paths(without_type(image)), without_type(image)] if path in by_stem
        )
        if found := next(paired, next(iter(alone), None)):
            pairs[image] = found
    return pairs


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
