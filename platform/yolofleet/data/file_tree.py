"""The names of the files in a folder that somebody else made: images, labels, the split that a path speaks of.

Nothing is opened here, and every path that a file of the folder names is looked for among the listed ones alone. So
``../../etc`` in a data.yaml, or a path of the computer that wrote it, leads to a file of this folder or to none.
"""

from __future__ import annotations

import posixpath
import re
import unicodedata
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cached_property

from yolofleet.core.text import decode_text
from yolofleet.data.file_finder import LONGEST_NAME, KeysByEnd, find_files, name_parts, without_type
from yolofleet.data.source_folder import is_image_name, is_litter

Read = Callable[[str], bytes]
"""Returns the bytes of a file by its key."""
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
    "trainval": "trainval",
}
WHOLE_SPLIT_WORDS = ("dev", "trn")
"""Words that say something else in longer names, such as ``dev_labels``."""
MOST_ALIKE = 8
"""Labels of one name in other letters among which that of a split is looked for."""
IMAGE_FOLDERS = ("images", "Images", "JPEGImages", "image", "imgs", "img", "data")
LABEL_FOLDERS = ("labels", "Labels", "Annotations", "annotations", "label", "annotation", "xmls", "xml")


def split_of(path: str) -> str | None:
    """Return the split that a path speaks of (train, val, test, trainval); its last part that names one decides."""
    for part in reversed(path.split("/")):
        words = set(re.split(r"[^a-z]+", part.lower())) & SPLIT_WORDS.keys()
        whole = part.lower().partition(".")[0]
        found = {SPLIT_WORDS[word] for word in words if word not in WHOLE_SPLIT_WORDS or word == whole}
        if len(found) == 1:
            return found.pop()
    return None


def folder_of(key: str) -> str:
    """Return the folder of a file, without a slash behind it."""
    return key.rpartition("/")[0]


def name_of(key: str) -> str:
    """Return the name of a file in small letters, without its folders and its ending."""
    return without_type(key).rpartition("/")[2].lower()


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
        groups = (group for keys in (self._by_end, self._by_end_of_stem) for group in [*keys.path(parts)][:0:-1])
        return [key for _, key in group.entries] if (group := next(groups, None)) is not None else []

    def has_name(self, path: str) -> bool:
        """Return whether an image has the name at the end of a path, with or without its ending."""
        parts = name_parts(path)
        return any(len([*keys.path(parts)]) > 1 for keys in (self._by_end, self._by_end_of_stem))

    @cached_property
    def _by_end(self) -> KeysByEnd:
        return KeysByEnd([(name_parts(key), key) for key in self.images])

    @cached_property
    def _by_end_of_stem(self) -> KeysByEnd:
        return KeysByEnd([(name_parts(without_type(key)), key) for key in self.images])

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
            if found := [folder] if folder in self._known_images else self._images_in(folder):
                return found, []
        return [], []

    def _images_in(self, folder: str) -> list[str]:
        if not folder:
            return self.images
        start, end = (bisect_left(self.images, f"{folder}{after}") for after in ("/", chr(ord("/") + 1)))
        return self.images[start:end]

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

    @cached_property
    def _known_images(self) -> frozenset[str]:
        return frozenset(self.images)


def _readings(path: str, bases: Sequence[str]) -> Iterator[str]:
    """Yield what a path may mean below some folders, the likeliest first: whole, and without its first parts.

    A last part alone must name a file or a split: ``images`` of ``valid/images`` could be those of all splits.
    """
    parts = [part for part in path[-LONGEST_NAME:].replace("\\", "/").split("/") if part not in ("", ".", "..")]
    num_tails = max(1, len(parts))
    if num_tails > 1 and "." not in parts[-1] and split_of(parts[-1]) is None:
        num_tails -= 1
    for start in range(num_tails):
        for base in bases:
            yield "/".join([*(part for part in base.split("/") if part), *parts[start:]])


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

    It has the image's name, with or without its ending, in the folder that goes with the image's (``labels`` with
    ``images``) or beside the image. What is left then is looked for without regard to case and form of accents, or
    anywhere, where a single label and a single image have the name; never in another split.
    """
    by_stem = {without_type(label): label for label in labels}
    exact = {image: next((by_stem[stem] for stem in label_stems(image) if stem in by_stem), None) for image in images}
    pairs = {image: label for image, label in exact.items() if label is not None}
    free = set(by_stem.values()).difference(pairs.values())
    by_folded: defaultdict[str, list[str]] = defaultdict(list)
    by_name: defaultdict[str, list[str]] = defaultdict(list)
    for label in sorted(free):
        by_folded[_folded(without_type(label))].append(label)
        by_name[_last(without_type(label))].append(label)
    num_images = Counter(_last(without_type(image)) for image in images)
    claims: defaultdict[str, list[str]] = defaultdict(list)
    for image in images if free else []:
        if image in pairs:
            continue
        groups = [by_folded.get(_folded(stem), []) for stem in label_stems(image)]
        if num_images[_last(without_type(image))] == 1:
            groups += [by_name.get(_last(path), []) for path in (without_type(image), image)]
        few = (group for group in groups if len(group) <= MOST_ALIKE)
        near = ([label for label in group if _may_be_of_one_split(image, label)] for group in few)
        for (label,) in [group for group in near if len(group) == 1][:1]:
            claims[label].append(image)
    for label, claimed in claims.items():
        if len({without_type(image) for image in claimed}) == 1:
            pairs |= dict.fromkeys(claimed, label)
    return pairs


def label_stems(image: str) -> list[str]:
    """Return the paths, without their ending, at which the label of an image is expected, the likeliest first."""
    return [stem for path in (without_type(image), image) for stem in (*_partner_paths(path), path)]


def _may_be_of_one_split(*keys: str) -> bool:
    return len({split_of(posixpath.dirname(key)) for key in keys} - {None}) < 2


def _last(path: str) -> str:
    return _folded(path).rpartition("/")[2]


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
