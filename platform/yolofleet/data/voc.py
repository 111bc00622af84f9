"""Pascal VOC annotations as a source: one XML file an image.

Corners are whole pixels counted from 1, both inside the box, so ``x = xmin - 1`` and ``width = xmax - xmin + 1``. Some
tools count from 0 and write edges (see `voc_corners`): then ``x = xmin`` and ``width = xmax - xmin``. An object marked
``difficult`` is neither a target nor a miss in VOC; it becomes a crowd, which is the same here.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from xml.etree import ElementTree

from yolofleet.core.errors import UserError
from yolofleet.core.text import and_more, plural, short
from yolofleet.data.annotation import BoxProblem, CleanBox, build_record, clean_numbers
from yolofleet.data.box_meaning import is_of_shares, refuse_shares
from yolofleet.data.file_finder import beside, find_files, without_type
from yolofleet.data.other_tools import other_tool
from yolofleet.data.problems import ProblemLog
from yolofleet.data.records import ImageRecord, ObjectClass
from yolofleet.data.source_folder import is_image_name, is_litter
from yolofleet.data.sources import ImageStore, SourceDataset, SplitFiles
from yolofleet.data.voc_corners import Corners, first_pixel, read_corners

LONGEST_XML_BYTES = 4 << 20
MOST_ELEMENTS = 300_000
"""Each takes a hundred bytes of memory, and only three of the file."""
DEEPEST_ELEMENT = 64
MOST_SIZE_DIGITS = 9
DECODED = {"gb2312": "gb18030", "gbk": "gb18030", "cp936": "gb18030"} | {
    name: name for name in ("gb18030", "big5", "cp950", "shift_jis", "cp932", "euc_jp", "euc_kr", "cp949")
}
"""Codecs of encodings with several bytes a character, which expat does not read."""
DECLARED_ENCODING = re.compile(rb"<\?xml[^>]{1,200}?\bencoding\s*=\s*[\"']([\w.-]{1,40})[\"']")


@dataclass(frozen=True)
class _Object:
    where: str
    name: str
    corners: Corners
    is_hard: bool


@dataclass(frozen=True)
class _File:
    key: str
    named: str
    """The image that it names."""
    size: tuple[int, int]
    objects: list[_Object]


def read_voc(
    annotations: ImageStore, images: ImageStore, class_names: list[str] | None, problems: ProblemLog
) -> SourceDataset:
    """Read every XML file below ``annotations``.

    Args:
        annotations: Folder of XML files.
        images: Folder of images.
        class_names: Names by class; None takes the names that occur, sorted.
        problems: Where problems are counted.

    Raises:
        UserError: There is no annotation, or no class.
    """
    (source,) = read_voc_splits([SplitFiles(annotations, images, problems)], class_names)
    return source


def read_voc_splits(splits: Sequence[SplitFiles], class_names: list[str] | None) -> list[SourceDataset]:
    """Read the splits of a dataset with the same classes; what its first pixel is called is decided over all of them.

    Raises:
        UserError: A split has no annotation, or there is no class.
    """
    files = [_files(split) for split in splits]
    first, is_clear = first_pixel([entry.corners for found in files for file in found for entry in file.objects])
    if not is_clear:
        for split in splits:
            split.problems.add("corners_unclear", f"{split.annotations.url}: pixels from 1 are written as 58, not 58.0")
    cleaned = [
        [_clean_objects(file.objects, first, file.key, split.problems) for file in found]
        for split, found in zip(splits, files, strict=True)
    ]
    names = class_names or sorted({name for found in cleaned for objects in found for name, _ in objects})
    if not names:
        cause = splits[0].problems.main_loss() or "name the classes with --classes"
        raise UserError(f"{splits[0].annotations.url}: no object can be used; {cause}")
    if len(names) > len(set(names)):
        ((twice, _),) = Counter(names).most_common(1)
        raise UserError(f"--classes: {twice!r} is there twice, and VOC objects are known by name; name each class once")
    return [_source(*parts, first, names) for parts in zip(splits, files, cleaned, strict=True)]


def _files(split: SplitFiles) -> list[_File]:
    found = []
    for entry in split.annotations.list():
        if not entry.key.lower().endswith(".xml") or is_litter(entry.key):
            continue
        root = _root(split.annotations, entry.key, entry.size_bytes, split.problems)
        if root is None:
            continue
        size = (_whole(root.findtext("size/width")), _whole(root.findtext("size/height")))
        if min(size) <= 0:
            split.problems.add("image_size_missing", entry.key)
            size = (0, 0)
        found.append(_File(entry.key, _named(root), size, list(_objects(root, entry.key, split.problems))))
    if not found:
        url, reasons = split.annotations.url, split.problems.reasons()
        raise UserError(f"{url}: no usable VOC annotation (*.xml) here; {reasons}".rstrip("; "))
    return found


def _named(root: ElementTree.Element) -> str:
    return (root.findtext("filename") or "").strip()


def _source(
    split: SplitFiles, files: list[_File], cleaned: list[list[tuple[str, CleanBox]]], first: int, names: list[str]
) -> SourceDataset:
    boxes = [clean.box for objects in cleaned for _, clean in objects]
    shares = [is_of_shares((x + first, y + first, width - first, height - first)) for x, y, width, height in boxes]
    refuse_shares(sum(shares), len(shares), split.annotations.url)
    index_of = {name: index for index, name in enumerate(names)}
    images = [entry.key for entry in split.images.list()]
    keys = _image_keys([(file.key, file.named) for file in files], images, split.problems)
    records = tuple(
        _record(number, key, file.size, objects, index_of, split.problems)
        for number, (key, file, objects) in enumerate(zip(keys, files, cleaned, strict=True), start=1)
    )
    return SourceDataset(tuple(ObjectClass(index + 1, name) for index, name in enumerate(names)), records)


def _image_keys(files: list[tuple[str, str]], images: list[str], problems: ProblemLog) -> list[str]:
    """Return the image of each XML (key, name in it): that of its own name, or else the one that it names."""
    images = [key for key in images if is_image_name(key) and not is_litter(key)]
    by_stem: dict[str, list[str]] = {}
    for image_key in images:
        by_stem.setdefault(without_type(image_key), []).append(image_key)
    own_names = [beside(without_type(key), "Annotations", "JPEGImages") for key, _ in files]
    stems = find_files(own_names, by_stem.keys())
    named_images = find_files([named or key for key, named in files], images)
    found: list[str] = []
    users: dict[str, str] = {}
    for (key, named), own, stem, named_image in zip(files, own_names, stems, named_images, strict=True):
        candidates = by_stem[stem] if stem is not None else []
        image = named_image if named_image in candidates or not candidates else candidates[0]
        found.append(image or named or key)
        if image is None:
            continue
        if len(candidates) > 1:
            problems.add("label_of_several_images", f"{key}: {and_more(candidates, 3)}; it is of {image}")
        if image in users:
            problems.add("image_duplicate_file", f"{image}: {users[image]}, {key}")
        users[image] = key
        named_stem = (without_type(named) if is_image_name(named) else named).replace("\\", "/")
        if stem != own:
            problems.add("file_name_repaired", f"{key}: its image is {image}")
        elif named and PurePosixPath(named_stem).name != PurePosixPath(own).name:
            problems.add("file_name_differs", f"{key}: its filename is {short(named)}, its image {image}")
    return found


def _root(storage: ImageStore, key: str, size_bytes: int, problems: ProblemLog) -> ElementTree.Element | None:
    if size_bytes > LONGEST_XML_BYTES:
        problems.add("annotation_malformed", f"{key}: {plural(size_bytes, 'byte')}, too many for a VOC annotation")
        return None
    data = storage.get(key)
    try:
        root = _tree(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        problems.add("annotation_malformed", f"{key}: no XML: {error}")
        return None
    if root.tag != "annotation":
        what = other_tool(key, data) or f"begins with <{root.tag}>, and VOC with <annotation>"
        problems.add("annotation_malformed", f"{key}: {what}")
        return None
    return root


def _tree(data: bytes) -> ElementTree.Element:
    """Return the root of a file's elements.

    Raises:
        ParseError: It is no XML.
        ValueError: It holds what VOC has not.
        LookupError: Its encoding is not known.
    """
    return ElementTree.fromstring(_decoded(data.lstrip()), ElementTree.XMLParser(target=_PlainTree()))


def named_image(data: bytes) -> str:
    """Return the name in the <filename> of an XML file; nothing where it has none, or is no such file."""
    try:
        return _named(_tree(data)) if len(data) <= LONGEST_XML_BYTES else ""
    except (ElementTree.ParseError, ValueError, LookupError):
        return ""


def _decoded(data: bytes) -> bytes | str:
    """Return the text of a file in an encoding that expat does not know, else its bytes."""
    declared = DECLARED_ENCODING.match(data)
    codec = DECODED.get(codecs.lookup(declared[1].decode()).name) if declared else None
    return data.decode(codec) if codec else data


class _PlainTree(ElementTree.TreeBuilder):
    """Names elements in lower case, without a namespace, as tools write them in other ways, too.

    Refuses a document type, in any encoding: VOC has none, and the entities of one can blow up to any size.
    """

    def __init__(self) -> None:
        super().__init__()
        self._num_elements = self._depth = 0

    def start(self, tag: str, attrs: dict[str, str]) -> ElementTree.Element:
        self._num_elements, self._depth = self._num_elements + 1, self._depth + 1
        if self._num_elements > MOST_ELEMENTS or self._depth > DEEPEST_ELEMENT:
            raise ValueError(f"more than {MOST_ELEMENTS:,} elements, or nested deeper than {DEEPEST_ELEMENT}")
        return super().start(_plain(tag), attrs)

    def end(self, tag: str) -> ElementTree.Element:
        self._depth -= 1
        return super().end(_plain(tag))

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError("it declares a document type or XML entities")


def _plain(tag: str) -> str:
    return tag.rpartition("}")[2].lower()


def _objects(root: ElementTree.Element, key: str, problems: ProblemLog) -> Iterator[_Object]:
    for number, entry in enumerate(root.iter("object"), start=1):
        where = f"{key}: object {number}"
        try:
            corners = read_corners(entry)
        except ValueError:
            problems.add("box_malformed", where)
            continue
        if not corners.is_upright:
            problems.add("box_rotated", where)
        is_hard = (entry.findtext("difficult") or "0").strip().lower() in ("1", "true")
        yield _Object(where, (entry.findtext("name") or "").strip(), corners, is_hard)


def _clean_objects(objects: list[_Object], first: int, key: str, problems: ProblemLog) -> list[tuple[str, CleanBox]]:
    reading = "pixels from 1, as most are" if first else "edges from 0"
    if any(entry.corners.begins_at(0) for entry in objects):
        problems.add("corners_from_zero", f"{key}: read as {reading}")
    if any(entry.corners.has_decimals for entry in objects):
        problems.add("corners_with_decimals", f"{key}: read as {reading}")
    cleaned = []
    for entry in objects:
        box = entry.corners.box(first)
        try:
            clean = clean_numbers({"bbox": box, "iscrowd": int(entry.is_hard), "area": box[2] * box[3]})
        except BoxProblem as problem:
            problems.add(problem.kind, f"{entry.where}: {problem}")
            continue
        if not entry.name:
            problems.add("category_missing", entry.where)
        else:
            cleaned.append((entry.name, clean))
    return cleaned


def _record(
    image_id: int,
    key: str,
    size: tuple[int, int],
    objects: list[tuple[str, CleanBox]],
    index_of: dict[str, int],
    problems: ProblemLog,
) -> ImageRecord:
    known = [(index_of[name], clean) for name, clean in objects if name in index_of]
    for name, _ in objects:
        if name not in index_of:
            problems.add("category_unknown", f"{key}: {name!r}")
    return build_record(image_id, key, size, known)


def _whole(text: str | None) -> int:
    digits = (text or "").strip()
    return int(digits) if digits.isdecimal() and len(digits) <= MOST_SIZE_DIGITS else 0
