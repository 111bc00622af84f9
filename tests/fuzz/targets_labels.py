"""Targets: labels of foreign datasets (COCO, YOLO, VOC, class names) and foreign tar shards."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any

from yolofleet.core.errors import UserError
from yolofleet.data.build_plan import BuildOptions, plan_build
from yolofleet.data.class_names import parse_class_names
from yolofleet.data.coco import parse_coco
from yolofleet.data.problems import ProblemLog
from yolofleet.data.sources import SourceDataset
from yolofleet.data.tar_source import read_tar_shards
from yolofleet.data.voc import read_voc
from yolofleet.data.yolo import read_yolo
from yolofleet.storage import ObjectInfo

BITMAP = b"BM" + bytes(8) + (54).to_bytes(4, "little") + (40).to_bytes(4, "little") + (64).to_bytes(4, "little")
BITMAP += (48).to_bytes(4, "little") + b"\x01\0\x18\0" + bytes(24 + 64 * 48 * 3)
BLOCK = 512


class Memory:
    """Files in memory, with those methods of a storage that sources need."""

    url = "memory"

    def __init__(self, **files: bytes) -> None:
        self._files = {name.replace("_", "."): data for name, data in files.items()}

    def list(self) -> list[ObjectInfo]:
        return [ObjectInfo(key, len(data)) for key, data in sorted(self._files.items())]

    def get(self, key: str) -> bytes:
        return self._files[key]

    def open_stream(self, key: str) -> io.BytesIO:
        return io.BytesIO(self._files[key])

    def get_range(self, key: str, start: int, length: int) -> bytes:
        data = self._files[key][start : start + length]
        assert len(data) == length, "an offset beyond the end of its file"
        return data


def use(source: SourceDataset, problems: ProblemLog, images: Any) -> None:
    """Do what a build does with a source: plan its shards, read its images, write everything down."""
    sizes = {entry.key: entry.size_bytes for entry in images.list()}
    plan = plan_build(source.classes, source.records, sizes, BuildOptions(), problems)
    for shard in plan.shards:
        for image in shard.images:
            images.get(image.key)
    json.dumps([problems.as_document(), [entry.name for entry in source.classes]], ensure_ascii=False).encode()
    assert all(len(example) < 4000 for examples in problems.examples.values() for example in examples)
    assert all("\n" not in example for examples in problems.examples.values() for example in examples)


def fuzz_coco(data: bytes) -> None:
    """A COCO annotation file; of bytes that are no JSON, each line that is some becomes one field of a file."""
    problems = ProblemLog()
    with contextlib.suppress(UserError):
        try:
            json.loads(data)
        except (ValueError, RecursionError):
            data = coco_of_lines(data)
        use(parse_coco(data, "instances.json", problems), problems, Memory(a_jpg=BITMAP))


def coco_of_lines(data: bytes) -> bytes:
    """Return a COCO file of one image and two annotations, whose fields are the lines; a bad line leaves its field."""
    image: dict[str, Any] = {"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}
    category: dict[str, Any] = {"id": 1, "name": "cat"}
    annotation: dict[str, Any] = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 9, 9], "area": 81}
    annotation |= {"iscrowd": 0, "segmentation": [[1, 2, 9, 2, 9, 9]]}
    fields = [(part, key) for part in (annotation, category, image) for key in part]
    for (part, key), line in zip(fields, data.split(b"\n"), strict=False):
        with contextlib.suppress(ValueError, RecursionError):
            part[key] = json.loads(line)
    lists = {"images": [image], "categories": [category, {"id": 7}], "annotations": [annotation, annotation]}
    return json.dumps(lists).encode()


def fuzz_yolo(data: bytes) -> None:
    """A YOLO label file, with names of classes where it has an even number of bytes."""
    problems = ProblemLog()
    images = Memory(a_bmp=BITMAP)
    names = ["cat", "dog"] if len(data) % 2 == 0 else None
    with contextlib.suppress(UserError):
        use(read_yolo(Memory(a_txt=data), images, names, problems), problems, images)  # type: ignore[arg-type]


def fuzz_voc(data: bytes) -> None:
    """A VOC annotation."""
    problems = ProblemLog()
    images = Memory(a_bmp=BITMAP)
    with contextlib.suppress(UserError):
        use(read_voc(Memory(a_xml=data), images, None, problems), problems, images)  # type: ignore[arg-type]


def fuzz_class_names(data: bytes) -> None:
    """A file with the names of classes, as YAML and as lines."""
    for name in ("names.yaml", "names.txt"):
        with contextlib.suppress(UserError):
            "\n".join(parse_class_names(data, name)).encode()


def fuzz_tar_scan(data: bytes) -> None:
    """A foreign tar, as it is and with the right checksum in every block that looks like a header."""
    for archive in (data, with_checksums(data)):
        problems = ProblemLog()
        storage = Memory(a_tar=archive)
        with contextlib.suppress(UserError):
            source, images = read_tar_shards(storage, storage.list(), problems)  # type: ignore[arg-type]
            use(source, problems, images)


def with_checksums(data: bytes) -> bytes:
    """Return a tar with its headers' checksums put right."""
    blocks = bytearray(data)
    for start in range(0, len(blocks) - BLOCK + 1, BLOCK):
        header = blocks[start : start + BLOCK]
        if header[257:262] == b"ustar":
            header[148:156] = b" " * 8
            blocks[start + 148 : start + 156] = b"%06o\0 " % sum(header)
    return bytes(blocks)
