"""How micro-batches are made on many cores: in order, a bounded number ahead, by threads or by processes.

Threads start at once and share everything, the interpreter lock too. Decoding, resizing and colour release it, the rest
does not: three threads are as fast as 2.5, and a hundred not as fast as four. Processes wait for none of each other's
locks; they take half a second to start, and 70 MB of memory each beside the images.

A GPU gets the images one micro-batch ahead: they are copied on a stream of their own while the network computes.
"""

from __future__ import annotations

import os
import pickle
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from itertools import cycle
from typing import Literal, TypeVar

import numpy as np
import torch

from yolofleet.data.loader_process import LoaderProcess, SharedSlots
from yolofleet.data.micro_batch import MicroBatch, MicroBatchMaker, MicroBatchPlan

Loader = Literal["threads", "processes"]
LOCK_SHARES = {160: 0.34, 320: 0.31, 640: 0.29, 1280: 0.15}
"""Share of its processor time in which a thread holds the interpreter lock, by image size: measured on COCO's images
with the published augmentation."""
SMALL_IMAGE_SIZE = 256
"""Runs on smaller images are over before processes pay."""
LEAST_EFFICIENCY = 0.85
Item = TypeVar("Item")
Result = TypeVar("Result")


def choose_loader(wanted: Loader | Literal["auto"], number: int, image_size: int) -> Loader:
    """Return what makes micro-batches: what is wanted, or what the forecast says.

    Processes, where the forecast for threads at this image size is below 85 % of as many cores: from three on at 640
    pixels, from six on at 1280. Threads for small images.

    Args:
        wanted: The job's ``data.loader``.
        number: Threads or processes.
        image_size: Side of the images in pixels.
    """
    if wanted != "auto":
        return wanted
    lock_share = float(np.interp(image_size, list(LOCK_SHARES), list(LOCK_SHARES.values())))
    is_slow = forecast_speed(number, lock_share) < LEAST_EFFICIENCY * number
    return "processes" if is_slow and image_size >= SMALL_IMAGE_SIZE else "threads"


def forecast_speed(num_threads: int, lock_share: float) -> float:
    """Return how many times as fast as one thread some threads are, each on a core of its own.

    Mean value analysis of a closed queueing network: a thread alternates between work that holds the interpreter lock
    (a queue) and work that does not (a delay).

    Args:
        num_threads: Threads.
        lock_share: Share of its time in which one thread alone holds the lock.
    """
    speed, waiting = 1.0, 0.0  # waiting: threads that hold the lock or wait for it
    for threads in range(1, num_threads + 1):
        at_lock = lock_share * (1 + waiting)
        speed = threads / (1 - lock_share + at_lock)
        waiting = speed * at_lock
    return speed


def make_in_processes(
    maker: MicroBatchMaker, plans: Iterable[MicroBatchPlan], *, num_processes: int, ahead: int, slot_bytes: int
) -> Iterator[MicroBatch]:
    """Yield the micro-batches of plans, in order, made by processes a bounded number ahead.

    Their images lie in memory that is used again when nothing refers to them any more.

    Args:
        maker: Makes them; every process gets a copy.
        plans: Read in the caller's thread.
        num_processes: Processes; they end with the iterator, or with this process.
        ahead: Micro-batches that are made before they are asked for.
        slot_bytes: The most bytes of a micro-batch's images.

    Raises:
        LoaderProcessError: A process has ended by itself.
        Exception: Whatever the maker raises.
    """
    with ExitStack() as stack:
        slots = SharedSlots(slot_bytes)
        stack.callback(slots.close)
        file = stack.enter_context(os.fdopen(os.memfd_create("yolofleet-maker"), "wb"))
        pickle.dump(maker, file)  # once for all of them
        file.flush()
        processes = [stack.enter_context(closing(LoaderProcess(file.fileno(), slots))) for _ in range(num_processes)]
        turns = cycle(processes)

        def ask(plan: MicroBatchPlan) -> Callable[[], MicroBatch]:
            process = next(turns)
            number, images = slots.take(plan.image_shape)
            process.ask(number, plan)
            return lambda: MicroBatch.of(plan, images, process.answer())

        yield from in_order(ask, plans, ahead)


def in_order(ask: Callable[[Item], Callable[[], Result]], items: Iterable[Item], ahead: int) -> Iterator[Result]:
    """Yield the result of every item, in order; ``ask`` begins an item and returns what waits for its result."""
    waiting: deque[Callable[[], Result]] = deque()
    for item in items:
        waiting.append(ask(item))
        if len(waiting) > ahead:
            yield waiting.popleft()()
    while waiting:
        yield waiting.popleft()()


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], *, num_threads: int, ahead: int, name: str
) -> Iterator[Result]:
    """Yield ``function(item)`` of every item, in order, computed in threads a bounded number of items ahead.

    The threads are daemons: one that waits for an object store must not keep an interrupted program alive, as the
    threads of an executor would.

    Args:
        function: Called with each item; it must be safe among threads.
        items: Read in the caller's thread, only as far ahead as results are computed.
        num_threads: Threads; 0 calls the function in the caller's.
        ahead: Results that are computed before they are asked for.
        name: Name of the threads.

    Raises:
        Exception: Whatever ``function`` raises, instead of its result.
    """
    if num_threads == 0:
        yield from map(function, items)
        return
    tasks: queue.SimpleQueue[tuple[Item, Future[Result]] | None] = queue.SimpleQueue()
    for number in range(num_threads):
        threading.Thread(target=_work, args=(function, tasks), name=f"{name}-{number}", daemon=True).start()

    def ask(item: Item) -> Callable[[], Result]:
        future: Future[Result] = Future()
        tasks.put((item, future))
        return future.result

    try:
        yield from in_order(ask, items, ahead)
    finally:
        with suppress(queue.Empty):
            while True:
                tasks.get_nowait()  # nobody waits for it any more
        for _ in range(num_threads):
            tasks.put(None)


def _work(function: Callable[[Item], Result], tasks: queue.SimpleQueue[tuple[Item, Future[Result]] | None]) -> None:
    while (task := tasks.get()) is not None:
        item, future = task
        try:
            future.set_result(function(item))
        except BaseException as error:  # raised to the caller, who waits for the result
            future.set_exception(error)
        del task, item, future  # keep no result alive while waiting for the next task


def on_device(batches: Iterator[MicroBatch], device: torch.device) -> Iterator[MicroBatch]:
    """Return the same micro-batches with their images on a GPU; on a CPU, as they are."""
    return in_order(CopyStream(device).begin, batches, ahead=1) if device.type == "cuda" else batches


class CopyStream:
    """Copies images to a GPU beside the work of its other streams.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def begin(self, batch: MicroBatch) -> Callable[[], MicroBatch]:
        """Begin to copy the images of a micro-batch, and return what lets the current stream use them.

        The pinned images are a copy, so the memory of the batch is free at once. Torch uses theirs again only after the
        copy to the GPU, and memory on the GPU only after the streams that it was recorded for.
        """
        pinned = batch.images.pin_memory()
        with torch.cuda.stream(self._stream):
            images = pinned.to(self._device, non_blocking=True)
            copied = self._stream.record_event()

        def finish() -> MicroBatch:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(copied)
            images.record_stream(current)
            return replace(batch, images=images)

        return finish
