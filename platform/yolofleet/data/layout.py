"""What a folder of annotated images holds: the form of its annotations, its splits, the labels of each image.

Known are COCO files, YOLO labels (with data.yaml, with Darknet's obj.data, or alone) and VOC, in the folders of CVAT,
Roboflow, Label Studio, FiftyOne, Datumaro and the datasets themselves. Beside the names of the files, only those are
read that say more: data.yaml, lists of images, and whether a JSON or XML file is one of annotations.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from yolofleet.core.errors import UserError
from yolofleet.core.text import and_more, short
from yolofleet.data.file_tree import (
    FileTree,
    common_folder,
    num_common_last,
    pair_labels,
    split_of,
    stem,
    without_split,
)
from yolofleet.specs.yaml_document import DocumentError, parse_yaml

Form = Literal["COCO", "YOLO", "VOC"]
Read = Callable[[str], bytes]
"""Returns the bytes of a file by its key."""

NAMES_FILES = ("classes.txt", "obj.names", "classes.names", "_darknet.labels", "predefined_classes.txt")
LIST_STEMS = ("train", "val", "valid", "test", "labels", "notes", "readme", "readme.roboflow", "readme.dataset")
MOST_JSON_FILES = 200
MOST_NAMES_COMPARED = 1000
YAML_ENDINGS = (".yaml", ".yml")

_COCO_KEYS = tuple(re.compile(rb'"' + key + rb'"\s*:\s*\[') for key in (b"images", b"annotations", b"categories"))
_FILE_NAME = re.compile(rb'"(?:file_name|coco_url)"\s*:\s*("(?:[^"\\]|\\.){0,4096}")')
_OTHER_TOOLS = (
    (
        ".json",
        rb'"shapes"\s*:',
        "labelme's own files",
        "labelme2coco.py or labelme2voc.py of labelme turns them to COCO or VOC",
    ),
    (".json", rb'"_via_|"region_attributes"\s*:', "a VIA project", "export it in VIA as COCO format"),
    (".json", rb'"from_name"\s*:', "a Label Studio export in its own JSON", "export it as COCO or YOLO, with images"),
    (".json", rb'"dm_format_version"|"items"\s*:', "Datumaro's own format", "datum convert -f coco turns it to COCO"),
    (".xml", rb"<annotations>", "CVAT's own XML", "export it from CVAT as COCO 1.0 or YOLO 1.1, with images"),
    (".csv", rb"(?i)ImageID,|filename,|xmin", "boxes in a CSV file", "FiftyOne turns it to COCO: fiftyone convert"),
)


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


def find_layout(keys: Sequence[str], read: Read, named: str | None = None, folder: str = "the folder") -> Layout:
    """Find the annotations and images of a folder.

    Args:
        keys: Every file of the folder.
        read: Reads one.
        named: The file that the user named: a data.yaml or a COCO file; None finds it.
        folder: The folder in messages.

    Raises:
        UserError: There are no annotations that can be read, or several sets of them.
    """
    tree = FileTree(keys)
    if not tree.images:
        raise UserError(f"{folder}: no images here, in {len(tree.keys)} files; name the folder that holds them")
    if named is not None:
        finders = [_find_data_yaml, _find_darknet] if not named.lower().endswith(".json") else [_find_coco]
    else:
        finders = [_find_data_yaml, _find_darknet, _find_coco, _find_voc, _find_labels]
    for find in finders:
        if (layout := find(tree, read, named, folder)) is not None:
            return layout
    raise UserError(_why_none(tree, read, named, folder))


def _why_none(tree: FileTree, read: Read, named: str | None, folder: str) -> str:
    for ending, pattern, tool, cure in _OTHER_TOOLS:
        for key in [named] if named is not None else tree.ending(ending)[:3]:
            if key.lower().endswith(ending) and re.search(pattern, read(key)[: 1 << 20]):
                return f"{folder}: {key} is {tool}, which is not read; {cure}, then name that"
    if named is not None:
        return f"{folder}/{named}: no data.yaml with train and names, and no COCO annotations; name the folder"
    return (
        f"{folder}: {len(tree.images)} images, but no annotations of theirs: no data.yaml, no COCO file (*.json), no "
        "VOC files (*.xml), no YOLO label (*.txt) with the name of an image; name the folder that holds both"
    )


# YOLO: data.yaml or obj.data name the images; labels are beside them or in the folder that goes with theirs.


def _find_data_yaml(tree: FileTree, read: Read, named: str | None, folder: str) -> Layout | None:
    found = {}
    for key in [named] if named is not None else tree.ending(*YAML_ENDINGS)[:MOST_JSON_FILES]:
        if not key.lower().endswith(YAML_ENDINGS):
            continue
        try:
            document = parse_yaml(read(key), source=f"{folder}/{key}")
        except DocumentError:
            if named is not None:
                raise
            continue  # a YAML file of something else
        if isinstance(document, dict) and "names" in document and {"train", "val", "valid", "test"} & document.keys():
            found[key] = document
    if not found:
        return None
    depth = min(key.count("/") for key in found)
    upper = [key for key in found if key.count("/") == depth]
    key = next((key for key in upper if stem(key).rpartition("/")[2] in ("data", "dataset")), upper[0])
    if len(upper) > 1 and stem(key).rpartition("/")[2] not in ("data", "dataset"):
        raise UserError(f"{folder}: {and_more(upper, 5)} each describe a dataset; name the one that is meant")
    document = found[key]
    given = {
        split: document.get(split) or (document.get("valid") if split == "val" else None)
        for split in ("train", "val", "test")
    }
    own = key.rpartition("/")[0]
    if isinstance(path := document.get("path"), str):
        given = {split: _below(path, value) for split, value in given.items()}
    return _named_images(tree, read, key, given, [own, ""], key, folder)


def _below(path: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_below(path, entry) for entry in value]
    return f"{path}/{value}" if isinstance(value, str) else value


def _find_darknet(tree: FileTree, read: Read, named: str | None, folder: str) -> Layout | None:
    for key in [named] if named is not None else tree.ending(".data")[:3]:
        if not key.lower().endswith(".data"):
            continue
        pairs = [line.partition("=") for line in read(key)[: 1 << 16].decode(errors="replace").splitlines()]
        fields = {name.strip(): value.strip() for name, equals, value in pairs if equals}
        if {"train", "valid", "names"} & fields.keys():
            bases = [key.rpartition("/")[0], ""]
            names_file = tree.file_at(fields.get("names", "obj.names"), bases)
            given = {"train": fields.get("train"), "val": fields.get("valid"), "test": fields.get("test")}
            return _named_images(tree, read, key, given, bases, names_file, folder)
    return None


def _named_images(
    tree: FileTree,
    read: Read,
    key: str,
    given: dict[str, Any],
    bases: Sequence[str],
    names_file: str | None,
    folder: str,
) -> Layout:
    """Return the layout of images that a file names by folders and lists."""
    labels = pair_labels(tree.images, tree.ending(".txt"))
    splits: dict[str, Part] = {}
    notes: list[str] = []
    for split, value in given.items():
        entries = [entry for entry in (value if isinstance(value, list) else [value]) if entry]
        images: dict[str, None] = {}
        for entry in entries:
            if not isinstance(entry, str):
                raise UserError(f"{folder}/{key}: {split}: a path or a list of paths is needed, not {short(value)}")
            listed = tree.file_at(entry, bases) if entry.lower().endswith(".txt") else None
            found = _images_of_list(tree, read, listed, notes) if listed is not None else tree.images_at(entry, bases)
            images.update(dict.fromkeys(found))
            if not found:
                notes.append(f"{key} names {split}: {short(entry)}, and no image is there")
        if images:
            splits[split] = _yolo_part(sorted(images), labels)
    if not splits:
        raise UserError(f"{folder}/{key}: no image is where it says; {'; '.join(notes) or 'it names none'}")
    notes += _left_out(tree, labels, {image for part in splits.values() for image in part.images})
    return Layout("YOLO", key, _distinct(splits, notes), names_file, tuple(notes))


def _images_of_list(tree: FileTree, read: Read, key: str, notes: list[str]) -> list[str]:
    lines = [line.strip() for line in read(key).decode("utf-8-sig", errors="replace").splitlines() if line.strip()]
    found = [(line, tree.find_image(line)) for line in lines]
    if missing := [line for line, image in found if image is None]:
        notes.append(f"{key}: {len(missing)} of {len(lines)} images are missing, such as {short(missing[0])}")
    return [image for _, image in found if image is not None]


def _find_labels(tree: FileTree, read: Read, named: str | None, folder: str) -> Layout | None:
    labels = pair_labels(tree.images, tree.ending(".txt"))
    if not labels:
        return None
    notes: list[str] = []
    groups = _by_folder(tree.images, notes)
    names_file = next((key for key in tree.ending(".txt", ".names", ".labels") if _is_names_file(key, labels)), None)
    names_file = names_file or next(iter(tree.ending("data.yaml", "dataset.yaml")), None)
    splits = {split: _yolo_part(images, labels) for split, images in groups.items()}
    first = next(iter(labels.values()))
    notes += _left_out(tree, labels, {image for part in splits.values() for image in part.images})
    return Layout("YOLO", first.rpartition("/")[0] or first, splits, names_file, tuple(notes))


def _is_names_file(key: str, labels: dict[str, str]) -> bool:
    return key.rpartition("/")[2].lower() in NAMES_FILES and key not in labels.values()


def _yolo_part(images: Sequence[str], labels: dict[str, str]) -> Part:
    return Part(
        {image: image for image in images},
        {f"{stem(image)}.txt": labels[image] for image in images if image in labels},
    )


def _left_out(tree: FileTree, labels: dict[str, str], used: set[str]) -> list[str]:
    """Return sentences on labelled images that no split holds, and on labels without an image."""
    notes = []
    if unused := [image for image in labels if image not in used]:
        notes.append(f"{len(unused)} labelled images belong to no split, such as {unused[0]}")
    files = set(tree.ending(".txt")) - set(labels.values())
    names = {key: key.rpartition("/")[2].lower() for key in files}
    alone = sorted(key for key in files if names[key] not in NAMES_FILES and stem(names[key]) not in LIST_STEMS)
    if alone:
        notes.append(f"{len(alone)} label files have no image, such as {alone[0]}")
    return notes


def _distinct(splits: dict[str, Part], notes: list[str]) -> dict[str, Part]:
    """Return the splits; one that holds the same images as another is left out, and images in two are noted."""
    kept: dict[str, Part] = {}
    for split, part in splits.items():
        same = next((other for other, found in kept.items() if found.images == part.images), None)
        if same is not None:
            notes.append(f"{split} has the same images as {same}: {same} is split instead")
            continue
        for other, found in kept.items():
            if shared := found.images.keys() & part.images.keys():
                notes.append(f"{len(shared)} images are in {other} and in {split}, such as {min(shared)}")
        kept[split] = part
    return kept


def _by_folder(images: Sequence[str], notes: list[str]) -> dict[str, list[str]]:
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


# VOC: an XML file an image, and lists of the images of each split.


def _find_voc(tree: FileTree, read: Read, named: str | None, folder: str) -> Layout | None:
    files = tree.ending(".xml")
    if not any(b"<annotation" in (head := read(key)[: 1 << 16]) and b"<annotations" not in head for key in files[:3]):
        return None
    labels = pair_labels(tree.images, files)
    notes: list[str] = []
    lists = [key for key in tree.ending(".txt") if "ImageSets/" in key]
    lists = [key for key in lists if "ImageSets/Main/" in key] or lists
    groups: dict[str, list[str]] = {}
    for key in lists:
        if (name := stem(key).rpartition("/")[2].lower()) in ("train", "val", "trainval", "test"):
            groups[name] = [image for image in _images_of_first_words(tree, read, key, notes) if image in labels]
    if not any(groups.values()):
        groups = _by_folder(tree.images, notes)
    used = set(labels.values())
    alone = [key for key in files if key not in used]  # their <filename> may name an image
    if unlabelled := sum(image not in labels for image in tree.images):
        notes.append(f"{unlabelled} images have no XML file, and are left out")
    others = {image: image for image in tree.images if image not in labels} if alone else {}
    splits = {}
    for split, images in groups.items():
        found = {f"{stem(image)}.xml": labels[image] for image in images if image in labels}
        if split in ("all", "train"):
            found.update({key: key for key in alone})
        if found:
            splits[split] = Part({image: image for image in images if image in labels} | others, found)
    return Layout("VOC", files[0].rpartition("/")[0] or files[0], splits, None, tuple(notes)) if splits else None


def _images_of_first_words(tree: FileTree, read: Read, key: str, notes: list[str]) -> list[str]:
    """Return the images that a list of ImageSets names: the first word of each line."""
    words = [line.split()[0] for line in read(key).splitlines() if line.split()]
    return _images_of_list(tree, lambda _: b"\n".join(words), key, notes)


# COCO: a JSON file a split; its images are where most of its file names are found.


def _find_coco(tree: FileTree, read: Read, named: str | None, folder: str) -> Layout | None:
    heads = {}
    for key in [named] if named is not None else tree.ending(".json")[:MOST_JSON_FILES]:
        data = read(key)
        if all(pattern.search(data) for pattern in _COCO_KEYS) and b'"segments_info"' not in data:
            heads[key] = _file_names(data)
    if not heads:
        return None
    notes: list[str] = []
    if named is not None and split_of(named) == "train":
        for key in tree.ending(".json")[:MOST_JSON_FILES]:
            if key != named and without_split(key) == without_split(named) and split_of(key) in ("val", "test"):
                heads[key] = _file_names(read(key))
    chosen = _one_a_split(list(heads), named, folder, notes)
    splits = {}
    for split, key in chosen.items():
        prefix = _image_folder(tree, heads[key], key, split)
        images = {image.removeprefix(prefix): image for image in tree.images if image.startswith(prefix)}
        splits[split] = Part(images, {key.rpartition("/")[2]: key})
    return Layout("COCO", next(iter(chosen.values())), splits, None, tuple(notes))


def _one_a_split(keys: Sequence[str], named: str | None, folder: str, notes: list[str]) -> dict[str, str]:
    """Return the annotation file of each split."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for key in keys:
        groups[split_of(stem(key)) or "all"].append(key)
    if named is not None and len(keys) == 1:
        return {"all": named}
    if "train" in groups:
        for split in ("all", "trainval"):
            notes += [f"{key} is left out: the splits have files of their own" for key in groups.pop(split, [])]
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
    found = _FILE_NAME.findall(data)
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
    folders (a base name for images in sub-folders) mean the folder that holds all of these.
    """
    votes: Counter[str] = Counter()
    best_folders = set()
    num_found = 0
    for name in names:
        parts = name.replace("\\", "/").split("/")
        folders = set()
        for image in tree.candidates(name):
            own = image.split("/")
            kept = len(own) - max(1, num_common_last(parts, own))
            folders.add("".join(f"{part}/" for part in own[:kept]))
        votes.update(folders)
        num_found += bool(folders)
        if len(folders) == 1:
            best_folders |= folders
    if not votes:
        return ""

    def rank(folder: str) -> tuple[int, bool, int, str]:
        near = len(common_folder([key[: key.rfind("/") + 1], folder]))
        return votes[folder], split_of(folder) == split, near, folder

    best = max(votes, key=rank)
    return best if votes[best] == num_found else common_folder(best_folders | {best})
