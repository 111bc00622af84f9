"""Fuzz targets of what is read from shards: the manifest, an index, an annotation, an image."""

from __future__ import annotations

import warnings

from yolofleet.core.errors import UserError
from yolofleet.data.annotation import read_annotation
from yolofleet.data.decode import check_file_size, decode_image, decode_reduced, exif_orientation
from yolofleet.data.manifest import Manifest, ShardEntry, ShardIndex
from yolofleet.data.records import labelled_image

MOST_PIXELS = 1 << 16
NUM_CLASSES = 3


def fuzz_manifest(data: bytes) -> None:
    """Read a manifest; one that is accepted is written and read back as it was."""
    try:
        manifest = Manifest.from_bytes(data, "fuzz")
    except UserError:
        return
    assert Manifest.from_bytes(manifest.to_bytes(), "fuzz") == manifest and len(manifest.digest) == 64


def fuzz_index(data: bytes) -> None:
    """Read an index of a shard whose size and number of samples come from the first bytes."""
    size, samples = int.from_bytes(data[:4], "little"), int.from_bytes(data[4:6], "little")
    entry = ShardEntry("fuzz", size, "0" * 64, samples, "0" * 64)
    try:
        index = ShardIndex.from_bytes(data[6:], entry, "fuzz")
    except UserError:
        return
    assert len(index) == len(index.keys) == samples
    for row in index.rows.tolist():
        assert max(row[0] + row[2], row[1] + row[3]) <= size


def fuzz_annotation(data: bytes) -> None:
    """Read an annotation; one that is accepted becomes targets, and is written and read back as it was."""
    import numpy as np

    try:
        record = read_annotation(data, NUM_CLASSES)
    except UserError:
        return
    assert read_annotation(record.to_json(), NUM_CLASSES).to_json() == record.to_json()
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    found = labelled_image("fuzz", pixels, record, NUM_CLASSES, (record.width, record.height))
    assert np.isfinite(found.boxes).all() and len(found.boxes) == len(found.classes) == len(found.outlines.has_polygon)


def fuzz_image(data: bytes) -> None:
    """Decode an image in full and at a reduced size, within a small limit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            check_file_size(len(data), MOST_PIXELS)
            pixels = decode_image(data, max_pixels=MOST_PIXELS)
            reduced, size = decode_reduced(data, max_pixels=MOST_PIXELS, needed_side=8)
        except UserError:
            return
        assert 1 <= exif_orientation(data) <= 8
    assert pixels.shape[0] * pixels.shape[1] <= MOST_PIXELS and size == pixels.shape[1::-1]
    assert reduced.shape == pixels.shape, "images of few pixels are never reduced"
