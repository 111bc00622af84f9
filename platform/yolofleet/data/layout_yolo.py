"""YOLO labels in a folder: with a data.yaml or Darknet's obj.data that names the images, or alone.

Labels are beside the images or in the folder that goes with theirs.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from yolofleet.core.errors import UserError
from yolofleet.core.text import and_more, decode_text, plural, short
from yolofleet.data.annotation_kind import is_label_text, is_no_label
from yolofleet.data.class_names import YAML_ENDINGS, parse_class_names
from yolofleet.data.file_finder import beside, without_type
from yolofleet.data.file_tree import SPLIT_WORDS, FileTree, Read, folder_of, name_of, pair_labels, split_of
from yolofleet.data.layout import Layout, Part, by_folder, distinct, no_samples
from yolofleet.data.source_folder import is_image_name
from yolofleet.data.yolo_dataset import SPLITS
from yolofleet.specs.yaml_document import DocumentError, parse_yaml

NAMES_FILES = ("classes.txt", "obj.names", "classes.names", "_darknet.labels")
OTHER_NAMES_FILES = ("labels.txt", "class_names.txt", "names.txt")
"""Files that may hold something else, as may any ``*.names``."""
OFFERED_NAMES_FILES = ("predefined_classes.txt",)
"""The names that LabelImg offers, which are not always those that it numbers."""
LONGEST_NAME = 200
_SPLIT_KEYS = [key for keys in SPLITS.values() for key in keys]
MOST_YAML_FILES = 200
MOST_LISTS = 100
MOST_PATHS = 1000
"""Of folders, lists or images, in a description; a list of images may be longer."""
_NAMES_KEY, _SPLIT_KEY = (
    re.compile(rb"^[ \t{\"']*(?:%s)[\"']?[ \t]*:" % keys, re.MULTILINE)
    for keys in (b"names", b"train|val|valid|validation")
)


def find_data_yaml(tree: FileTree, read: Read, named: str | None, folder: str) -> Layout | None:
    """Return what a data.yaml says that names classes and splits; None where there is none."""
    found, unread = {}, {}
    outermost = sorted(tree.ending(*YAML_ENDINGS), key=lambda key: (key.count("/"), key))[:MOST_YAML_FILES]
    for key in [named] if named is not None else outermost:
        if not key.lower().endswith(YAML_ENDINGS):
            continue
        data = read(key)
        try:
            document = parse_yaml(_decoded(data), source=f"{folder}/{key}")
        except DocumentError as error:
            text = data.replace(b"\0", b"")  # UTF-16 has a zero in each letter
            if named is not None or (_NAMES_KEY.search(text) and _SPLIT_KEY.search(text)):
                unread[key] = error
            continue  # a YAML file of something else
        if isinstance(document, dict) and "names" in document and not document.keys().isdisjoint(_SPLIT_KEYS):
            found[key] = document
    depths = {key: key.count("/") for key in (*unread, *found)}
    for key, why in unread.items():
        if depths[key] == min(depths.values()):  # one that is further in is of another dataset
            raise why
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


def _decoded(data: bytes) -> str | bytes:
    """Return the text of a file; its bytes where they are none, so that the parser says why."""
    try:
        return decode_text(data)
    except UnicodeDecodeError:
        return data


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
        pairs = [line.partition("=") for line in decode_text(read(key)[: 1 << 16], errors="replace").splitlines()]
        fields = {name.strip().lower(): value.strip() for name, equals, value in pairs if equals}
        if {*_SPLIT_KEYS, "names"} & fields.keys():
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
    files = _label_files(tree, read)
    labels = pair_labels(tree.images, files)
    splits: dict[str, Part] = {}
    notes: list[str] = []
    for split, value in given.items():
        entries = [entry for entry in (value if isinstance(value, list) else [value]) if entry]
        if len(entries) > MOST_PATHS:
            num_paths = f"{plural(len(entries), 'path')}, at most {MOST_PATHS:,}"
            raise UserError(f"{folder}/{key}: {split}: {num_paths}; name a file that lists the images")
        images: dict[str, None] = {}
        absent: dict[str, None] = {}
        for entry in entries:
            if not isinstance(entry, str):
                raise UserError(f"{folder}/{key}: {split}: a path or a list of paths is needed, not {short(value)}")
            found, missing = tree.images_named(entry, bases, read)
            images.update(dict.fromkeys(found))
            absent.update(dict.fromkeys(missing))
            if missing and not found:
                images_are = plural(len(missing), "listed image is", "listed images are")
                notes.append(f"{entry}: {images_are} missing, such as {short(missing[0])}")
            if not found:
                notes.append(f"{key} names {split}: {short(entry)}, and no image is there")
        if images:
            splits[split] = replace(_yolo_part(sorted(images), labels), missing=tuple(absent))
    if not splits:
        raise UserError(f"{folder}/{key}: no image is where it says; {'; '.join(notes) or 'it names none'}")
    used = {image for part in splits.values() for image in part.images}
    lost = [split for split in ("train", "val") if given.get(split) and split not in splits]
    if "train" in lost or (lost and labels.keys() - used):
        # Without images of its own for validation, a set is split; but these are there, under another name.
        raise UserError(f"{folder}/{key}: {lost[0]} has no image where it says; {'; '.join(notes)}; correct its paths")
    notes += _not_used(labels, used)
    splits = _with_labels_alone(distinct(splits, notes), labels, files, notes)
    return Layout("YOLO", key, splits, names_file, tuple(notes))


def find_labels(tree: FileTree, read: Read, named: str | None, folder: str) -> Layout | None:
    """Return images with labels that no file describes; None where no label has the name of an image."""
    files = _label_files(tree, read)
    labels = pair_labels(tree.images, files)
    if not labels:
        return None
    notes: list[str] = []
    names_file = _names_file(tree, read, labels, folder, notes)
    lists = _lists(tree, read, set(labels.values()), notes)
    if "train" in lists:
        layout = _named_images(tree, read, lists["train"], lists, [""], names_file, folder)
        return replace(layout, notes=(*notes, *layout.notes))
    splits = {}
    for split, images in by_folder(tree.images, labels.keys(), notes).items():
        left_out = no_samples(images, labels.keys())
        kept = sorted(set(images).difference(left_out))
        splits[split] = replace(_yolo_part(kept, labels), left_out=tuple(left_out))
    first = next(iter(labels.values()))
    notes += _not_used(labels, {image for part in splits.values() for image in part.images})
    splits = _with_labels_alone(splits, labels, files, notes)
    return Layout("YOLO", first.rpartition("/")[0] or first, splits, names_file, tuple(notes))


def _label_files(tree: FileTree, read: Read) -> list[str]:
    """Return the text files that may be labels: one called ``train.txt`` may be a list, and its content decides."""
    return [key for key in tree.ending(".txt") if not _may_be_no_label(key) or _is_label(read(key))]


def _may_be_no_label(key: str) -> bool:
    stem = without_type(key).rpartition("/")[2]
    return is_no_label(key) or (split_of(stem) is not None and not any(letter.isdigit() for letter in stem))


def _is_label(data: bytes) -> bool:
    return is_label_text(decode_text(data, errors="replace"))


def _lists(tree: FileTree, read: Read, labels: Collection[str], notes: list[str]) -> dict[str, Any]:
    """Return the list of images of each split: ``train.txt``, or else such as ``autosplit_train.txt``."""
    keys = [key for key in tree.ending(".txt") if key not in labels and _may_be_no_label(key)][:MOST_LISTS]
    keys = [key for key in keys if tree.images_of_list(key, read)[0]]
    for word_of in (SPLIT_WORDS.get, split_of):
        groups: defaultdict[str, list[str]] = defaultdict(list)
        for key in keys:
            if (split := word_of(without_type(key).rpartition("/")[2].lower())) is not None:
                groups[split].append(key)
        if "train" in groups:
            for split, found in groups.items():
                notes += [f"{key} is left out: {found[0]} lists the images of {split}" for key in found[1:]]
            return {split: found[0] for split, found in groups.items()}
    return {}


def _names_file(tree: FileTree, read: Read, labels: dict[str, str], folder: str, notes: list[str]) -> str | None:
    """Return the file with the class names of all labels; of several that agree, the longest.

    Raises:
        UserError: Two of them number the classes differently.
    """
    names_of = {key: key.rpartition("/")[2].lower() for key in tree.ending(".txt", ".names", ".labels", ".yaml")}
    for label in labels.values():
        names_of.pop(label, None)
    others = [key for key, name in names_of.items() if name in OTHER_NAMES_FILES or name.endswith(".names")]
    groups = [[key for key, name in names_of.items() if name in kind] for kind in (NAMES_FILES, OFFERED_NAMES_FILES)]
    groups.insert(1, [key for key in others if not groups[0] and _is_list_of_names(read(key))])
    groups.append([key for key, name in names_of.items() if name in ("data.yaml", "dataset.yaml")])
    files = next((group for group in groups if group), [])
    if len(files) < 2:
        return files[0] if files else None
    lists = {key: parse_class_names(read(key), f"{folder}/{key}") for key in files}
    longest = max(files, key=lambda key: len(lists[key]))
    for key in files:
        for number, (one, other) in enumerate(zip(lists[longest], lists[key], strict=False)):
            if one != other and files is groups[1]:
                notes.append(f"{and_more(files, 5)} hold different lists, so that none is taken for class names")
                return None
            if one != other:
                raise UserError(
                    f"{folder}: class {number} is {short(one)} in {longest} and {short(other)} in {key}, and one list "
                    "of names is for all labels; remove the file that is not theirs, or renumber its labels"
                )
    return longest


def _is_list_of_names(data: bytes) -> bool:
    """Return whether a text is a short name a line, none of them labelme's ``__ignore__``, which it does not count."""
    lines = [line.strip() for line in decode_text(data, errors="replace").splitlines() if line.strip()]
    are_short = all(len(line) < LONGEST_NAME and not is_image_name(line) for line in lines)
    return bool(lines) and are_short and lines[0] != "__ignore__" and not is_label_text(lines[0])


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


