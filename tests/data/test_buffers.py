from __future__ import annotations

import gc
import itertools
import os
from pathlib import Path

import pytest
import torch

from yolofleet.data.dataset import ShardDataset
from yolofleet.data.image_formats import BufferPool
from yolofleet.data.stream import TrainingStream
from yolofleet.specs.hyperparameters import Augmentation


def test_a_buffer_is_used_again_only_when_nothing_refers_to_it() -> None:
    pool = BufferPool()
    first = pool.take(10, 20)
    address = first.ctypes.data
    view = first[2:4]
    tensor = torch.from_numpy(first)
    del first
    assert pool.take(10, 20).ctypes.data != address, "a view and a tensor hold it"
    del view
    assert pool.take(10, 20).ctypes.data != address, "a tensor holds it"
    part = tensor[0].numpy()
    del tensor
    assert pool.take(10, 20).ctypes.data != address, "an array of the tensor's holds it"
    del part
    gc.collect()
    assert address in {array.ctypes.data for array in [pool.take(10, 20) for _ in range(2)]}


def test_two_arrays_never_share_memory() -> None:
    pool = BufferPool(most_bytes=3 << 16)
    arrays = [pool.take(8, size) for size in (100, 200, 100, 50, 100, 8000)]
    for number, array in enumerate(arrays):
        array[:] = number
    assert [int(array.min()) == int(array.max()) == number for number, array in enumerate(arrays)] == [True] * 6


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_memory_stays_flat_over_epochs(dataset: ShardDataset) -> None:
    stream = TrainingStream(
        dataset,
        seed=0,
        image_size=160,
        global_batch_size=8,
        micro_batch_size=8,
        augmentation=Augmentation(),
        num_threads=2,
    )
    batches = stream.micro_batches(0, [0])
    per_epoch = len(dataset) // 8 + 1
    sizes = []
    for _ in range(12):
        for batch in itertools.islice(batches, per_epoch * 4):
            assert len(batch.keys) == 8
        sizes.append(resident_bytes())
    assert max(sizes[3:]) <= 1.05 * sizes[2]
