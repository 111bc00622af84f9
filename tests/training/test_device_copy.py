"""Images are on the GPU one micro-batch ahead, in order, and nothing uses their memory too early."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from yolofleet.data.loader import on_device
from yolofleet.data.micro_batch import MicroBatch

GPU = torch.device("cuda", 0)


def micro_batches(seen: list[str], last: int = 99, side: int = 4) -> Iterator[MicroBatch]:
    try:
        for step in range(last + 1):
            seen.append(f"made {step}")
            yield MicroBatch(
                step, 0, torch.full((1, 3, side, side), step % 256).byte(), torch.zeros(0, 6), (str(step),)
            )
    finally:
        seen.append("closed")


class FakeGpu:
    """Stands for torch's streams and tensors on a GPU, and writes down what is asked of them."""

    def __init__(self, seen: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen = seen
        self.stream = "compute"
        fakes = {"Stream": lambda device: self, "stream": self._within, "current_stream": lambda device: self}
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch.Tensor, "pin_memory", self._do("pin"))
        monkeypatch.setattr(torch.Tensor, "to", self._do("copy"))
        monkeypatch.setattr(torch.Tensor, "record_stream", self._do("record"))

    def _do(self, what: str) -> Any:
        def method(tensor: torch.Tensor, *_: object, **options: object) -> torch.Tensor:
            assert what != "copy" or options == {"non_blocking": True}
            self.seen.append(f"{what} {int(tensor.flatten()[0])} on {self.stream}")
            return tensor.clone()

        return method

    @contextlib.contextmanager
    def _within(self, stream: object) -> Iterator[None]:
        self.stream = "copies"
        yield
        self.stream = "compute"

    def record_event(self) -> str:
        return self.seen[-1]

    def wait_event(self, event: str) -> None:
        self.seen.append(f"wait for '{event}'")


def test_a_copy_begins_a_micro_batch_ahead_and_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    FakeGpu(seen, monkeypatch)
    batches = on_device(micro_batches(seen), GPU)
    begins = [["made 0", "pin 0 on compute", "copy 0 on copies"]]
    for step in range(3):
        batch = next(batches)
        assert batch.step == step and bool((batch.images == step).all()) and batch.keys == (str(step),)
        begins.append([f"made {step + 1}", f"pin {step + 1} on compute", f"copy {step + 1} on copies"])
        ends = [f"wait for 'copy {step} on copies'", f"record {step} on compute"]
        assert seen == [*itertools.chain.from_iterable(begins), *ends], "the next is on its way before this one is used"
        del seen[-2:]
    batches.close()  # type: ignore[attr-defined]
    assert seen[-1] == "closed"


def test_the_last_micro_batches_come_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    FakeGpu(seen, monkeypatch)
    assert [batch.step for batch in on_device(micro_batches(seen, last=3), GPU)] == [0, 1, 2, 3]


def test_a_cpu_gets_the_micro_batches_as_they_are() -> None:
    batches = micro_batches([])
    assert on_device(batches, torch.device("cpu")) is batches


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: the fake above stands for one")
def test_a_gpu_gets_the_same_images() -> None:
    batches = on_device(micro_batches([], last=40, side=640), GPU)
    sums = [(batch.images.device.type, int(batch.images.long().sum())) for batch in batches]
    assert sums == [("cuda", step * 3 * 640 * 640) for step in range(41)]
