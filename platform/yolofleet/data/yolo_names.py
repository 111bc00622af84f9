"""The names of classes that lie with YOLO labels: among them, or one folder up, as Label Studio and CVAT write them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from itertools import islice

from yolofleet.core.errors import UserError
from yolofleet.core.text import decode_text, plural, short
from yolofleet.data.annotation_kind import NAME_STEMS, is_label_text
from yolofleet.data.class_names import YAML_ENDINGS, ClassNames, parse_class_names
from yolofleet.data.problems import ProblemLog
from yolofleet.data.source_folder import SourceFolder, is_litter, open_source
from yolofleet.data.sources import ImageStore
from yolofleet.storage import StorageError

MOST_NAMES_BYTES = 4 << 20
NAME_FILES = (
    *("data.yaml", "dataset.yaml", "classes.txt", "obj.names", "_darknet.labels"),
    *(f"{stem}.txt" for stem in NAME_STEMS if stem != "classes"),
)
"""The likelier first."""
ANY_NAMES = ".names"
"""The ending of Darknet's lists, such as coco.names."""
MOST_BESIDE = 10_000
"""Files one folder up whose names are looked at."""
_YAML_NAMES = re.compile(r"^[ \t]*[\"']?names[\"']?[ \t]*:", re.MULTILINE)


def find_class_names(labels: ImageStore, used: Set[str], problems: ProblemLog) -> ClassNames | None:
    """Return the names in a file of names among the labels, or else one folder up; its path is counted as information.

    Args:
        labels: The folder of labels.
        used: Keys of the labels of images, which hold no names.
        problems: Where the file is noted.

    Raises:
        UserError: Files in two sub-folders number the classes differently, or names cannot be read.
    """
    sizes = {entry.key: entry.size_bytes for entry in labels.list() if not is_litter(entry.key)}
    keys = [key for key, size in sizes.items() if key not in used and size <= MOST_NAMES_BYTES]
    for depth in sorted({key.count("/") for key in keys}):
        for group in _by_rank(key for key in keys if key.count("/") == depth):
            files = {f"{labels.url}/{key}": labels.get(key) for key in group}
            if (names := _agreed(files, problems)) is not None:
                return names
    url, _, last = labels.url.rstrip("/").rpartition("/")
    return (
        _names_in(url, problems) if url.strip("/") and last and not url.endswith(":/") and not _is_zip(last) else None
    )


def _is_zip(name: str) -> bool:
    return name.lower().endswith(".zip")


def _names_in(url: str, problems: ProblemLog) -> ClassNames | None:
    """Return the names in a file of names in a folder, which is not listed: it may hold anything."""
    folder = open_source(url, ProblemLog(), follow_links=False)
    keys = list(NAME_FILES)
    if isinstance(folder, SourceFolder):
        with os.scandir(folder.root) as entries:
            keys += sorted(entry.name for entry in islice(entries, MOST_BESIDE) if entry.name.endswith(ANY_NAMES))
    for key in keys:
        try:
            data = folder.get_at_most(key, MOST_NAMES_BYTES)
        except StorageError:  # not there, or no file
            continue
        if (names := _agreed({f"{folder.url}/{key}": data}, problems)) is not None:
            return names
    return None


def _by_rank(keys: Iterable[str]) -> Iterator[list[str]]:
    """Yield groups of files of names, each with those of one name; the likelier names first."""
    name_of = {key: key.rpartition("/")[2].lower() for key in keys}
    for wanted in NAME_FILES:
        yield [key for key, name in name_of.items() if name == wanted]
    yield [key for key, name in name_of.items() if name.endswith(ANY_NAMES) and name not in NAME_FILES]


def _agreed(files: Mapping[str, bytes], problems: ProblemLog) -> ClassNames | None:
    """Return the names in files that agree, the longest list of them; None where no file holds names."""
    lists = {url: parse_class_names(data, url) for url, data in files.items() if _holds_names(url, data)}
    if not lists:
        return None
    longest = max(lists, key=lambda url: len(lists[url]))
    for url, names in lists.items():
        for number, (one, other) in enumerate(zip(lists[longest], names, strict=False)):
            if one != other:
                raise UserError(
                    f"class {number} is {short(one)} in {longest} and {short(other)} in {url}; name the list of all "
                    "labels with --classes"
                )
    problems.add("class_names_found", f"{longest}: {plural(len(lists[longest]), 'name')}")
    return lists[longest]


def _holds_names(url: str, data: bytes) -> bool:
    """Return whether a file is not a YAML file of something else, nor a label, nor empty."""
    text = decode_text(data, errors="replace")
    if url.lower().endswith(YAML_ENDINGS):
        return _YAML_NAMES.search(text) is not None
    return bool(text.strip()) and not is_label_text(text)
