"""data.yaml as a source: the names of the classes, and the images of its splits, whose labels are beside them.

``path``, ``train``, ``val`` and ``test`` are read as tools write them: folders, lists of images (``.txt``), or several
of these; a ``path`` of another computer says nothing. Nothing outside the file's folder is read unless links may be.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from yolofleet.core.errors import UserError
from yolofleet.core.text import and_more, short
from yolofleet.data.class_names import ClassNames, class_names_of
from yolofleet.data.file_tree import FileTree
from yolofleet.data.problems import ProblemLog
from yolofleet.data.records import ImageRecord
from yolofleet.data.source_folder import SourceFolder, is_litter, open_source
from yolofleet.data.sources import Annotations, ChosenImages, SourceDataset
from yolofleet.specs.yaml_document import MOST_BYTES, parse_yaml
from yolofleet.storage import Storage

SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
LONGEST_LIST_BYTES = 256 << 20


@dataclass(frozen=True)
class NamedImages:
    """What data.yaml names."""

    names: ClassNames
    labels: Storage
    """The folder with the labels."""
    images: ChosenImages
    missing: tuple[str, ...]
    """Names of the images that its lists name, and that are not there."""


def read_data_yaml(annotations: Annotations, split: str | None, problems: ProblemLog) -> NamedImages:
    """Read data.yaml: its names, the folder with its labels, and the images of one split, or of all.

    A split for validation or test that is not there is counted where another one is, and all were asked for.

    Raises:
        UserError: It is no data.yaml, or a split has no image.
    """
    url = annotations.url
    file = annotations.files[0]
    document = parse_yaml(annotations.storage.get_at_most(file.key, MOST_BYTES), source=url)
    if not isinstance(document, dict):
        raise UserError(f"{url}: data.yaml holds names, train and val, not {short(document)}")
    names = class_names_of(document, url)
    entries = {name: _entries(document, keys, url) for name, keys in SPLITS.items()}
    given = {name: found for name, found in entries.items() if found}
    wanted = [split] if split is not None else list(given)
    if not wanted or any(name not in given for name in wanted):
        raise UserError(
            f"{url}: no images are named for {split or 'train, val or test'}; it names {short(list(given))}"
        )
    folder, path = _root(annotations, document.get("path"), problems)
    keys = {entry.key: entry for entry in folder.list() if not is_litter(entry.key)}
    tree = FileTree(keys)
    chosen: dict[str, dict[str, None]] = {}
    missing: dict[str, str] = {}
    gone: dict[str, str] = {}
    for name in wanted:
        chosen[name] = {}
        for entry in given[name]:
            found, lost = tree.images_named(entry, [path, ""], lambda key: folder.get_at_most(key, LONGEST_LIST_BYTES))
            chosen[name].update(dict.fromkeys(found))
            missing.update((_inside(line), line) for line in lost)
            if not found:
                listed = f"; not there: {and_more([short(line) for line in lost], 2)}" if lost else ""
                gone.setdefault(name, f"no image is found at {short(entry)} in {folder.url}{listed}")
    there = [name for name in wanted if name not in gone]
    for name, why in gone.items():
        if name == "train" or not there or chosen[name]:
            cure = f"; give {' or '.join(there)} as IMAGES to read it alone" if there else ""
            raise UserError(f"{url}: {name}: {why}{cure}")
        problems.add("split_missing", f"{url}: {name}: {why}")
    for name in missing.keys() & keys.keys():  # a second, longer way to write the name of an image that is there
        problems.add("image_file_missing", f"{url}: {short(missing.pop(name))}")
    every = {key for found in chosen.values() for key in found}
    return NamedImages(names, folder, ChosenImages(folder, [keys[key] for key in sorted(every)]), tuple(missing))


def with_missing(source: SourceDataset, missing: tuple[str, ...]) -> SourceDataset:
    """Return a dataset that also lists images which are not there, so that they count as images that are lost."""
    if not missing:
        return source
    number = 1 + max((record.image_id for record in source.records), default=0)
    flags, whole = np.zeros(0, dtype=np.bool_), np.zeros(0, dtype=np.int64)
    empty = ImageRecord(number, "", 0, 0, np.zeros((0, 4)), whole, flags, np.zeros(0), ())
    lost = (replace(empty, image_id=index, file_name=name) for index, name in enumerate(missing, number))
    return replace(source, records=(*source.records, *lost))


def _inside(line: str) -> str:
    """Return a line of a list as a path below a folder, which a path of another computer is not."""
    parts = re.split(r"[\\/]+", line)
    return "/".join(part for part in parts if part not in ("", ".", "..") and not part.endswith(":"))


def _entries(document: dict[str, Any], keys: tuple[str, ...], url: str) -> list[str]:
    value: Any = next((document[key] for key in keys if document.get(key)), [])
    entries = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, str) and entry for entry in entries):
        raise UserError(f"{url}: {keys[0]}: a path or a list of paths is needed, not {short(value)}")
    return entries


def _root(annotations: Annotations, path: object, problems: ProblemLog) -> tuple[Storage, str]:
    """Return the folder below which images are, and the part of ``path`` that is below it."""
    storage = open_source(annotations.storage.url, problems, follow_links=annotations.follow_links)
    text = path if isinstance(path, str) else ""
    if not isinstance(storage, SourceFolder):
        return storage, "" if text.startswith("/") else text
    target = Path(os.path.realpath(os.path.join(storage.root, text)))
    inside = Path(os.path.realpath(storage.root))
    if target.is_relative_to(inside):
        return storage, target.relative_to(inside).as_posix()
    if not target.is_dir():
        return storage, ""  # a folder of another computer, or below one that is set there
    if not annotations.follow_links:
        raise UserError(f"{annotations.url}: path: {text} leads out of the file's folder; --follow-links reads it")
    return open_source(str(target), problems, follow_links=True), ""