def _not_used(labels: dict[str, str], used: set[str]) -> list[str]:
    """Return a sentence on labelled images that no split holds."""
    unused = [image for image in labels if image not in used]
    images_belong = plural(len(unused), "labelled image belongs", "labelled images belong")
    return [f"{images_belong} to no split, such as {unused[0]}"] if unused else []


def _with_labels_alone(
    splits: dict[str, Part], labels: dict[str, str], files: Sequence[str], notes: list[str]
) -> dict[str, Part]:
    """Return the splits with label files that have no image, which are counted where they are read.

    Those of a split that is not here, and those of a folder of other labels of the same images, are noted.
    """
    label_folders = {folder_of(label) for label in labels.values()}
    names = {name_of(image) for image in labels}
    alone: defaultdict[str, dict[str, str]] = defaultdict(dict)
    others = []
    for key in sorted(set(files).difference(labels.values())):
        own = split_of(folder_of(key))
        is_second = folder_of(key) not in label_folders and name_of(key) in names
        if is_second or (own is not None and own not in splits and "all" not in splits):
            others.append(key)
        else:
            alone[own if own in splits else next(iter(splits))][key] = key
    if others:
        files_are = plural(len(others), "label file is", "label files are")
        notes.append(f"{files_are} of no image of these splits, such as {others[0]}")
    return {
        split: replace(part, labels={**alone[split], **part.labels}) if split in alone else part
        for split, part in splits.items()
    }
