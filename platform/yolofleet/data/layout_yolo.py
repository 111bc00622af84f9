"""YOLO labels in a folder: with a data.yaml or Darknet's obj.data that names the images, or alone.

Labels are beside the images or in the folder that goes with theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from yolofleet.core.errors import UserError
from yolofleet.core.text import and_more, plural, short
from yolofleet.data.class_names import YAML_ENDINGS, parse_class_names
from yolofleet.data.file_finder import beside, without_type
from yolofleet.data.file_tree import SPLIT_WORDS, FileTree, Read, pair_labels
from yolofleet.data.layout import Layout, Part, by_folder
from yolofleet.data.yolo_dataset import SPLITS
from yolofleet.specs.yaml_document import DocumentError, parse_yaml

NAMES_FILES = ("classes.txt", "obj.names", "classes.names", "_darknet.labels")
OFFERED_NAMES_FILES = ("predefined_classes.txt",)
"""The names that LabelImg offers, which are not always those that it numbers."""
_SPLIT_KEYS = [key for keys in SPLITS.values() for key in keys]
LIST_STEMS = ("train", "val", "valid", "test", "labels", "notes", "readme", "readme.roboflow", "readme.dataset")
MOST_YAML_FILES = 200


def find_data_yaml(tree: FileTree, read: Read, named: str | None, folder: str) -> Layout | None:
    """Return what a data.yaml says that names classes and splits; None where there is none."""
    found = {}
    outermost = sorted(tree.ending(*YAML_ENDINGS), key=lambda key: (key.count("/"), key))[:MOST_YAML_FILES]
    for key in [named] if named is not None else outermost:
        if not key.lower().endswith(YAML_ENDINGS):
            continue
        try:
            document = parse_yaml(read(key), source=f"{folder}/{key}")
        except DocumentError:
            if named is not None:
                raise
            continue  # a YAML file of something else
        if isinstance(document, dict) and "names" in document and not document.keys().isdisjoint(_SPLIT_KEYS):
            found[key] = document
    if not found:
        return None
    depth = min(key.count("/") for key in found)
    upper = [key for key in found if key.count("/") == depth]
    best = [key for key in upper if without_type(key).rpartition("/")[2] in ("data", "dataset")] or upper
    if len(best) > 1:
        raise UserError(f"{folder}: {and_more(best, 5)} each describe a dataset; name the one that is meant")
    (key,) = best
    document = found[key]
    given = _given(document)
    own = key.rpartition("/")[0]
    if isinstance(path := document.get("path"), str):
        given = {split: _below(path, value) for split, value in given.items()}
    return _named_images(tree, read, key, given, [own, ""], key, folder)


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a description says of each split."""
    return {split: next((fields[key] for key in keys if fields.get(key)), None) for split, keys in SPLITS.items()}


def _below(path: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_below(path, entry) for entry in value]
    return f"{path}/{value}" if isinstance(value, str) else value


def find_darknet(tree: FileTree, read: Read, named: str | None, folder: str) -> Layout | None:
    """Return what an ``obj.data`` of Darknet says; None where there is none."""
    for key in [named] if named is not None else tree.ending(".data")[:3]:
        if not key.lower().endswith(".data"):
            continue
        pairs = [line.partition("=") for line in read(key)[: 1 << 16].decode(errors="replace").splitlines()]
        fields = {name.strip(): value.strip() for name, equals, value in pairs if equals}
        if {"train", "valid", "names"} & fields.keys():
            bases = [key.rpartition("/")[0], ""]
            names_file = tree.file_at(fields.get("names", "obj.names"), bases)
            return _named_images(tree, read, key, _given(fields), bases, names_file, folder)
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
            found, missing = tree.images_named(entry, bases, read)
            images.update(dict.fromkeys(found))
            if missing:
                images_are = plural(len(missing), "listed image is", "listed images are")
                notes.append(f"{entry}: {images_are} missing, such as {short(missing[0])}")
            if not found:
                notes.append(f"{key} names {split}: {short(entry)}, and no image is there")
        if images:
            splits[split] = _yolo_part(sorted(images), labels)
    if not splits:
        raise UserError(f"{folder}/{key}: no image is where it says; {'; '.join(notes) or 'it names none'}")
    used = {image for part in splits.values() for image in part.images}
    lost = [split for split in ("train", "val") if given.get(split) and split not in splits]
    if "train" in lost or (lost and labels.keys() - used):
        # Without images of its own for validation, a set is split; but these are there, under another name.
        raise UserError(f"{folder}/{key}: {lost[0]} has no image where it says; {'; '.join(notes)}; correct its paths")
    notes += _left_out(tree, labels, used)
    return Layout("YOLO", key, _distinct(splits, notes), names_file, tuple(notes))


