"""The evaluation stream: every image exactly once over all ranks, letterboxed.

Every image is scaled so that its longer side is the image size, as in training, then padded. Batch b belongs to rank
``b % world_size``. With ``rectangular``, images of similar shape share a batch that is padded only as far as they need,
as in the published evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yolofleet.core.errors import UserError
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.decode import DEFAULT_MAX_PIXELS
from yolofleet.data.image_formats import BufferPool
from yolofleet.data.letterbox import Letterbox, letterbox
from yolofleet.data.loader import ordered_map
from yolofleet.data.records import DecodedSample, SampleError, target_boxes

RECTANGULAR_PADDING = 0.5
"""Strides added to a rectangular batch before rounding up (published)."""


@dataclass(frozen=True)
class EvaluationBatch:
    """Letterboxed images."""

    images: Tensor
    """(B, 3, H, W) uint8 RGB."""
    image_ids: list[int]
    """Id of each image."""
    original_sizes: list[tuple[int, int]]
    """(height, width) of each image, in pixels."""
    letterboxes: list[Letterbox]
    """Maps boxes back to the original image."""
    targets: Tensor
    """(N, 6) float32 position in the batch, class index, centre x, centre y, width, height as shares of the input."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """(key, reason) of images that could not be decoded; they are not in the batch."""


class EvaluationStream:
    """Batches of letterboxed images; it can be iterated several times.

    Args:
        dataset: The samples.
        image_size: Longer side of the input, in pixels; a multiple of the stride.
        stride: The model's largest stride.
        batch_size: Images in a batch.
        rank: Which share of the batches to yield.
        world_size: Number of shares.
        rectangular: Sort by shape and pad only as far as a batch needs; False makes every input square.
        num_threads: Threads that decode; 0 decodes in the caller's thread.
        max_pixels: Larger images are skipped.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        *,
        image_size: int,
        stride: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        rectangular: bool = False,
        num_threads: int = 1,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        if image_size < 1 or image_size % stride:
            nearest = max(stride, round(image_size / stride) * stride)
            raise UserError(f"image_size {image_size} is not a multiple of the model's stride {stride}; take {nearest}")
        if batch_size < 1 or not 0 <= rank < world_size:
            raise UserError(f"batch_size {batch_size}, rank {rank} of {world_size}: not a share of an evaluation")
        self.dataset = dataset
        self._image_size = image_size
        self._stride = stride
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        self._rectangular = rectangular
        self._num_threads = num_threads
        self._max_pixels = max_pixels
        self._buffers = BufferPool()

    def __len__(self) -> int:
        """Return the number of batches of this rank."""
        num_batches = math.ceil(len(self.dataset) / self._batch_size)
        return len(range(self._rank, num_batches, self._world_size))

    def __iter__(self) -> Iterator[EvaluationBatch]:
        cv2.setNumThreads(1)
        numbers, aspects = self._order()
        size = self._batch_size
        starts = range(self._rank * size, len(numbers), self._world_size * size)
        jobs = ((numbers[start : start + size], aspects[start : start + size]) for start in starts)
        yield from ordered_map(
            lambda job: self._batch(*job),
            jobs,
            num_threads=self._num_threads,
            ahead=2 * self._num_threads,
            name="evaluation",
        )

    def _order(self) -> tuple[Sequence[int], Sequence[float]]:
        """Return sample numbers and their aspects (height / width), sorted by aspect for rectangular batches."""
        if not self._rectangular:
            return range(len(self.dataset)), ()
        rows = [self.dataset.index(shard).rows for shard in range(len(self.dataset.manifest.shards))]
        aspects = np.concatenate([shard_rows["height"] / shard_rows["width"] for shard_rows in rows])
        order = np.argsort(aspects, kind="stable")
        return order.tolist(), aspects[order].tolist()

    def _batch_shape(self, aspects: Sequence[float]) -> tuple[int, int]:
        """Return (height, width) of the input that holds images of these aspects."""
        if not self._rectangular:
            return self._image_size, self._image_size
        height_share, width_share = 1.0, 1.0
        if max(aspects) < 1:
            height_share = max(aspects)
        elif min(aspects) > 1:
            width_share = 1 / min(aspects)
        side, stride = self._image_size, self._stride
        height = math.ceil(height_share * side / stride + RECTANGULAR_PADDING) * stride
        return height, math.ceil(width_share * side / stride + RECTANGULAR_PADDING) * stride

    def _letterbox(self, sample: DecodedSample, shape: tuple[int, int]) -> tuple[NDArray[np.uint8], Letterbox]:
        """Scale the longer side to the image size, then pad to the batch's shape, which may be larger."""
        width, height = sample.size
        scaled, box = letterbox(sample.pixels, (self._image_size, self._image_size), stride=1, auto=True, scale_up=True)
        padded, padding = letterbox(scaled, shape, stride=self._stride, auto=False, scale_up=False)
        gain = box.gain * (max(sample.pixels.shape[:2]) / max(sample.size))
        return padded, replace(padding, gain=gain, original_height=height, original_width=width)

    def _batch(self, numbers: Sequence[int], aspects: Sequence[float]) -> EvaluationBatch:
        shape = self._batch_shape(aspects)
        planes: list[NDArray[np.uint8]] = []
        ids, sizes, boxes = [], [], []
        targets = [np.empty((0, 6), dtype=np.float32)]  # so that a batch without boxes has some, too
        skipped: list[tuple[str, str]] = []
        for number in numbers:
            try:
                sample = self.dataset.read_decoded(number, self._max_pixels, self._buffers, self._image_size)
            except SampleError as error:
                skipped.append((error.key, error.reason))
                continue
            boxed, box = self._letterbox(sample, shape)
            targets.append(_targets(sample, len(planes), box, shape, len(self.dataset.classes)))
            planes.append(np.ascontiguousarray(boxed.transpose(2, 0, 1)))  # (3, H, W)
            ids.append(sample.record.image_id)
            sizes.append((sample.size[1], sample.size[0]))
            boxes.append(box)
        images = np.stack(planes) if planes else np.empty((0, 3, *shape), dtype=np.uint8)
        all_targets = torch.from_numpy(np.concatenate(targets))
        return EvaluationBatch(torch.from_numpy(images), ids, sizes, boxes, all_targets, skipped)


def _targets(
    sample: DecodedSample, position: int, letterbox: Letterbox, shape: tuple[int, int], num_classes: int
) -> NDArray[np.float32]:
    """Return the rows of `EvaluationBatch.targets` of one image, whose input is ``shape`` high and wide."""
    found, is_target = target_boxes(sample.record, sample.size, num_classes)
    boxes = letterbox.apply(torch.from_numpy(found[is_target])).numpy() / np.tile(shape[::-1], 2)  # (n, 4)
    classes = sample.record.classes[is_target]
    columns = (np.full(len(boxes), position), classes, (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2])
    return np.column_stack(columns).astype(np.float32)
