"""The training stream: one endless sequence of micro-batches, the same at any world size, from any step.

It is a ``webdataset.DataPipeline``. Where its shard lists, splitters and shuffles would stand is our own source stage,
which knows the order from the step alone; the stages after it decode and augment, in threads (JPEG decoding, resizing
and colour release the interpreter lock) and in order.

A map in threads that keeps the order, works a bounded way ahead, and never holds up the end of the program.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray
from webdataset.pipeline import DataPipeline

from yolofleet.core.errors import UserError
from yolofleet.data.augment_settings import AugmentationSettings
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.decode import DEFAULT_MAX_PIXELS
from yolofleet.data.micro_batch import MicroBatch, MicroBatchMaker, MicroBatchPlace
from yolofleet.data.order import SampleOrder

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], *, num_threads: int, ahead: int, name: str
) -> Iterator[Result]:
    """Yield ``function(item)`` of every item, in order.

    The threads are daemons: one that waits for an object store must not keep an interrupted program alive, as the
    threads of an executor would.

    Args:
        function: What to do; it must be safe among threads.
        items: What to do it to; read in the caller's thread, and only as far ahead as is worked.
        num_threads: Threads that work; 0 works in the caller's.
        ahead: Results that are made before they are asked for.
        name: Name of the threads.

    Raises:
        Exception: Whatever ``function`` raises, in the place of its result.
    """
    if num_threads == 0:
        yield from map(function, items)
        return
    tasks: queue.SimpleQueue[tuple[Item, Future[Result]] | None] = queue.SimpleQueue()
    for number in range(num_threads):
        threading.Thread(target=_work, args=(function, tasks), name=f"{name}-{number}", daemon=True).start()
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            future: Future[Result] = Future()
            waiting.append(future)
            tasks.put((item, future))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        for _ in range(num_threads):
            tasks.put(None)


def _work(function: Callable[[Item], Result], tasks: queue.SimpleQueue[tuple[Item, Future[Result]] | None]) -> None:
    while (task := tasks.get()) is not None:
        item, future = task
        if not future.set_running_or_notify_cancel():
            continue
        try:
            future.set_result(function(item))
        except BaseException as error:  # handed to whoever waits for the result
            future.set_exception(error)
        del task, item, future  # nothing is kept while waiting for the next one


__all__ = ["AugmentationSettings", "MicroBatch", "TrainingStream"]


class TrainingStream:
    """Micro-batches of a dataset without end: a pure function of (dataset, seed, step, index).

    Args:
        dataset: The samples.
        seed: Seed of order and augmentation.
        image_size: Side of the square input, in pixels.
        global_batch_size: Samples of a step, over all workers.
        micro_batch_size: Samples that pass the network together; divides the global batch.
        augmentation: Strengths, or a function of the step that gives them.
        num_threads: Threads that make micro-batches; 0 makes them where they are asked for.
        prefetch: Micro-batches made ahead for each thread.
        image_size_at: The image size at a step, in place of ``image_size``.
        max_pixels: Larger images are skipped.
        sample_weights: (N,) how often each sample is drawn an epoch in the long run; None draws each once.

    Raises:
        UserError: The sizes do not fit together, or the dataset holds no box to learn from.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        *,
        seed: int,
        image_size: int,
        global_batch_size: int,
        micro_batch_size: int,
        augmentation: AugmentationSettings | Callable[[int], AugmentationSettings],
        num_threads: int = 1,
        prefetch: int = 2,
        image_size_at: Callable[[int], int] | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        sample_weights: NDArray[np.float64] | None = None,
    ) -> None:
        if micro_batch_size < 1 or global_batch_size < 1 or global_batch_size % micro_batch_size:
            raise UserError(
                f"global_batch_size {global_batch_size} is not a whole number of micro-batches of {micro_batch_size}"
            )
        if not len(dataset) or not dataset.manifest.num_boxes:
            held = f"{len(dataset)} images and {dataset.manifest.num_crowds} crowds"
            raise UserError(f"{dataset.url}: no boxes to learn from (it holds {held}); train on another dataset")
        self.dataset = dataset
        self.order = SampleOrder(dataset.shard_sizes, seed, weights=sample_weights)
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self._image_size_at = image_size_at or (lambda step: image_size)
        self._augmentation_at = augmentation if callable(augmentation) else (lambda step: augmentation)
        self._num_threads = num_threads
        self._prefetch = prefetch
        self._maker = MicroBatchMaker(dataset, self.order, seed, max_pixels)

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches of a step, over all workers."""
        return self.global_batch_size // self.micro_batch_size

    def place(self, step: int, index: int) -> MicroBatchPlace:
        """Return which samples micro-batch ``index`` of a step holds, and how they are augmented."""
        first = step * self.global_batch_size + index * self.micro_batch_size
        return MicroBatchPlace(
            step, index, first, self.micro_batch_size, self._image_size_at(step), self._augmentation_at(step)
        )

    def micro_batch(self, step: int, index: int) -> MicroBatch:
        """Make one micro-batch, here and now."""
        return self._maker.make(self.place(step, index))

    def micro_batches(self, start_step: int, owned: Sequence[int]) -> Iterator[MicroBatch]:
        """Yield, for every step from ``start_step`` on, the micro-batches whose index is in ``owned``, in order.

        Raises:
            UserError: An index is not one of 0..micro_batches_per_step-1, or none is owned.
        """
        indices = sorted(set(owned))
        if not indices or indices[0] < 0 or indices[-1] >= self.micro_batches_per_step:
            raise UserError(f"owned micro-batches {list(owned)} are not within 0..{self.micro_batches_per_step - 1}")
        pipeline = DataPipeline(
            lambda: self._places(start_step, indices),
            self._fetched_ahead,
            self._made,
        )
        return iter(pipeline)

    def _places(self, start_step: int, indices: list[int]) -> Iterator[MicroBatchPlace]:
        step = start_step
        while True:
            for index in indices:
                yield self.place(step, index)
            step += 1

    def _fetched_ahead(self, places: Iterable[MicroBatchPlace]) -> Iterator[MicroBatchPlace]:
        """Ask for the shards of the next window whenever a new one is entered."""
        entered: tuple[int, int] | None = None
        for place in places:
            here = self.order.place(place.first)
            if (here.epoch, here.window) != entered:
                entered = (here.epoch, here.window)
                following = self.order.window_after(*entered)
                self.dataset.prefetch(self.order.window_shards(*entered) + self.order.window_shards(*following))
            yield place

    def _made(self, places: Iterable[MicroBatchPlace]) -> Iterator[MicroBatch]:
        """Make micro-batches in threads and yield them in order."""
        cv2.setNumThreads(1)  # these threads are the parallelism; OpenCV's own would only get in their way
        ahead = self._num_threads * self._prefetch
        return ordered_map(self._maker.make, places, num_threads=self._num_threads, ahead=ahead, name="micro-batch")
