"""Reading the annotations that a user named: COCO, YOLO, VOC, tar shards, or a kind of source that a plugin adds.

A folder is of the built-in kind that its files show (`annotation_kind`). Of several, the one that was registered last
is read, and the others are reported.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Sequence
from functools import partial

from yolofleet.core.errors import UserError
from yolofleet.core.text import and_more, plural
from yolofleet.data.annotation_kind import COCO_ENDINGS, coco_files
from yolofleet.data.class_names import YAML_ENDINGS
from yolofleet.data.coco import parse_coco
from yolofleet.data.file_finder import without_type
from yolofleet.data.file_tree import SPLIT_WORDS, split_of
from yolofleet.data.other_tools import ENDINGS_OF_TOOLS, MOST_BYTES_SEEN, other_tool
from yolofleet.data.problems import ProblemLog
from yolofleet.data.source_folder import is_image_name, is_litter
from yolofleet.data.sources import (
    SOURCES,
    Annotations,
    ChosenImages,
    ImageStore,
    Source,
    SourceDataset,
    open_images,
)
from yolofleet.data.tar_source import read_tar_shards
from yolofleet.data.voc import read_voc
from yolofleet.data.yolo import read_yolo
from yolofleet.data.yolo_dataset import read_data_yaml, with_missing
from yolofleet.storage import ObjectInfo

TAR_ENDINGS = (".tar", ".zip", ".tgz", ".gz")
LONGEST_COCO_BYTES = 8 << 30
MOST_FILES_NAMED = 3
"""Files that are looked at to say what they are, where none can be read."""
MOST_GZIP_GAIN = 200
"""A gzip file that would grow more than so often is no JSON text."""
HELD_IN_ANNOTATIONS = ("train", "val", "valid", "test")
"""What IMAGES may be where annotations and images lie together: the split that is read."""

Read = tuple[SourceDataset, ImageStore]


def _read_shards(
    annotations: Annotations, images: str | None, class_names: list[str] | None, problems: ProblemLog
) -> Read:
    archives = [
        entry
        for entry in annotations.files
        if not is_litter(entry.key) and (not annotations.is_folder or entry.key.endswith(TAR_ENDINGS))
    ]
    return read_tar_shards(annotations.storage, archives, problems)


def _read_yolo(
    annotations: Annotations, images: str | None, class_names: list[str] | None, problems: ProblemLog
) -> Read:
    if not annotations.is_folder and annotations.has(*YAML_ENDINGS):
        split = "val" if images == "valid" else images
        if split not in (None, *HELD_IN_ANNOTATIONS):
            raise UserError(
                f"{annotations.url}: names its images: give '-' for all, or train, val or test, not {images}"
            )
        named = read_data_yaml(annotations, split, problems)
        if class_names is not None and list(class_names) != list(named.names):
            raise UserError(f"{annotations.url}: has other class names than --classes; leave one of them out")
        return with_missing(read_yolo(named.labels, named.images, named.names, problems), named.missing), named.images
    return _read_folder(read_yolo, annotations, images, class_names, problems)


def _read_folder(
    reader: Callable[..., SourceDataset],
    annotations: Annotations,
    images: str | None,
    class_names: list[str] | None,
    problems: ProblemLog,
) -> Read:
    if not annotations.is_folder:
        raise UserError(f"{annotations.url}: label files are needed, in a folder, and this is one file")
    store = _images(annotations, images, problems)
    return reader(annotations.folder, store, class_names, problems), store


def _images(annotations: Annotations, images: str | None, problems: ProblemLog) -> ImageStore:
    """Return the images: in the folder that the user named, or else among the annotations of a folder."""
    if images is None and annotations.is_folder:
        return annotations.folder
    return open_images(images, problems, follow_links=annotations.follow_links)


def _read_coco_file(
    annotations: Annotations, images: str | None, class_names: list[str] | None, problems: ProblemLog
) -> Read:
    split = images if annotations.is_folder and images in HELD_IN_ANNOTATIONS else None
    holds_images = annotations.is_folder and images in (None, split)
    file = _coco_file(annotations, split)
    if file.size_bytes > LONGEST_COCO_BYTES:
        raise UserError(
            f"{annotations.url}: has {plural(file.size_bytes, 'byte')}, too many for annotations; cut it into parts"
        )
    store = _images(annotations, None if split else images, problems)
    folder = f"{file.key.rpartition('/')[0]}/".lstrip("/")
    beside = [entry for entry in store.list() if entry.key.startswith(folder) and is_image_name(entry.key)]
    if holds_images and beside:  # another split may hold images of the same names
        store = ChosenImages(store, beside)
    name = f"{annotations.url}/{file.key}" if annotations.is_folder else annotations.url
    return parse_coco(unpacked(annotations.storage.get(file.key), file.key, name), name, problems), store


def _coco_file(annotations: Annotations, split: str | None) -> ObjectInfo:
    if not annotations.is_folder:
        return annotations.files[0]
    found = [entry for entry in annotations.files if entry.key.lower().endswith(COCO_ENDINGS)]
    found = coco_files(annotations.storage, found) or found  # the others are of something else
    chosen = [entry for entry in found if split is None or split_of(without_type(entry.key)) == SPLIT_WORDS[split]]
    if len(chosen) == 1:
        return chosen[0]
    found = chosen or found
    if (other := _file_of_other_tool(annotations, found)) is not None:
        raise UserError(f"{annotations.url}: {other}")
    named = and_more([entry.key for entry in found], 5) or "none"
    raise UserError(
        f"{annotations.url}: a COCO source is one JSON file, and this folder holds {named}; name the file, or give "
        "train, val or test as IMAGES"
    )


def unpacked(data: bytes, key: str, name: str) -> bytes:
    """Return the content of a file, which is packed where its key ends with ``.gz``; ``name`` is for messages."""
    if not key.lower().endswith(".gz"):
        return data
    most = min(LONGEST_COCO_BYTES, (1 << 20) + MOST_GZIP_GAIN * len(data))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as source:
            text = source.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{name}: damaged gzip: {error}") from None
    if len(text) > most:
        raise UserError(f"{name}: grows to more than {plural(most, 'byte')}, too many for annotations")
    return text


def _file_of_other_tool(annotations: Annotations, files: Sequence[ObjectInfo]) -> str | None:
    """Return a file of a known tool and what it is; None where there is none among the first of them."""
    for entry in files[:MOST_FILES_NAMED]:
        head = annotations.storage.get_range(entry.key, 0, min(entry.size_bytes, MOST_BYTES_SEEN))
        if (what := other_tool(entry.key, head)) is not None:
            return f"{entry.key} {what}"
    return None


SOURCES.register("coco")(
    Source(
        form="a COCO file (*.json)",
        detect=lambda found: (
            "coco" in found.kinds if found.is_folder else found.has(".json.gz") or not found.has(*TAR_ENDINGS)
        ),  # its reader says why a file is not COCO
        read=_read_coco_file,
    )
)
SOURCES.register("yolo")(
    Source(
        form="a folder of YOLO labels (*.txt), or its data.yaml",
        detect=lambda found: "yolo" in found.kinds if found.is_folder else found.has(*YAML_ENDINGS),
        read=_read_yolo,
    )
)
SOURCES.register("voc")(
    Source(
        form="a folder of VOC annotations (*.xml)",
        detect=lambda found: found.is_folder and "voc" in found.kinds,
        read=partial(_read_folder, read_voc),
    )
)
SOURCES.register("webdataset")(
    Source(
        form="tar shards (*.tar)",
        detect=lambda found: (
            "webdataset" in found.kinds if found.is_folder else found.has(*TAR_ENDINGS) and not found.has(".json.gz")
        ),
        read=_read_shards,
    )
)


def read_source(
    url: str,
    images: str | None,
    problems: ProblemLog,
    *,
    source_format: str = "auto",
    class_names: list[str] | None = None,
    follow_links: bool = False,
) -> tuple[SourceDataset, ImageStore]:
    """Read annotations of any registered kind.

    Args:
        url: The annotations: a file or a folder.
        images: The folder of images; not needed for shards, which hold them.
        problems: Where problems are counted.
        source_format: Name of the kind in `SOURCES`; ``auto`` tells it from the files.
        class_names: Names by class, for sources that do not name them.
        follow_links: Read what links that lead out of a folder lead to; otherwise they are counted and left out.

    Raises:
        UserError: There is no such kind, there are no annotations, or they cannot be used at all.
    """
    source = SOURCES.get(source_format) if source_format != "auto" else None
    annotations = Annotations.open(url, problems, follow_links=follow_links)
    return (source or _detect(annotations, problems)).read(annotations, images, class_names, problems)


def _detect(annotations: Annotations, problems: ProblemLog) -> Source:
    """Return the kind of annotations; kinds that plugins add come first, as COCO takes any single file."""
    sources = SOURCES.items()
    found = next((name for name in reversed(sources) if sources[name].detect(annotations)), None)
    if found is None:
        forms = "; ".join(source.form for source in sources.values())
        raise UserError(f"{annotations.url}: {_why_none(annotations)}. A source is one of: {forms}")
    if annotations.is_folder and found in annotations.kinds:
        seen = f"{annotations.url}: {found.upper()} ({annotations.kinds[found]}) is read"
        for kind, key in annotations.kinds.items():
            if kind != found:
                problems.add("annotations_of_other_kind", f"{seen}, not {kind.upper()} ({key}); or --format {kind}")
    return sources[found]


def _why_none(annotations: Annotations) -> str:
    of_tools = [entry for entry in annotations.files if entry.key.lower().endswith(ENDINGS_OF_TOOLS)]
    if (other := _file_of_other_tool(annotations, of_tools)) is not None:
        return other
    if archives := [entry.key for entry in annotations.files if entry.key.lower().endswith(".zip")]:
        return f"no label files here; unpack the archive in it, and name that: {and_more(archives, 3)}"
    return "a folder without label files"
