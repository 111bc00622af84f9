"""Reading the annotations that a user named: COCO, YOLO, VOC, tar shards, or a kind of source that a plugin adds."""

from __future__ import annotations

from collections.abc import Callable

from yolofleet.core.byte_sizes import format_bytes
from yolofleet.core.errors import UserError
from yolofleet.core.text import short
from yolofleet.data.coco import parse_coco
from yolofleet.data.problems import ProblemLog
from yolofleet.data.sources import SOURCES, Annotations, ImageStore, Source, SourceDataset, open_file, open_images
from yolofleet.data.tar_source import read_tar_shards
from yolofleet.data.voc import read_voc
from yolofleet.data.yolo import read_yolo
from yolofleet.specs.yaml_document import MOST_BYTES, parse_yaml

TAR_ENDINGS = (".tar", ".zip", ".tgz", ".gz")
LONGEST_COCO_BYTES = 8 << 30

Read = tuple[SourceDataset, ImageStore]


def _read_shards(
    annotations: Annotations, images: str | None, class_names: list[str] | None, problems: ProblemLog
) -> Read:
    archives = [entry for entry in annotations.files if not annotations.is_folder or entry.key.endswith(TAR_ENDINGS)]
    return read_tar_shards(annotations.storage, archives, problems)


def _read_labels(reader: Callable[..., SourceDataset]) -> Callable[..., Read]:
    def read(annotations: Annotations, images: str | None, class_names: list[str] | None, problems: ProblemLog) -> Read:
        if not annotations.is_folder:
            raise UserError(f"{annotations.url}: label files are needed, in a folder, and this is one file")
        store = open_images(images, problems, follow_links=annotations.follow_links)
        return reader(annotations.storage, store, class_names, problems), store

    return read


def _read_coco_file(
    annotations: Annotations, images: str | None, class_names: list[str] | None, problems: ProblemLog
) -> Read:
    if annotations.is_folder:
        raise UserError(f"{annotations.url}: a COCO source is one JSON file, and this is a folder; name the file in it")
    file = annotations.files[0]
    if file.size_bytes > LONGEST_COCO_BYTES:
        raise UserError(
            f"{annotations.url}: has {file.size_bytes:,} bytes, too many for annotations; cut it into parts"
        )
    store = open_images(images, problems, follow_links=annotations.follow_links)
    return parse_coco(annotations.storage.get(file.key), annotations.url, problems), store


SOURCES.register("coco")(
    Source(
        form="a COCO file (*.json)",
        detect=lambda found: not found.is_folder and not found.has(*TAR_ENDINGS),  # its reader says why one is not COCO
        read=_read_coco_file,
    )
)
SOURCES.register("yolo")(
    Source(
        form="a folder of YOLO labels (*.txt)",
        detect=lambda found: found.is_folder and found.has(".txt") and not found.has(".tar", ".xml"),
        read=_read_labels(read_yolo),
    )
)
SOURCES.register("voc")(
    Source(
        form="a folder of VOC annotations (*.xml)",
        detect=lambda found: found.is_folder and found.has(".xml") and not found.has(".tar"),
        read=_read_labels(read_voc),
    )
)
SOURCES.register("webdataset")(
    Source(
        form="tar shards (*.tar)",
        detect=lambda found: found.has(".tar") or (not found.is_folder and found.has(*TAR_ENDINGS)),
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
    return (source or _detect(annotations)).read(annotations, images, class_names, problems)


def read_class_names(url: str) -> list[str]:
    """Read the names of classes: a YAML file with ``names`` (a list, or numbers and names), or one name a line.

    Raises:
        UserError: No names are found, or the file is not text.
    """
    storage, key = open_file(url)
    if (size_bytes := storage.size_bytes(key)) > MOST_BYTES:
        raise UserError(
            f"{url}: {format_bytes(size_bytes)} are too many for class names; name a file with one name a line"
        )
    return parse_class_names(storage.get(key), url)


def parse_class_names(data: bytes, url: str) -> list[str]:
    """Read the names of classes from the bytes of a file; ``url`` ends with the name of the file.

    Raises:
        UserError: No names are found, or the file is not text.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{url}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    names: object = [line for line in text.splitlines() if line.strip()]
    if url.endswith((".yaml", ".yml")):
        document = parse_yaml(text, source=url)
        names = document.get("names") if isinstance(document, dict) else document
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise UserError(f"{url}: names: the numbers must be 0, 1, 2, ..., not {short(list(names))}")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(f"{url}: no class names; write one a line, or a YAML file with a list 'names'")
    return [_class_name(number, name, url) for number, name in enumerate(names)]


def _class_name(number: int, name: object, url: str) -> str:
    text = str(name).strip() if isinstance(name, str | int | float) else ""
    if not text or text != text.encode(errors="replace").decode():  # YAML can write half a surrogate pair
        raise UserError(f"{url}: names: class {number} is {short(name)}; write its name as plain text")
    return text


def _detect(annotations: Annotations) -> Source:
    """Return the kind of annotations; kinds that plugins add come first, as COCO takes any single file."""
    sources = SOURCES.items()
    for source in reversed(sources.values()):
        if source.detect(annotations):
            return source
    forms = "; ".join(source.form for source in sources.values())
    raise UserError(f"{annotations.url}: a folder without label files. A source is one of: {forms}")
