"""The micro-batch: the samples that pass the network together, read, decoded and augmented.

A sample that cannot be decoded is replaced by the next good one of its micro-batch (by the first good one where it is
the last), so the outcome is the same at every world size; its key is in ``skipped``. A micro-batch without a single
good sample takes the next good one of its lane.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from yolofleet.core.errors import UserError
from yolofleet.core.text import plural
from yolofleet.data.augment import Augmenter, Finish
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.image_formats import BufferPool
from yolofleet.data.order import Purpose, SampleOrder, keyed_generator
from yolofleet.data.records import LabelledImage, SampleError, labelled_image
from yolofleet.specs.hyperparameters import Augmentation

if TYPE_CHECKING:
    from torch import Tensor

MOST_SAMPLES_TRIED = 256
AugmentOn = Literal["host", "device"]


@dataclass(frozen=True)
class MicroBatchPlan:
    """A micro-batch before it is made: which samples of the stream it holds, and how they are augmented."""

    step: int
    index: int
    """Its number within the step, and the lane that it reads."""
    number: int
    """Number of its first sample, counted over all lanes: it keys the augmentation."""
    size: int
    """Samples that it holds."""
    image_size: int
    """Side of the square images, in pixels."""
    augmentation: Augmentation
    """How samples are augmented."""

    @property
    def position(self) -> int:
        """Position of its first sample in its lane."""
        return self.step * self.size

    @property
    def image_shape(self) -> tuple[int, int, int, int]:
        """(B, 3, H, W) of its images."""
        return self.size, 3, self.image_size, self.image_size


@dataclass(frozen=True)
class Labels:
    """What a micro-batch holds beside its images."""

    targets: NDArray[np.float32]
    """(N, 6): image in the micro-batch, class index, centre x, centre y, width, height as shares."""
    keys: tuple[str, ...]
    """Key of the sample in each slot."""
    skipped: list[tuple[str, str]]
    """(key, reason) of samples that were replaced by another."""
    finish: Finish | None = None
    """What is left to do with the images, where a device does it."""


@dataclass(frozen=True)
class MicroBatch:
    """Samples that pass the network together."""

    step: int
    index: int
    """Its number within the step."""
    images: Tensor
    """(B, 3, H, W) uint8 RGB."""
    targets: Tensor
    """(N, 6) float32: image in the micro-batch, class index, centre x, centre y, width, height as shares."""
    keys: tuple[str, ...]
    """Key of the sample in each slot."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """(key, reason) of samples that were replaced by another."""
    finish: Finish | None = None
    """What is left to do with the images, where a device does it."""

    @staticmethod
    def of(plan: MicroBatchPlan, images: NDArray[np.uint8], labels: Labels) -> MicroBatch:
        """Return the micro-batch of a plan; its images are those of the array, not a copy."""
        from torch import from_numpy  # here, because loader processes make no tensors and start four times as fast

        targets = from_numpy(labels.targets)
        return MicroBatch(
            plan.step, plan.index, from_numpy(images), targets, labels.keys, labels.skipped, labels.finish
        )

    def digest(self) -> str:
        """Return the SHA-256 of pixels and targets, and of what is left to do with them, in hexadecimal."""
        digest = hashlib.sha256(str((tuple(self.images.shape), tuple(self.targets.shape))).encode())
        digest.update(self.images.contiguous().cpu().numpy().data)
        digest.update(self.targets.contiguous().cpu().numpy().data)
        if self.finish is not None:
            digest.update(self.finish.colours.tobytes() + self.finish.flips.tobytes())
        return digest.hexdigest()


class MicroBatchMaker:
    """Reads, decodes and augments micro-batches; a pure function of the plan, safe among threads, cheap to pickle."""

    def __init__(
        self, dataset: ShardDataset, order: SampleOrder, seed: int, max_pixels: int, augment_on: AugmentOn = "host"
    ) -> None:
        self._dataset = dataset
        self._order = order
        self._seed = seed
        self._max_pixels = max_pixels
        self._augment_on = augment_on
        self._buffers = BufferPool()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._dataset, self._order, self._seed, self._max_pixels, self._augment_on)

    def make(self, plan: MicroBatchPlan) -> MicroBatch:
        """Make one micro-batch; it raises what `fill` raises."""
        images = self._buffers.take(*plan.image_shape)
        return MicroBatch.of(plan, images, self.fill(plan, images))

    def fill(self, plan: MicroBatchPlan, images: NDArray[np.uint8]) -> Labels:
        """Write the images of a micro-batch into an array, and return the rest of it.

        Raises:
            UserError: None of the next 256 samples can be used.
            StorageError: The storage does not give a shard.
        """
        skipped: list[tuple[str, str]] = []
        labelled_images = self._read_images(plan, skipped)
        targets = []
        augmenter = Augmenter(plan.augmentation, plan.image_size, self._buffers)
        finish = Finish.nothing(plan.size) if self._augment_on == "device" else None
        for slot in range(plan.size):
            generator = keyed_generator(self._seed, Purpose.AUGMENTATION, plan.number + slot)
            own = augmenter.augment(slot, labelled_images, generator, images[slot], finish)
            targets.append(np.insert(own.normalised(plan.image_size), 0, slot, axis=1))  # (n, 6)
        keys = tuple(labelled.key for labelled in labelled_images)
        return Labels(np.concatenate(targets).astype(np.float32), keys, skipped, finish)

    def _read_images(self, plan: MicroBatchPlan, skipped: list[tuple[str, str]]) -> list[LabelledImage]:
        """Return an image for each slot: its own sample's, or the next good one."""
        own = [self._read_image(plan, plan.position + slot, skipped) for slot in range(plan.size)]
        if all(labelled is None for labelled in own):
            own[0] = self._next_good(plan, skipped)
        filled: list[LabelledImage] = []
        for slot in range(plan.size):
            candidates = (own[(slot + ahead) % plan.size] for ahead in range(plan.size))
            filled.append(next(labelled for labelled in candidates if labelled is not None))
        return filled

    def _next_good(self, plan: MicroBatchPlan, skipped: list[tuple[str, str]]) -> LabelledImage:
        following = plan.position + plan.size
        for position in range(following, following + MOST_SAMPLES_TRIED):
            if (labelled := self._read_image(plan, position, skipped)) is not None:
                return labelled
        raise UserError(
            f"{self._dataset.url}: {plural(len(skipped), 'sample')} in a row cannot be used, the first because of "
            f"'{skipped[0][1]}' ({skipped[0][0]}); look at the dataset with 'yolofleet data inspect'"
        )

    def _read_image(self, plan: MicroBatchPlan, position: int, skipped: list[tuple[str, str]]) -> LabelledImage | None:
        shard, row = self._order.locate(plan.index, position)
        number = int(self._dataset.shard_starts[shard]) + row
        try:
            sample = self._dataset.read_decoded(number, self._max_pixels, self._buffers, plan.image_size)
        except SampleError as error:
            skipped.append((error.key, error.reason))
            return None
        return labelled_image(sample.key, sample.pixels, sample.record, len(self._dataset.classes), sample.size)
