"""COCO and VOC annotations in a folder: a JSON file a split, or an XML file an image and lists of the images.

The images of a COCO file are where most of its file names are found.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from yolofleet.core.errors import UserError
from yolofleet.core.text import and_more, decode_text, plural, short
from yolofleet.data.annotation_kind import COCO_ENDINGS
from yolofleet.data.file_finder import beside, name_parts, without_type
from yolofleet.data.file_tree import (
    IMAGE_FOLDERS,
    SPLIT_WORDS,
    FileTree,
    Read,
    common_folder,
    num_common_last,
    pair_labels,
    split_of,
    without_split,
)
from yolofleet.data.layout import Layout, Part, by_folder
from yolofleet.data.read_source import unpacked
from yolofleet.data.voc import named_image

MOST_JSON_FILES = 200
MOST_XML_FILES_SEEN = 200
"""Files that are looked at for one of VOC."""
XML_HEAD_BYTES = 1 << 16
_FIRST_TAG = re.compile(rb"<(?:[\w.-]+:)?([A-Za-z_][\w.-]*)")
_FLAG = re.compile(r"[ \t]-?[01]$")
"""What the lists of one class write behind a name: 1, 0 (difficult) or -1."""
MOST_NAMES_COMPARED = 1000
_COCO_KEYS = tuple(re.compile(rb'"' + key + rb'"\s*:\s*\[') for key in (b"images", b"annotations", b"categories"))
_NAME_KEYS = tuple(
    re.compile(rb'"' + key + rb'"\s*:\s*("(?:[^"\\]|\\.){0,4096}")') for key in (b"file_name", b"coco_url")
)
"""What names the images of a COCO file; the second counts only where the first is not there."""


def find_voc(tree: FileTree, read: Read, named: str | None, folder: str) -> Layout | None:
    """Return VOC files and their images; None where there are none."""
    files = tree.ending(".xml")
    labels = pair_labels(tree.images, files)
    likeliest = [*dict.fromkeys([*labels.values(), *files])][:MOST_XML_FILES_SEEN]
    first = next((key for key in likeliest if _is_voc(read(key))), None)
    if first is None:
        return None
    alone = sorted(set(files) - set(labels.values()))
    named_by = _named_by(tree, read, alone)
    labelled = labels.keys() | named_by.keys()
    with_labels = FileTree(labelled)  # an image and its mask in SegmentationClass have one name
    notes: list[str] = []
    lists = [key for key in tree.ending(".txt") if "ImageSets/" in key]
    lists = [key for key in lists if "ImageSets/Main/" in key] or lists
    groups: defaultdict[str, list[str]] = defaultdict(list)
    missing: defaultdict[str, list[str]] = defaultdict(list)
    for key in lists:
        split = SPLIT_WORDS.get(without_type(key).rpartition("/")[2].lower())
        if split is not None:
            listed, lost = _images_of_names(tree, with_labels, read, key)
            groups[split] += listed
            missing[split] += lost
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
        lost = missing[split]
        if named_alone := {without_type(key).rpartition("/")[2] for key in alone} if lost else set():
            lost = [name for name in lost if name not in named_alone]  # they are counted with their XML files
        splits[split] = Part({image: image for image in images if image in labelled}, found, tuple(lost))
    for key in set(alone).difference(*named_by.values()):  # its image is missing, and is counted where it is read
        own = next(split for split in (split_of(_folder(key)) or "all", "train", *groups) if split in groups)
        splits[own].labels[key] = key
    splits = {split: part for split, part in splits.items() if part.labels}
    for split in [split for split, lost in missing.items() if lost and split not in splits]:
        images_are = plural(len(missing[split]), "listed image is", "listed images are")
        notes.append(f"{split} is left out: {images_are} missing, such as {short(missing[split][0])}")
    return Layout("VOC", first.rpartition("/")[0] or first, splits, None, tuple(notes)) if splits else None


def _is_voc(data: bytes) -> bool:
    """Return whether the first element of an XML file, in any encoding, is <annotation>."""
    before, *comments = data[:XML_HEAD_BYTES].replace(b"\0", b"").split(b"<!--")  # UTF-16 has a zero in each letter
    found = _FIRST_TAG.search(before + b"".join(comment.partition(b"-->")[2] for comment in comments))
    return found is not None and found[1].lower() == b"annotation"


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


def _images_of_names(tree: FileTree, with_labels: FileTree, read: Read, key: str) -> tuple[list[str], list[str]]:
    """Return the labelled images that a list of ImageSets names, and the names without an image."""
    lines = (line.strip() for line in decode_text(read(key), errors="replace").splitlines())
    names = "\n".join(_name_of_line(tree, line) for line in lines if line)
    found, missing = with_labels.images_of_list(key, lambda _: names.encode())
    return found, [name for name in missing if not tree.has_name(name)]


def _name_of_line(tree: FileTree, line: str) -> str:
    """Return the name in a line of a list: all of it, without a flag behind it, or its first word; quotes are none."""
    readings = [text.strip().strip("\"'") for text in (line, _FLAG.sub("", line), line.split()[0])]
    return next((name for name in readings if tree.has_name(name)), readings[1])


def find_coco(tree: FileTree, read: Read, named: str | None, folder: str) -> Layout | None:
    """Return COCO files, one a split, and their images; None where there are none."""
    heads = {}
    notes: list[str] = []
    files = tree.ending(*COCO_ENDINGS)
    paired = set(pair_labels(tree.images, files).values())
    # Most files with the name of an image are labelme's own of it; but an image may be called train.jpg.
    of_images = sorted(paired, key=lambda key: (split_of(without_type(key)) is None, key.count("/"), key))
    files = [key for key in files if key not in paired]
    if len(files) > MOST_JSON_FILES:
        notes.append(
            f"{len(files):,} JSON files: only the first {MOST_JSON_FILES} are looked at; name the one you mean"
        )
    files = [*files[:MOST_JSON_FILES], *of_images[:MOST_JSON_FILES]]
    for key in [named] if named is not None else files:
        data = _text_of(read, key)
        if all(pattern.search(data) for pattern in _COCO_KEYS) and b'"segments_info"' not in data:
            heads[key] = _file_names(data)
    if not heads:
        return None
    if named is not None and split_of(named) == "train":
        for key in files:
            if key != named and without_split(key) == without_split(named) and split_of(key) in ("val", "test"):
                heads[key] = _file_names(_text_of(read, key))
    chosen = _one_a_split(list(heads), named, folder, notes)
    splits = {}
    for split, key in chosen.items():
        prefix = _image_folder(tree, heads[key], key, split_of(without_type(key)) or split, folder)
        images = {image.removeprefix(prefix): image for image in tree.images if image.startswith(prefix)}
        splits[split] = Part(images, {key.rpartition("/")[2]: key})
    return Layout("COCO", next(iter(chosen.values())), splits, None, tuple(notes))


def _text_of(read: Read, key: str) -> bytes:
    """Return the text of a JSON file in UTF-8."""
    data = unpacked(read(key), key, key)
    encoding = json.detect_encoding(data)
    return data if encoding.startswith("utf-8") else data.decode(encoding, errors="replace").encode()


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


def _image_folder(tree: FileTree, names: Sequence[str], key: str, split: str, root: str) -> str:
    """Return the folder of a COCO file's images, with its slash: where most of the names are found.

    Of equally good ones that of the split is taken, then the nearest to the file, then one with a usual name, and the
    original of a copy (``backup/images``). Names that are found in several folders (a base name for images in
    sub-folders) mean the folder that holds all of these. Where this split and another one hold equal names, the other's
    folders do not count: an image that is missing here would be one of theirs.

    Raises:
        UserError: All names are found in several folders, and nothing tells which is meant.
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

    def rank(folder: str) -> tuple[int, bool, int, bool]:
        near = len(common_folder([key[: key.rfind("/") + 1], folder]))
        return votes[folder], split_of(folder) == split, near, not usual.isdisjoint(folder.lower().split("/"))

    usual = {name.lower() for name in IMAGE_FOLDERS}
    ranks = {folder: rank(folder) for folder in votes}
    highest = max(ranks.values())
    equal = sorted(folder for folder in votes if ranks[folder] == highest)
    best = [folder for folder in equal if not _is_copy(folder, set(equal))]
    if highest[0] < num_found:
        return common_folder(best_folders | {best[0]})
    if len(best) > 1:
        raise UserError(
            f"{root}: {key}: its images are in {and_more([folder or '.' for folder in best], 5, separator=' and in ')} "
            "alike; move those that are not meant out of the folder"
        )
    return best[0]


def _is_copy(folder: str, folders: set[str]) -> bool:
    """Return whether a folder repeats another one somewhere below: ``backup/images`` that of ``images``."""
    parts = folder.split("/")
    return any("/".join(parts[start:]) in folders for start in range(1, len(parts)))


def _folders_of(tree: FileTree, name: str) -> set[str]:
    """Return the folders, each with its slash, from which a name leads to an image."""
    parts = name_parts(name)
    folders = set()
    for image in tree.candidates(name):
        own = image.split("/")
        kept = len(own) - max(1, num_common_last(parts, name_parts(image)))
        folders.add("".join(f"{part}/" for part in own[:kept]))
    return folders