def find_labels(tree: FileTree, read: Read, named: str | None, folder: str) -> Layout | None:
    """Return images with labels that no file describes; None where no label has the name of an image."""
    labels = pair_labels(tree.images, tree.ending(".txt"))
    if not labels:
        return None
    names_file = _names_file(tree, read, labels, folder)
    others = set(tree.ending(".txt")) - set(labels.values())
    words = {key: SPLIT_WORDS.get(without_type(key).rpartition("/")[2].lower()) for key in others}
    lists: dict[str, Any] = {split: key for key, split in sorted(words.items()) if split is not None}
    if "train" in lists and tree.images_of_list(lists["train"], read)[0]:
        return _named_images(tree, read, lists["train"], lists, [""], names_file, folder)
    notes: list[str] = []
    groups = by_folder(tree.images, labels.keys(), notes)
    splits = {split: _yolo_part(images, labels) for split, images in groups.items()}
    first = next(iter(labels.values()))
    notes += _left_out(tree, labels, {image for part in splits.values() for image in part.images})
    return Layout("YOLO", first.rpartition("/")[0] or first, splits, names_file, tuple(notes))


def _names_file(tree: FileTree, read: Read, labels: dict[str, str], folder: str) -> str | None:
    """Return the file with the class names of all labels; of several that agree, the longest.

    Raises:
        UserError: Two of them number the classes differently.
    """
    names_of = {key: key.rpartition("/")[2].lower() for key in tree.ending(".txt", ".names", ".labels", ".yaml")}
    for label in labels.values():
        names_of.pop(label, None)
    kinds = (NAMES_FILES, OFFERED_NAMES_FILES, ("data.yaml", "dataset.yaml"))
    groups = ([key for key, name in names_of.items() if name in kind] for kind in kinds)
    files = next((group for group in groups if group), [])
    if len(files) < 2:
        return files[0] if files else None
    lists = {key: parse_class_names(read(key), f"{folder}/{key}") for key in files}
    longest = max(files, key=lambda key: len(lists[key]))
    for key in files:
        for number, (one, other) in enumerate(zip(lists[longest], lists[key], strict=False)):
            if one != other:
                raise UserError(
                    f"{folder}: class {number} is {short(one)} in {longest} and {short(other)} in {key}, and one list "
                    "of names is for all labels; remove the file that is not theirs, or renumber its labels"
                )
    return longest


def _yolo_part(images: Sequence[str], labels: dict[str, str]) -> Part:
    return Part(
        {image: image for image in images},
        dict(_label_name(image, labels[image]) for image in images if image in labels),
    )


def _label_name(image: str, label: str) -> tuple[str, str]:
    """Return the name of a label file by which `read_yolo` finds it, and its key."""
    stem = without_type(image)
    is_found = without_type(label) in (stem, beside(stem, "images", "labels"))
    return label if is_found else f"{stem}.txt", label


def _left_out(tree: FileTree, labels: dict[str, str], used: set[str]) -> list[str]:
    """Return sentences on labelled images that no split holds, and on labels without an image."""
    notes = []
    if unused := [image for image in labels if image not in used]:
        images_belong = plural(len(unused), "labelled image belongs", "labelled images belong")
        notes.append(f"{images_belong} to no split, such as {unused[0]}")
    files = set(tree.ending(".txt")) - set(labels.values())
    names = {key: key.rpartition("/")[2].lower() for key in files}
    no_labels = (*NAMES_FILES, *OFFERED_NAMES_FILES)
    alone = sorted(key for key in files if names[key] not in no_labels and without_type(names[key]) not in LIST_STEMS)
    if alone:
        files_have = plural(len(alone), "label file has", "label files have")
        notes.append(f"{files_have} no image, such as {alone[0]}")
    return notes


def _distinct(splits: dict[str, Part], notes: list[str]) -> dict[str, Part]:
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
