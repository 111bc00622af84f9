"""Reading the annotations that a user named: COCO, YOLO, VOC, tar shards, or a kind of source that a plugin adds."""

from __future__ import annotations

from collections.abc import Callable

from yolofleet.core.byte_sizes import format_bytes
from yolofleet.core.errors import UserError
from yolofleet.data.coco import parse_coco
from yolofleet.data.problems import ProblemLog
from yolofleet.data.sources import SOURCES, Annotations, ImageStore, Source, SourceDataset, open_file, open_images
from yolofleet.data.tar_source import read_tar_shards
from yolofleet.data.voc import read_voc
from yolofleet.data.yolo import read_yolo
from yolofleet.specs.yaml_document import MOST_BYTES, parse_yaml

TAR_ENDINGS = (".tar", ".zip", ".tgz", ".gz")


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
        store = open_images(images)
        return reader(annotations.storage, store, class_names, problems), store

    return read


def _read_coco_file(
    annotations: Annotations, images: str | None, class_names: list[str] | None, problems: ProblemLog
) -> Read:
    if annotations.is_folder:
        raise UserError(f"{annotations.url}: a COCO source is one JSON file, and this is a folder; name the file in it")
    data = annotations.storage.get(annotations.files[0].key)
    return parse_coco(data, annotations.url, problems), open_images(images)


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
) -> tuple[SourceDataset, ImageStore]:
    """Read annotations of any registered kind.

    Args:
        url: The annotations: a file or a folder.
        images: The folder of images; not needed for shards, which hold them.
        problems: Where problems are counted.
        source_format: Name of the kind in `SOURCES`; ``auto`` tells it from the files.
        class_names: Names by class, for sources that do not name them.

    Raises:
        UserError: There is no such kind, there are no annotations, or they cannot be used at all.
    """
    source = SOURCES.get(source_format) if source_format != "auto" else None
    annotations = Annotations.open(url)
    return (source or _detect(annotations)).read(annotations, images, class_names, problems)


def read_class_names(url: str) -> list[str]:
    """Read the names of classes: a YAML file with ``names`` (a list, or numbers and names), or one name a line.

    Raises:
        UserError: No names are found.
    """
    storage, key = open_file(url)
    if (size := storage.size_bytes(key)) > MOST_BYTES:
        raise UserError(f"{url}: {format_bytes(size)} are too many for class names; name the file of the names")
    data = storage.get(key)
    names: object = data.decode("utf-8-sig", errors="replace").splitlines()
    if key.endswith((".yaml", ".yml")):
        document = parse_yaml(data, source=url)
        names = document.get("names") if isinstance(document, dict) else document
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise UserError(f"{url}: names: the numbers must be 0, 1, 2, ..., not {sorted(names, key=str)[:8]}")
        names = [names[number] for number in range(len(names))]
    cleaned = [str(name).strip() for name in names if name is not None] if isinstance(names, list) else []
    if not (cleaned := [name for name in cleaned if name]):
        raise UserError(f"{url}: no class names; write one a line, or a YAML file with a list 'names'")
    return cleaned


def _detect(annotations: Annotations) -> Source:
    """Return the kind of annotations; kinds that plugins add come first, as COCO takes any single file."""
    sources = SOURCES.items()
    for source in reversed(sources.values()):
        if source.detect(annotations):
            return source
    forms = "; ".join(source.form for source in sources.values())
    raise UserError(f"{annotations.url}: a folder without label files. A source is one of: {forms}")
