"""Images reach a GPU one micro-batch ahead: they are copied on a stream of their own while the network computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from yolofleet.data.loader import in_order
from yolofleet.data.micro_batch import MicroBatch


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
