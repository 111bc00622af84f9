"""Telling what kind of source a user named, and reading it."""

from __future__ import annotations

from typing import Literal

import yaml

from yolofleet.core.errors import UserError
from yolofleet.data.coco import parse_coco
from yolofleet.data.problems import ProblemLog
from yolofleet.data.sources import ImageStore, SourceDataset
from yolofleet.data.tar_source import read_tar_shards
from yolofleet.data.voc import read_voc
from yolofleet.data.yolo import read_yolo
from yolofleet.storage import ObjectInfo, Storage, open_storage

SourceFormat = Literal["auto", "coco", "yolo", "voc", "webdataset"]
_TAR_ENDINGS = (".tar", ".zip", ".tgz", ".gz")


def read_source(
    annotations: str,
    images: str | None,
    problems: ProblemLog,
    *,
    source_format: SourceFormat = "auto",
    class_names: list[str] | None = None,
) -> tuple[SourceDataset, ImageStore]:
    """Read annotations of any known kind.

    Args:
        annotations: A COCO file; a folder of YOLO label files or VOC XML files; a tar shard or a folder of them.
        images: The folder of images; not needed for shards, which hold them.
        problems: Where problems are counted.
        source_format: What the annotations are; ``auto`` tells from what is there.
        class_names: Names by class, for sources that do not name them.

    Raises:
        UserError: There is nothing there, or it cannot be used at all.
    """
    folder = open_storage(annotations)
    entries = folder.list()
    if entries:
        kind = source_format if source_format != "auto" else _kind_of_folder(annotations, entries)
        if kind == "webdataset":
            return read_tar_shards(folder, [entry for entry in entries if entry.key.endswith(_TAR_ENDINGS)], problems)
        if kind == "coco":
            raise UserError(f"{annotations}: a COCO source is one JSON file, and this is a folder; name the file in it")
        image_files = _images(images, kind)
        reader = read_yolo if kind == "yolo" else read_voc
        return reader(folder, image_files, class_names, problems), image_files
    storage, key = opened_file(annotations)
    if source_format == "webdataset" or (source_format == "auto" and key.endswith(_TAR_ENDINGS)):
        return read_tar_shards(storage, [ObjectInfo(key, storage.size_bytes(key))], problems)
    data = storage.get(key)
    if source_format in ("yolo", "voc"):
        raise UserError(f"{annotations}: a {source_format} source is a folder of label files, and this is a file")
    return parse_coco(data, annotations, problems), _images(images, "coco")


def opened_file(url: str) -> tuple[Storage, str]:
    """Return the storage of the folder that holds a file, and the file's key in it."""
    folder, separator, name = url.rpartition("/")
    return open_storage((folder or "/") if separator else "."), name


def read_class_names(url: str) -> list[str]:
    """Read the names of classes: a YAML file with ``names`` (a list, or numbers and names), or one name a line.

    Raises:
        UserError: No names are found.
    """
    storage, key = opened_file(url)
    text = storage.get(key).decode("utf-8-sig", errors="replace")
    names: object = text.splitlines()
    if key.endswith((".yaml", ".yml")):
        try:
            document = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"{url}: no YAML: {error}") from None
        names = document.get("names") if isinstance(document, dict) else document
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise UserError(f"{url}: names: the numbers must be 0, 1, 2, ..., not {sorted(names, key=str)[:8]}")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not (
        cleaned := [str(name).strip() for name in names if name is not None and str(name).strip()]
    ):
        raise UserError(f"{url}: no class names; write one a line, or a YAML file with a list 'names'")
    return cleaned


def _kind_of_folder(annotations: str, entries: list[ObjectInfo]) -> SourceFormat:
    for kind, ending in (("webdataset", ".tar"), ("voc", ".xml"), ("yolo", ".txt")):
        if any(entry.key.lower().endswith(ending) for entry in entries):
            return kind  # type: ignore[return-value]  # mypy: expected a literal, got str
    raise UserError(
        f"{annotations}: a folder without label files; a source is a COCO file (*.json), or a folder of YOLO labels "
        "(*.txt), of VOC annotations (*.xml) or of tar shards (*.tar)"
    )


def _images(images: str | None, kind: str) -> Storage:
    if images is None:
        raise UserError(f"the folder of images is missing: a {kind} source does not hold them")
    storage = open_storage(images)
    return storage
