"""Many pictures by number: those of a sharded dataset, or files. Cheap to pickle for workers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from yolofleet.data.dataset import SampleError, ShardDataset
from yolofleet.data.decode import ImageError
from yolofleet.data.records import RecordError
from yolofleet.errors import UserError
from yolofleet.evaluation.pictures import PictureError, read_picture


@dataclass(frozen=True, slots=True, eq=False)
class NumberedPicture:
    """A decoded picture.

    Attributes:
        image_id: its id in the COCO document.
        file_name: what it is called there.
        pixels: (H, W, 3) uint8 RGB.
    """

    image_id: int
    file_name: str
    pixels: NDArray[np.uint8]


class PictureSource(Protocol):
    """Pictures by number, the same ones in every process."""

    digest: str
    """Of what is in it: another digest, other pictures."""

    def __len__(self) -> int:
        """Return how many pictures there are."""

    def name(self, number: int) -> str:
        """Return what to call a picture that cannot be read."""

    def read(self, number: int) -> NumberedPicture:
        """Read one; a PictureError says why it is no picture, any other error that it cannot be read now."""


class ShardPictures:
    """The pictures of a sharded dataset, with its image ids."""

    def __init__(self, url: str) -> None:
        self._dataset = ShardDataset(url)
        self.digest = self._dataset.manifest.digest

    def __len__(self) -> int:
        return len(self._dataset)

    def name(self, number: int) -> str:
        """Return shard and row."""
        shard, row = self._dataset.locate(number)
        return f"{self._dataset.manifest.shards[shard].name}/{row}"

    def read(self, number: int) -> NumberedPicture:
        """Read one, the way up that its annotation speaks of.

        Raises:
            PictureError: It is damaged.
            StorageError: The storage does not give it.
        """
        try:
            sample = self._dataset.read(number)
            record = sample.record()
            return NumberedPicture(record.image_id, record.file_name, sample.pixels(record))
        except (SampleError, RecordError, ImageError) as error:
            raise PictureError(f"{self.name(number)}: {error}") from error


class FilePictures:
    """Picture files, numbered from 1 in the order they were named."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Take the files as they are now.

        Raises:
            UserError: One of them is not there.
        """
        self._paths = [path.absolute() for path in paths]
        self._names = [str(path) for path in paths]
        digest = hashlib.sha256()
        for name, path in zip(self._names, self._paths, strict=True):
            try:
                status = path.stat()
            except OSError as error:
                raise UserError(f"cannot read {path}: {error.strerror}") from error
            digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, number: int) -> str:
        """Return the path as it was named."""
        return self._names[number]

    def read(self, number: int) -> NumberedPicture:
        """Read one upright.

        Raises:
            PictureError: It is no picture.
        """
        return NumberedPicture(number + 1, self._names[number], read_picture(self._paths[number]))
