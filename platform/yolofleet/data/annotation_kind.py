"""Which kinds of annotations a folder holds, by what its files say; a name alone decides where no content does.

A dataset of ours in a sub-folder was made from the annotations around it, and is none of them. Of every file only the
ends are read, and only some files of each ending.
"""

from __future__ import annotations

import io
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence

from yolofleet.core.file_names import MANIFEST_NAME
from yolofleet.core.text import decode_text
from yolofleet.data.file_finder import without_type
from yolofleet.data.file_tree import SPLIT_WORDS
from yolofleet.data.source_folder import is_image_name, is_litter
from yolofleet.data.yolo_lines import BOX_NUMBERS
from yolofleet.storage import ObjectInfo, Storage, StorageError

COCO_ENDINGS = (".json", ".json.gz")
NAME_STEMS = ("classes", "class_names", "names", "labels", "predefined_classes")
"""Names of text files that hold the names of classes."""
NO_LABEL_STEMS = (*NAME_STEMS, *SPLIT_WORDS, "notes", "requirements", "license", "licence")
MOST_FILES_SEEN = 200
END_BYTES = 256 << 10
MOST_UNPACKED_BYTES = 1 << 20
LABEL_BYTES = 4096
MARK_BYTES = 256
TAR_HEAD_BYTES = 8192
_DATASET_MARK = b'"yolofleet-dataset"'
_NOTE_MARK = b'"plan"'
_LISTS = tuple(re.compile(rb'"%s"\s*:\s*\[' % key) for key in (b"images", b"annotations", b"categories"))
_NAMED_IMAGES = (_LISTS[0], re.compile(rb'"file_name"\s*:'))
_NAMED_OBJECTS = (_LISTS[1], re.compile(rb'"image_id"\s*:'))
_PANOPTIC, _CAPTION = b'"segments_info"', b'"caption"'


def is_no_label(key: str) -> bool:
    """Return whether the name of a text file is that of names, of a list of images, or of words about a dataset."""
    stem = without_type(_last(key)).lower()
    return stem in NO_LABEL_STEMS or stem.startswith("readme")


def source_files(folder: Storage) -> list[ObjectInfo]:
    """List a folder without our own datasets in its sub-folders, unless nothing else in it can be a source."""
    files = folder.list()
    made = tuple(_own_datasets(folder, files))
    others = [entry for entry in files if not entry.key.startswith(made)] if made else files
    return others if any(_can_be_source(entry.key) for entry in others) else files


def _own_datasets(folder: Storage, files: Sequence[ObjectInfo]) -> Iterator[str]:
    """Yield the sub-folders, each with its slash, that hold a dataset of ours, or the notes of its build."""
    seen = set()
    for entry in files:
        above, _, name = entry.key.rpartition("/")
        if name != MANIFEST_NAME and not f"/{above}".endswith("/building"):
            continue
        base, mark = (above, _DATASET_MARK) if name == MANIFEST_NAME else (above[: -len("/building")], _NOTE_MARK)
        if base and (base, mark) not in seen:
            seen.add((base, mark))
            if mark in _head(folder, entry, MARK_BYTES):
                yield f"{base}/"


def _can_be_source(key: str) -> bool:
    name = key.lower()
    if name.endswith(".txt"):
        return not is_no_label(name)
    return is_image_name(name) or name.endswith((*COCO_ENDINGS, ".xml", ".tar", ".csv"))


def kinds_of(folder: Storage, files: Sequence[ObjectInfo]) -> dict[str, str]:
    """Return the kinds of annotations in a folder, each with a file that shows it.

    Several are only those that content shows: a COCO file, label lines, a VOC file, and shards where no other images
    lie. Where it shows none, one kind is named by the names of the files, so that its reader says what is wrong with
    them; none at all where they say nothing.
    """
    usable = [entry for entry in files if not is_litter(entry.key)]
    texts, documents, jsons, archives = (
        [entry for entry in usable if entry.key.lower().endswith(endings)]
        for endings in (".txt", ".xml", COCO_ENDINGS, ".tar")
    )
    images = [_last(entry.key) for entry in usable if is_image_name(entry.key)]
    names = {form for name in images for form in (name, without_type(name))}
    labels = [entry for entry in texts if without_type(_last(entry.key)) in names]  # others may be any numbers
    shown = {
        "coco": next(iter(coco_files(folder, jsons, most=1)), None),
        "yolo": _first(folder, labels if images else texts, _is_label),
        "voc": _first(folder, documents, _is_voc),
        "webdataset": None if images else _first(folder, archives, _is_shard),
    }
    if kinds := {kind: entry.key for kind, entry in shown.items() if entry is not None}:
        return kinds
    of_other_names = _first(folder, texts, _is_label) if images else None
    by_name = [
        ("yolo", labels),
        ("webdataset", archives),
        ("yolo", [] if of_other_names is None else [of_other_names]),
        ("voc", documents),
        ("yolo", [] if jsons else [entry for entry in texts if not is_no_label(entry.key)]),
        ("coco", jsons),
    ]
    return next(({kind: entries[0].key} for kind, entries in by_name if entries), {})


