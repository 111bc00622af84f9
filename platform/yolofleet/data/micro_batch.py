"""The micro-batch: the samples that pass the network together, and how one is put together.

A sample that cannot be decoded gives its place to the next good one of its micro-batch (its first good one after the
last), so the outcome is the same at every world size; it is named in ``skipped``. A micro-batch without a single good
sample takes the next good one of the stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from yolofleet.data.augment import AugmentationSettings, Augmenter
from yolofleet.data.buffers import BufferPool
from yolofleet.data.dataset import SampleError, ShardDataset
from yolofleet.data.decode import ImageError
from yolofleet.data.order import SampleOrder
from yolofleet.data.picture import Picture, picture_from_record
from yolofleet.data.randomness import Purpose, keyed_generator
from yolofleet.data.records import RecordError
from yolofleet.errors import UserError

MOST_SAMPLES_TRIED = 256


@dataclass(frozen=True)
class MicroBatchPlace:
    """Which micro-batch: its step, its index within the step, and the stream position (g) of its first sample."""

    step: int
    index: int
    first: int
    size: int
    image_size: int
    augmentation: AugmentationSettings


@dataclass(frozen=True)
class MicroBatch:
    """Samples that pass the network together.

    Attributes:
        step: The training step.
        index: Its number within the step.
        images: (B, 3, H, W) uint8 RGB.
        targets: (N, 6) float32: image in the micro-batch, class index, centre x, centre y, width, height as shares.
        keys: Key of the sample at each place.
        skipped: (key, reason) of samples that gave their place to another.
    """

    step: int
    index: int
    images: Tensor
    targets: Tensor
    keys: tuple[str, ...]
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def digest(self) -> str:
        """Return the SHA-256 of pixels and targets, in hexadecimal."""
        digest = hashlib.sha256(str((tuple(self.images.shape), tuple(self.targets.shape))).encode())
        digest.update(self.images.contiguous().cpu().numpy().data)
        digest.update(self.targets.contiguous().cpu().numpy().data)
        return digest.hexdigest()


class MicroBatchMaker:
    """Reads, decodes and augments micro-batches; a pure function of the place, safe among threads."""

    def __init__(self, dataset: ShardDataset, order: SampleOrder, seed: int, max_pixels: int) -> None:
        self._dataset = dataset
        self._order = order
        self._seed = seed
        self._max_pixels = max_pixels
        self._buffers = BufferPool()

    def make(self, place: MicroBatchPlace) -> MicroBatch:
        """Make one micro-batch.

        Raises:
            UserError: No sample far and wide can be used.
            StorageError: The storage does not give a shard.
        """
        skipped: list[tuple[str, str]] = []
        pictures = self._pictures(place, skipped)
        side = place.image_size
        images = self._buffers.take(place.size, 3, side, side)
        targets = []
        augmenter = Augmenter(place.augmentation, side, self._buffers)
        for slot in range(place.size):
            generator = keyed_generator(self._seed, Purpose.AUGMENTATION, place.first + slot)
            found = augmenter.augment(slot, pictures, generator, images[slot]).normalised(side)  # (n, 5)
            targets.append(np.insert(found, 0, slot, axis=1))
        return MicroBatch(
            place.step,
            place.index,
            torch.from_numpy(images),
            torch.from_numpy(np.concatenate(targets).astype(np.float32)),
            tuple(picture.key for picture in pictures),
            skipped,
        )

    def _pictures(self, place: MicroBatchPlace, skipped: list[tuple[str, str]]) -> list[Picture]:
        """Return one picture for each place: its own, or the next good one."""
        own = [self._picture(place.first + slot, skipped) for slot in range(place.size)]
        if all(picture is None for picture in own):
            own[0] = self._next_good(place.first + place.size, skipped)
        filled: list[Picture] = []
        for slot in range(place.size):
            candidates = (own[(slot + ahead) % place.size] for ahead in range(place.size))
            filled.append(next(picture for picture in candidates if picture is not None))
        return filled

    def _next_good(self, position: int, skipped: list[tuple[str, str]]) -> Picture:
        for ahead in range(MOST_SAMPLES_TRIED):
            if (picture := self._picture(position + ahead, skipped)) is not None:
                return picture
        raise UserError(
            f"{self._dataset.url}: {len(skipped)} samples in a row cannot be used, the first because of "
            f"'{skipped[0][1]}' ({skipped[0][0]}); look at the dataset with 'yolofleet data inspect'"
        )

    def _picture(self, position: int, skipped: list[tuple[str, str]]) -> Picture | None:
        place = self._order.place(position)
        number = int(self._dataset.shard_starts[place.shard]) + place.row
        key = f"{self._dataset.manifest.shards[place.shard].name}/{place.row}"
        try:
            sample = self._dataset.read(number)
            key = sample.key
            record = sample.record()
            pixels = sample.pixels(record, self._max_pixels, self._buffers)
        except (SampleError, ImageError) as error:
            skipped.append((key, error.reason))
        except RecordError:
            skipped.append((key, "sample_json_damaged"))
        else:
            return picture_from_record(key, pixels, record, len(self._dataset.classes))
        return None


SizeAt = Callable[[int], int]
"""The image size at a step, for training at several scales."""
