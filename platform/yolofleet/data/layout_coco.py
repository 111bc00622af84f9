"""COCO and VOC annotations in a folder: a JSON file a split, or an XML file an image and lists of the images.

The images of a COCO file are where most of its file names are found.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from yolofleet.core.errors import UserError
from yolofleet.core.text import and_more, plural, short
from yolofleet.data.file_finder import beside, name_parts, without_type
from yolofleet.data.file_tree import (
    FileTree,
    Read,
    common_folder,
    num_common_last,
    pair_labels,
    split_of,
    without_split,
)
from yolofleet.data.layout import Layout, Part, by_folder
from yolofleet.data.read_source import COCO_ENDINGS, unpacked
from yolofleet.data.voc import named_image

MOST_JSON_FILES = 200
MOST_NAMES_COMPARED = 1000
_COCO_KEYS = tuple(re.compile(rb'"' + key + rb'"\s*:\s*\[') for key in (b"images", b"annotations", b"categories"))
_NAME_KEYS = tuple(
    re.compile(rb'"' + key + rb'"\s*:\s*("(?:[^"\\]|\\.){0,4096}")') for key in (b"file_name", b"coco_url")
)
"""What names the images of a COCO file; the second counts only where the first is not there."""


def find_voc(tree: FileTree, read: Read, named: str | None, folder: str) -> Layout | None:
    """Return VOC files and their images; None where there are none."""
    files = tree.ending(".xml")
    if not any(b"<annotation" in (head := read(key)[: 1 << 16]) and b"<annotations" not in head for key in files[:3]):
        return None
    labels = pair_labels(tree.images, files)
    alone = sorted(set(files) - set(labels.values()))
    named_by = _named_by(tree, read, alone)
    labelled = labels.keys() | named_by.keys()
    notes: list[str] = []
    lists = [key for key in tree.ending(".txt") if "ImageSets/" in key]
    lists = [key for key in lists if "ImageSets/Main/" in key] or lists
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for key in lists:
        if (name := without_type(key).rpartition("/")[2].lower()) in ("train", "val", "trainval", "test"):
            groups[name] += [image for image in _images_of_first_words(tree, read, key, notes) if image in labelled]
    if not any(groups.values()):
        groups = defaultdict(list, by_folder(tree.images, labelled, notes))
    if unlabelled := sum(image not in labelled for image in tree.images):
        images_have = plural(unlabelled, "image has", "images have")
        notes.append(f"left out, because {images_have} no XML file")
    if unlisted := sorted(labelled - {image for images in groups.values() for image in images}):
        images_belong = plural(len(unlisted), "labelled image belongs", "labelled images belong")
        notes.append(f"{images_belong} to no split, such as {unlisted[0]}")
    splits = {}
    for split, images in groups.items():
        found = dict(_xml_name(image, labels[image]) for image in images if image in labels)
        found |= {key: key for image in images for key in named_by.get(image, [])}
        splits[split] = Part({image: image for image in images if image in labelled}, found)
    for key in set(alone).difference(*named_by.values()):  # its image is missing, and is counted where it is read
        own = next(split for split in (split_of(_folder(key)) or "all", "train", *groups) if split in groups)
        splits[own].labels[key] = key
    splits = {split: part for split, part in splits.items() if part.labels}
    return Layout("VOC", files[0].rpartition("/")[0] or files[0], splits, None, tuple(notes)) if splits else None


def _xml_name(image: str, label: str) -> tuple[str, str]:
    """Return the name of an XML file by which `read_voc` finds its image, and its key."""
    is_found = beside(without_type(label), "Annotations", "JPEGImages") == without_type(image)
    return label if is_found else f"{without_type(image)}.xml", label


def _named_by(tree: FileTree, read: Read, files: Sequence[str]) -> dict[str, list[str]]:
    """Return XML files by the image that their <filename> names, of several the nearest one of the file's split."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for key in files:
        own = split_of(_folder(key))
        images = [
            image
            for image in tree.candidates(named_image(read(key)))
            if own is None or split_of(_folder(image)) in (None, own)
        ]
        if images:
            found[max(images, key=lambda image: len(common_folder([key, image])))].append(key)
    return found


def _folder(key: str) -> str:
    return key.rpartition("/")[0]


def _images_of_first_words(tree: FileTree, read: Read, key: str, notes: list[str]) -> list[str]:
    """Return the images that a list of ImageSets names: the first word of each line."""
    words = b"\n".join(line.split()[0] for line in read(key).splitlines() if line.split())
    found, missing = tree.images_of_list(key, lambda _: words)
    if missing:
        images_are = plural(len(missing), "listed image is", "listed images are")
        notes.append(f"{key}: {images_are} missing, such as {short(missing[0])}")
    return found