def coco_files(folder: Storage, files: Sequence[ObjectInfo], *, most: int = MOST_FILES_SEEN) -> list[ObjectInfo]:
    """Return those JSON files that look like COCO annotations with boxes, at most so many, the outermost first."""
    found: list[ObjectInfo] = []
    for entry in sorted(files, key=lambda entry: (entry.key.count("/"), entry.key))[:MOST_FILES_SEEN]:
        if len(found) < most and _is_coco(_ends(folder, entry)):
            found.append(entry)
    return found


def _is_coco(data: bytes) -> bool:
    """Return whether the ends of a file show two of COCO's lists, or one with its own entries; between them is more."""
    lists = sum(pattern.search(data) is not None for pattern in _LISTS)
    has_own = any(all(pattern.search(data) for pattern in group) for group in (_NAMED_IMAGES, _NAMED_OBJECTS))
    holds_boxes = _PANOPTIC not in data and (_CAPTION not in data or b'"bbox"' in data)
    return (lists >= 2 or has_own) and holds_boxes


def is_label_text(text: str) -> bool:
    """Return whether the first line of a text is numbers alone, and as many as a label has."""
    fields = next((line.split() for line in text.splitlines() if line.strip()), [])
    try:
        return len([float(field) for field in fields]) > BOX_NUMBERS
    except ValueError:
        return False


def _is_label(folder: Storage, entry: ObjectInfo) -> bool:
    text = decode_text(_head(folder, entry, LABEL_BYTES), errors="replace")
    is_cut = entry.size_bytes > LABEL_BYTES and len(text.splitlines()) == 1
    return is_label_text(text.rpartition(" ")[0] if is_cut else text)


def _is_voc(folder: Storage, entry: ObjectInfo) -> bool:
    text = decode_text(_head(folder, entry, LABEL_BYTES), errors="replace").lower()
    return "<annotation" in text and "<annotations" not in text


def _is_shard(folder: Storage, entry: ObjectInfo) -> bool:
    """Return whether a tar begins with a file, as shards do; one that begins with a folder is a packed folder."""
    try:
        with tarfile.open(fileobj=io.BytesIO(_head(folder, entry, TAR_HEAD_BYTES)), mode="r:") as archive:
            first = archive.next()
    except (tarfile.TarError, ValueError, OverflowError, OSError):
        return False
    return first is not None and first.isfile()


def _first(
    folder: Storage, files: Sequence[ObjectInfo], shows: Callable[[Storage, ObjectInfo], bool]
) -> ObjectInfo | None:
    """Return a file that shows something; files with content are looked at, spread over all, until one does."""
    full = [entry for entry in files if entry.size_bytes]
    return next((entry for entry in full[:: 1 + len(full) // MOST_FILES_SEEN] if shows(folder, entry)), None)


def _last(key: str) -> str:
    return key.rpartition("/")[2]


def _ends(folder: Storage, entry: ObjectInfo) -> bytes:
    """Return the first and the last bytes of a JSON file; of a packed one those that its first bytes unpack to."""
    if not entry.key.lower().endswith(".gz"):
        if entry.size_bytes <= 2 * END_BYTES:
            return _head(folder, entry, 2 * END_BYTES)
        return _head(folder, entry, END_BYTES) + _read(folder, entry.key, entry.size_bytes - END_BYTES, END_BYTES)
    try:
        return zlib.decompressobj(wbits=31).decompress(_head(folder, entry, END_BYTES), MOST_UNPACKED_BYTES)
    except zlib.error:
        return b""


def _head(folder: Storage, entry: ObjectInfo, most_bytes: int) -> bytes:
    return _read(folder, entry.key, 0, min(entry.size_bytes, most_bytes))


def _read(folder: Storage, key: str, start: int, length: int) -> bytes:
    try:
        return folder.get_range(key, start, length) if length else b""
    except StorageError:  # its reader tells it
        return b""
