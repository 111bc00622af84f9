"""Datasets of shards as a stranger could write them: any annotation, image, index and manifest, with right digests."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from yolofleet.data.manifest import ROW, ShardIndex
from yolofleet.data.shard_writer import END_OF_ARCHIVE, padding, tar_header

WIDTH, HEIGHT = 160, 120


def annotation(image_id: int) -> dict[str, Any]:
    """Return the annotation of an image with one object."""
    return {
        "image_id": image_id,
        "file_name": f"{image_id}.jpg",
        "width": WIDTH,
        "height": HEIGHT,
        "boxes": [[10, 10, 40, 40]],
        "classes": [0],
        "iscrowd": [0],
        "areas": [1600.0],
    }


def encoded(pixels: NDArray[np.uint8], image_format: str = "JPEG", **options: Any) -> bytes:
    """Return the bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, **options)
    return buffer.getvalue()


def jpeg(seed: int = 0) -> bytes:
    """Return a small image of noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    return encoded(np.repeat(np.repeat(noise, 8, axis=0), 8, axis=1))


def write_dataset(
    folder: Path,
    annotations: list[Any],
    images: list[bytes] | None = None,
    *,
    change_rows: Callable[[NDArray[Any]], None] = lambda rows: None,
    change_index: Callable[[bytes], bytes] = lambda index: index,
    change_manifest: Callable[[dict[str, Any]], None] = lambda manifest: None,
) -> Path:
    """Write a dataset of one shard.

    Args:
        folder: Where to.
        annotations: JSON documents, or the bytes themselves.
        images: Image files; noise unless given.
        change_rows: Changes the rows of the index in place.
        change_index: Returns other bytes for the index.
        change_manifest: Changes the manifest in place.
    """
    tar, rows, keys = bytearray(), [], []
    for number, document in enumerate(annotations):
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        image, offsets = images[number] if images else jpeg(number), []
        for extension, part in (("jpg", image), ("json", data)):
            tar += tar_header(f"{number:06d}.{extension}", len(part))
            offsets.append(len(tar))
            tar += part + padding(len(part))
        rows.append((*offsets, len(image), len(data), WIDTH, HEIGHT, 1))
        keys.append(f"{number:06d}")
    tar += END_OF_ARCHIVE
    table = np.array(rows, dtype=ROW)
    change_rows(table)
    index = change_index(ShardIndex(table, keys).to_bytes())
    manifest: dict[str, Any] = {
        "format": 1,
        "kind": "yolofleet-dataset",
        "classes": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "class_counts": [len(rows), 0],
        "num_samples": len(rows),
        "num_empty": 0,
        "num_boxes": len(rows),
        "num_crowds": 0,
        "source_digest": "0" * 64,
        "problems": {},
        "shards": [
            {
                "name": "shard-000000",
                "bytes": len(tar),
                "sha256": hashlib.sha256(tar).hexdigest(),
                "samples": len(rows),
                "index_sha256": hashlib.sha256(index).hexdigest(),
            }
        ],
    }
    change_manifest(manifest)
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    (folder / "shards" / "shard-000000.tar").write_bytes(tar)
    (folder / "shards" / "shard-000000.index").write_bytes(index)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
