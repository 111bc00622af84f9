"""The names of classes that lie with YOLO labels: among them, or one folder up, as Label Studio and CVAT write them.

One folder up they may be those of another dataset. So they count only where they name every class of the labels, and
of a data.yaml one of the splits must lead to the labels or images.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from itertools import islice

from yolofleet.core.errors import UserError
from yolofleet.core.text import and_more, decode_text, plural, short
from yolofleet.data.annotation_kind import NAME_STEMS, is_label_text
from yolofleet.data.class_names import YAML_ENDINGS, ClassNames, parse_class_names
from yolofleet.data.problems import ProblemLog
from yolofleet.data.source_folder import SourceFolder, is_litter, open_source
from yolofleet.data.sources import SplitFiles
from yolofleet.data.yolo_dataset import SPLITS
from yolofleet.specs.yaml_document import DocumentError, parse_yaml
from yolofleet.storage import Storage, StorageError

MOST_NAMES_BYTES = 4 << 20
SURE_FILES = ("data.yaml", "dataset.yaml", "classes.txt", "obj.names", "_darknet.labels")
"""Files that hold nothing but names; the likelier first."""
OFFERED_NAMES = "predefined_classes.txt"
"""The names that LabelImg offers, which are not always those that it numbers."""
OTHER_FILES = tuple(f"{stem}.txt" for stem in NAME_STEMS if f"{stem}.txt" not in (*SURE_FILES, OFFERED_NAMES))
"""Files that may hold something else, as may any ``*.names``."""
ANY_NAMES = ".names"
"""The ending of Darknet's lists, such as coco.names."""
MOST_LIST_BYTES = 32 << 20
MOST_PATHS_SEEN = 20
"""Paths of a data.yaml one folder up, and the bytes of a list that it names; the first line is looked at."""
FIRST_LINE_BYTES = 8192
MOST_BESIDE = 10_000
"""Files one folder up whose names are looked at."""
_YAML_NAMES = re.compile(r"^[ \t]*[\"']?names[\"']?[ \t]*:", re.MULTILINE)


def find_class_names(split: SplitFiles, used: Set[str], highest: int) -> ClassNames | None:
    """Return the names in a file of names among the labels, or else one folder up; its path is counted as information.

    Args:
        split: The labels and images, and where the file is noted.
        used: Keys of the labels of images, which hold no names.
        highest: The highest class of the labels.

    Raises:
        UserError: Files in two sub-folders number the classes differently, or names cannot be read.
    """
    labels, problems = split.annotations, split.problems
    sizes = {entry.key: entry.size_bytes for entry in labels.list() if not is_litter(entry.key)}
    keys = [key for key, size in sizes.items() if key not in used and size <= MOST_NAMES_BYTES]
    for depth in sorted({key.count("/") for key in keys}):
        for group in _by_rank(key for key in keys if key.count("/") == depth):
            is_sure = all(key.rpartition("/")[2].lower() in SURE_FILES for key in group)
            files = {f"{labels.url}/{key}": labels.get(key) for key in group}
            if (names := _agreed(files, problems, None if is_sure else highest)) is not None:
                return names
    url, _, last = labels.url.rstrip("/").rpartition("/")
    if not url.strip("/") or not last or url.endswith(":/") or last.lower().endswith(".zip"):
        return None
    below = (path.removeprefix(f"{url}/") for path in (labels.url, split.images.url) if path.startswith(f"{url}/"))
    folders = {path.partition("/")[0] for path in below}
    return _names_in(url, folders | {"images"} if "labels" in folders else folders, problems, highest)


def _names_in(url: str, folders: Set[str], problems: ProblemLog, highest: int) -> ClassNames | None:
    """Return the names in a file of names in a folder, which is not listed: it may hold anything.

    Args:
        url: The folder.
        folders: The folders in it that hold the labels and images.
        problems: Where the file is noted.
        highest: The highest class of the labels.
    """
    folder = open_source(url, ProblemLog(), follow_links=False)
    keys = [*SURE_FILES, *OTHER_FILES, OFFERED_NAMES]
    if isinstance(folder, SourceFolder):
        with os.scandir(folder.root) as entries:
            lists = [entry.name for entry in islice(entries, MOST_BESIDE) if entry.name.endswith(ANY_NAMES)]
        keys += [name for name in lists if len(lists) == 1 and name not in keys]
    for group in _by_rank(keys):
        files = {f"{folder.url}/{key}": data for key in group if (data := _read(folder, key, MOST_NAMES_BYTES))}
        files = {
            key: data
            for key, data in files.items()
            if not key.endswith(YAML_ENDINGS)
            or _leads_to(folders, data, lambda key: _read(folder, key, MOST_LIST_BYTES))
        }
        if (names := _agreed(files, problems, highest)) is not None:
            return names
    return None


