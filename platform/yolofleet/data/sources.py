"""Where datasets come from. Every source is brought to the same form: classes, records, and a place to get images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from yolofleet.data.records import ImageRecord, ObjectClass
from yolofleet.storage import ObjectInfo

IMAGE_EXTENSIONS = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "avif")


@dataclass(frozen=True)
class SourceDataset:
    """A dataset as its source describes it, before its image files were looked at."""

    classes: tuple[ObjectClass, ...]
    records: tuple[ImageRecord, ...]


class ImageStore(Protocol):
    """A place to get images from: any ``Storage``, or the inside of tar files."""

    url: str

    def list(self) -> list[ObjectInfo]:
        """Return every image that can be got, sorted by key."""

    def get(self, key: str) -> bytes:
        """Return the bytes of an image."""
