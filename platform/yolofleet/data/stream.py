"""The training stream: one endless sequence of micro-batches, the same at any world size, from any step.

It is a ``webdataset.DataPipeline``. In place of its shard lists, splitters and shuffles there is a source stage of our
own, which computes the order from the step alone: micro-batch i of a step takes the next samples of lane i. The last
stage decodes and augments, in threads or in processes (`loader`), and in order.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

import cv2
import numpy as np
from numpy.typing import NDArray
from webdataset.pipeline import DataPipeline

from yolofleet.core.errors import UserError
from yolofleet.core.text import plural
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.decode import DEFAULT_MAX_PIXELS
from yolofleet.data.loader import Loader, make_in_processes, ordered_map
from yolofleet.data.micro_batch import AugmentOn, MicroBatch, MicroBatchMaker, MicroBatchPlan
from yolofleet.data.order import Deal, SampleOrder, Window
from yolofleet.specs.hyperparameters import Augmentation

__all__ = ["MicroBatch", "TrainingStream"]


class TrainingStream:
    """Micro-batches of a dataset without end: a pure function of (dataset, seed, step, index).

    Args:
        dataset: The samples.
        seed: Seed of order and augmentation.
        image_size: Side of the square input, in pixels.
        global_batch_size: Samples of a step, over all workers.
        micro_batch_size: Samples that pass the network together; divides the global batch.
        augmentation: How samples are augmented, or a function of the step that returns it.
        num_threads: Threads or processes that make micro-batches; 0 makes them in the caller's thread.
        loader: Whether those are threads or processes.
        prefetch: Micro-batches made ahead for each of them.
        image_size_at: The image size at a step, in place of ``image_size``.
        largest_image_size: The largest of them; ``image_size`` unless given.
        max_pixels: Larger images are skipped.
        deal: Whether shards are dealt to the lanes once (``fixed``) or anew every ``epoch``.
        num_steps: Steps of the run; shards that only later steps read are not fetched ahead.
        sample_weights: (N,) how often each sample is drawn an epoch in the long run; None draws each once.
        augment_on: Where colour and flips are done; ``device`` leaves them to `finished`.

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
        augmentation: Augmentation | Callable[[int], Augmentation],
        num_threads: int = 1,
        loader: Loader = "threads",
        prefetch: int = 2,
        image_size_at: Callable[[int], int] | None = None,
        largest_image_size: int | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        deal: Deal = "epoch",
        num_steps: int | None = None,
        sample_weights: NDArray[np.float64] | None = None,
        augment_on: AugmentOn = "host",
    ) -> None:
        if micro_batch_size < 1 or global_batch_size < 1 or global_batch_size % micro_batch_size:
            raise UserError(
                f"global_batch_size {global_batch_size} is not a whole number of micro-batches of {micro_batch_size}"
            )
        if not len(dataset) or not dataset.manifest.num_boxes:
            held = f"{plural(len(dataset), 'image')} and {plural(dataset.manifest.num_crowds, 'crowd')}"
            raise UserError(f"{dataset.url}: no boxes to learn from (it holds {held}); train on another dataset")
        self.dataset = dataset
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.order = SampleOrder(
            dataset.shard_sizes, seed, num_lanes=self.micro_batches_per_step, deal=deal, weights=sample_weights
        )
        self._image_size_at = image_size_at or (lambda step: image_size)
        self._augmentation_at = augmentation if callable(augmentation) else (lambda step: augmentation)
        self._largest_image_size = largest_image_size or image_size
        self._num_threads = num_threads
        self._loader = loader
        self._end = math.inf if num_steps is None else num_steps * micro_batch_size  # of each lane
        self._ahead = num_threads * prefetch  # micro-batches that are asked for before they are needed
        self._maker = MicroBatchMaker(dataset, self.order, seed, max_pixels, augment_on)

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches of a step, over all workers."""
        return self.global_batch_size // self.micro_batch_size

    def plan(self, step: int, index: int) -> MicroBatchPlan:
        """Return the plan of micro-batch ``index`` of a step."""
        number = step * self.global_batch_size + index * self.micro_batch_size
        return MicroBatchPlan(
            step, index, number, self.micro_batch_size, self._image_size_at(step), self._augmentation_at(step)
        )

    def micro_batch(self, step: int, index: int) -> MicroBatch:
        """Make one micro-batch in the caller's thread."""
        return self._maker.make(self.plan(step, index))

    def micro_batches(self, start_step: int, owned: Sequence[int]) -> Iterator[MicroBatch]:
        """Yield, for every step from ``start_step`` on, the micro-batches whose index is in ``owned``, in order.

        Raises:
            UserError: An index is not one of 0..micro_batches_per_step-1, or none is owned.
        """
        indices = sorted(set(owned))
        if not indices or indices[0] < 0 or indices[-1] >= self.micro_batches_per_step:
            raise UserError(f"owned micro-batches {list(owned)} are not within 0..{self.micro_batches_per_step - 1}")
        pipeline = DataPipeline(lambda: self._plan_steps(start_step, indices), self._fetch_ahead, self._make)
        return iter(pipeline)

    def _plan_steps(self, start_step: int, indices: list[int]) -> Iterator[MicroBatchPlan]:
        step = start_step
        while True:
            for index in indices:
                yield self.plan(step, index)
            step += 1

    def _fetch_ahead(self, plans: Iterable[MicroBatchPlan]) -> Iterator[MicroBatchPlan]:
        """Ask for the shards of each lane's window and of those after it, whenever a lane enters a window.

        Those of a window that it left are kept until the last micro-batch of it must have been made.
        """
        named: dict[int, list[Window]] = {}  # by lane: its present window, then those after it
        left: deque[tuple[int, list[Window]]] = deque()  # what was named before, and the number of the first plan since
        for number, plan in enumerate(plans):
            if plan.index not in named or plan.position >= named[plan.index][0].end:
                if plan.index in named:
                    left.append((number, named[plan.index]))
                while left and left[0][0] + self._ahead < number:
                    left.popleft()
                window = self.order.window(plan.index, plan.position)
                named[plan.index] = [window, *self.order.windows_after(plan.index, window)]
                windows = chain(*(before for _, before in left), *named.values())
                needed = (window for window in windows if window.first < self._end)
                soonest_first = sorted(needed, key=lambda window: window.first)
                self.dataset.prefetch([shard for window in soonest_first for shard in window.shards])
            yield plan

    def _make(self, plans: Iterable[MicroBatchPlan]) -> Iterator[MicroBatch]:
        """Make micro-batches and yield them in order."""
        if self._loader == "processes" and self._num_threads:
            most_bytes = self.micro_batch_size * 3 * self._largest_image_size**2
            return make_in_processes(
                self._maker, plans, num_processes=self._num_threads, ahead=self._ahead, slot_bytes=most_bytes
            )
        cv2.setNumThreads(1)  # these threads are the parallelism; OpenCV's own would only get in their way
        return ordered_map(
            self._maker.make, plans, num_threads=self._num_threads, ahead=self._ahead, name="micro-batch"
        )