def _read(folder: Storage, key: str, most_bytes: int) -> bytes:
    try:
        return folder.get_at_most(key, most_bytes)
    except StorageError:  # not there, or no file
        return b""


def _leads_to(folders: Set[str], data: bytes, read: Callable[[str], bytes]) -> bool:
    """Return whether a split of a data.yaml, or the first image of a list that it names, is in one of these folders.

    Args:
        folders: Names of folders beside the data.yaml.
        data: Its bytes.
        read: Reads a list beside it; nothing where there is none.
    """
    try:
        document = parse_yaml(data, source="data.yaml")
    except DocumentError:
        return False
    values = [document.get(key) for keys in SPLITS.values() for key in keys] if isinstance(document, dict) else []
    paths = [path for value in values for path in (value if isinstance(value, list) else [value])]
    for path in [path for path in paths if isinstance(path, str)][:MOST_PATHS_SEEN]:
        parts = _parts(path)
        if path.lower().endswith(".txt"):
            lines = decode_text(read("/".join(parts))[:FIRST_LINE_BYTES], errors="replace").lstrip().splitlines()
            parts = _parts(lines[0]) if lines else []
            path = "/"  # a list may be of another root
        if not folders.isdisjoint(parts if path.startswith("/") or ":" in path else parts[:1]):
            return True
        if isinstance(root := document.get("path"), str) and _parts(root)[-1:] and _parts(root)[-1] in folders:
            return True
    return False


def _parts(path: str) -> list[str]:
    return [part for part in path.strip().replace("\\", "/").split("/") if part not in ("", ".", "..")]


def _by_rank(keys: Iterable[str]) -> Iterator[list[str]]:
    """Yield groups of files of names, the likelier first: those of each usual name, then all that may be others."""
    name_of = {key: key.rpartition("/")[2].lower() for key in keys}
    for wanted in SURE_FILES:
        yield [key for key, name in name_of.items() if name == wanted]
    unsure = {key: name for key, name in name_of.items() if name not in SURE_FILES}
    yield [key for key, name in unsure.items() if name in OTHER_FILES or name.endswith(ANY_NAMES)]
    yield [key for key, name in unsure.items() if name == OFFERED_NAMES]


def _agreed(files: Mapping[str, bytes], problems: ProblemLog, highest: int | None) -> ClassNames | None:
    """Return the names in files that agree, the longest list of them; None where no file holds names.

    Args:
        files: The files by their URL.
        problems: Where they are noted.
        highest: Where they may be names of something else, the highest class that they must name; None elsewhere.
    """
    try:
        lists = {url: parse_class_names(data, url) for url, data in files.items() if _holds_names(url, data)}
    except UserError as error:
        if highest is None:
            raise
        problems.add("class_names_ignored", str(error))
        return None
    if not lists:
        return None
    longest = max(lists, key=lambda url: len(lists[url]))
    for url, names in lists.items():
        for number, (one, other) in enumerate(zip(lists[longest], names, strict=False)):
            if one != other and highest is not None:
                problems.add("class_names_ignored", f"{and_more([*lists], 5)} differ")
                return None
            if one != other:
                raise UserError(
                    f"class {number} is {short(one)} in {longest} and {short(other)} in {url}; name the list of all "
                    "labels with --classes"
                )
    names_are = f"{longest}: {plural(len(lists[longest]), 'name')}"
    if highest is not None and highest >= len(lists[longest]):
        problems.add("class_names_ignored", f"{names_are}, and labels have class {highest}")
        return None
    problems.add("class_names_found", names_are)
    return lists[longest]


def _holds_names(url: str, data: bytes) -> bool:
    """Return whether a file is not a YAML file of something else, nor a label, nor empty."""
    text = decode_text(data, errors="replace")
    if url.lower().endswith(YAML_ENDINGS):
        return _YAML_NAMES.search(text) is not None
    return bool(text.strip()) and not is_label_text(text)