def find_coco(tree: FileTree, read: Read, named: str | None, folder: str) -> Layout | None:
    """Return COCO files, one a split, and their images; None where there are none."""
    heads = {}
    notes: list[str] = []
    files = sorted(tree.ending(*COCO_ENDINGS), key=lambda key: (key.count("/"), key))
    of_one_image = set(pair_labels(tree.images, files).values())  # labelme's own
    files = [key for key in files if key not in of_one_image] or files
    if len(files) > MOST_JSON_FILES:
        notes.append(
            f"{len(files):,} JSON files: only the first {MOST_JSON_FILES} are looked at; name the one you mean"
        )
        files = files[:MOST_JSON_FILES]
    for key in [named] if named is not None else files:
        data = unpacked(read(key), key, key)
        if all(pattern.search(data) for pattern in _COCO_KEYS) and b'"segments_info"' not in data:
            heads[key] = _file_names(data)
    if not heads:
        return None
    if named is not None and split_of(named) == "train":
        for key in files:
            if key != named and without_split(key) == without_split(named) and split_of(key) in ("val", "test"):
                heads[key] = _file_names(unpacked(read(key), key, key))
    chosen = _one_a_split(list(heads), named, folder, notes)
    splits = {}
    for split, key in chosen.items():
        prefix = _image_folder(tree, heads[key], key, split_of(without_type(key)) or split)
        images = {image.removeprefix(prefix): image for image in tree.images if image.startswith(prefix)}
        splits[split] = Part(images, {key.rpartition("/")[2]: key})
    return Layout("COCO", next(iter(chosen.values())), splits, None, tuple(notes))


def _one_a_split(keys: Sequence[str], named: str | None, folder: str, notes: list[str]) -> dict[str, str]:
    """Return the annotation file of each split."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for key in keys:
        groups[split_of(without_type(key)) or "all"].append(key)
    if named is not None and len(keys) == 1:
        return {"all": named}
    for split in [split for split in ("train", "trainval", "all") if split in groups][1:]:
        notes += [f"{key} is left out: the splits have files of their own" for key in groups.pop(split)]
    chosen = {}
    for split in ("train", "val", "test", "trainval", "all"):
        found = groups.get(split, [])
        best = [key for key in found if "instances" in key.rpartition("/")[2].lower()] or found
        if len(best) > 1:
            raise UserError(f"{folder}: {and_more(best, 5)} all hold annotations; name the file that is meant")
        notes += [f"{key} is left out: {best[0]} holds the boxes" for key in found if key not in best]
        if best:
            chosen[split] = best[0]
    return chosen


def _file_names(data: bytes) -> list[str]:
    """Return some of the file names in a COCO file, spread over it."""
    found = next((found for pattern in _NAME_KEYS if (found := pattern.findall(data))), [])
    names = []
    for text in found[:: 1 + len(found) // MOST_NAMES_COMPARED]:
        try:
            names.append(json.loads(text))
        except ValueError:
            continue
    return names


def _image_folder(tree: FileTree, names: Sequence[str], key: str, split: str) -> str:
    """Return the folder of a COCO file's images, with its slash: where most of the names are found.

    Of equally good ones that of the split is taken, then the nearest to the file. Names that are found in several
    folders (a base name for images in sub-folders) mean the folder that holds all of these. Where this split and
    another one hold equal names, the other's folders do not count: an image that is missing here would be one of
    theirs.
    """
    found = [_folders_of(tree, name) for name in names]
    if split in (splits := {"train", "val", "test"}):
        others = {folder for folder in set[str]().union(*found) if split_of(folder) in splits - {split}}
        if any(folders & others and folders - others for folders in found):
            found = [folders - others for folders in found]
    votes = Counter(folder for folders in found for folder in folders)
    num_found = sum(bool(folders) for folders in found)
    best_folders = set[str]().union(*(folders for folders in found if len(folders) == 1))
    if not votes:
        return ""

    def rank(folder: str) -> tuple[int, bool, int, str]:
        near = len(common_folder([key[: key.rfind("/") + 1], folder]))
        return votes[folder], split_of(folder) == split, near, folder

    best = max(votes, key=rank)
    return best if votes[best] == num_found else common_folder(best_folders | {best})


def _folders_of(tree: FileTree, name: str) -> set[str]:
    """Return the folders, each with its slash, from which a name leads to an image."""
    parts = name_parts(name)
    folders = set()
    for image in tree.candidates(name):
        own = image.split("/")
        kept = len(own) - max(1, num_common_last(parts, name_parts(image)))
        folders.add("".join(f"{part}/" for part in own[:kept]))
    return folders
