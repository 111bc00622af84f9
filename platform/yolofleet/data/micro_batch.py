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

from yolofleet.core.errors import UserError
from yolofleet.data.augment import AugmentationSettings, Augmenter
from yolofleet.data.dataset import SampleError, ShardDataset
from yolofleet.data.decode import BufferPool, ImageError
from yolofleet.data.order import Purpose, SampleOrder, keyed_generator
from yolofleet.data.records import LabelledImage, RecordError, labelled_image

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
        labelled_images = self._labelled_images(place, skipped)
        side = place.image_size
        images = self._buffers.take(place.size, 3, side, side)
        targets = []
        augmenter = Augmenter(place.augmentation, side, self._buffers)
        for slot in range(place.size):
            generator = keyed_generator(self._seed, Purpose.AUGMENTATION, place.first + slot)
            found = augmenter.augment(slot, labelled_images, generator, images[slot]).normalised(side)  # (n, 5)
            targets.append(np.insert(found, 0, slot, axis=1))
        return MicroBatch(
            place.step,
            place.index,
            torch.from_numpy(images),
            torch.from_numpy(np.concatenate(targets).astype(np.float32)),
            tuple(labelled.key for labelled in labelled_images),
            skipped,
        )

    def _labelled_images(self, place: MicroBatchPlace, skipped: list[tuple[str, str]]) -> list[LabelledImage]:
        """Return one image for each place: its own, or the next good one."""
        own = [self._labelled(place.first + slot, skipped) for slot in range(place.size)]
        if all(labelled is None for labelled in own):
            own[0] = self._next_good(place.first + place.size, skipped)
        filled: list[LabelledImage] = []
        for slot in range(place.size):
            candidates = (own[(slot + ahead) % place.size] for ahead in range(place.size))
            filled.append(next(labelled for labelled in candidates if labelled is not None))
        return filled

    def _next_good(self, position: int, skipped: list[tuple[str, str]]) -> LabelledImage:
        for ahead in range(MOST_SAMPLES_TRIED):
            if (labelled := self._labelled(position + ahead, skipped)) is not None:
                return labelled
        raise UserError(
            f"{self._dataset.url}: {len(skipped)} samples in a row cannot be used, the first because of "
            f"'{skipped[0][1]}' ({skipped[0][0]}); look at the dataset with 'yolofleet data inspect'"
        )

    def _labelled(self, position: int, skipped: list[tuple[str, str]]) -> LabelledImage | None:
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
            return labelled_image(key, pixels, record, len(self._dataset.classes))
        return None


SizeAt = Callable[[int], int]
"""The image size at a step, for training at several scales."""
