"""How long a checkpoint keeps training waiting, beside what a plain copy in memory takes.

    python benchmarks/checkpoint.py [--megabytes 465] [--device cpu|cuda] [--json]

The state is that of YOLOv7 (weights, average, moments; 465 MB): many small tensors and some large ones, convolutions
with their channels innermost. Every save is made when the one before it is stored, as in a run whose checkpoints are
far apart.

- ``block_seconds``: how long `CheckpointStore.save` takes, the median of several; ``first_block_seconds`` the first.
- ``block_cpu_seconds``: processor time of the same, which other work on the machine does not change.
- ``stored_seconds``: until it is committed on the disk, digests included.
- ``over_memory_copy``: processor time over that of copying as many bytes within memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from yolofleet.storage import open_storage
from yolofleet.training.checkpoint.store import CheckpointStore

NUM_SAVES = 7


def made_up_state(num_bytes: int, device: str) -> dict[str, dict[str, torch.Tensor]]:
    """Return weights, average and moments of ``num_bytes`` in all, in float32."""
    shapes = [(width * 2, width, size, size) for width in (32, 64, 128, 256, 512) for size in (1, 3)]
    group: dict[str, torch.Tensor] = {}
    left = num_bytes // 3 // 4
    while left > 0:
        shape = shapes[len(group) % len(shapes)]
        kernel = torch.rand(shape, device=device)
        if kernel.numel() > left:
            kernel = torch.rand(left, 1, 1, 1, device=device)
        group[f"block{len(group)}.weight"] = kernel.contiguous(memory_format=torch.channels_last)
        left -= kernel.numel()
        group[f"block{len(group)}.bias"] = torch.rand(64, device=device)
    return {
        file: {name: tensor.clone() for name, tensor in group.items()} for file in ("weights", "average", "moments")
    }


def measured(num_bytes: int, device: str, folder: Path) -> dict[str, float]:
    """Take several checkpoints and return the figures."""
    state = made_up_state(num_bytes, device)
    store = CheckpointStore(open_storage(folder), keep=1, on_event=lambda kind, **fields: None)
    store.prepare(state)
    blocks, processor, stored = [], [], []
    for step in range(NUM_SAVES):
        if device == "cuda":
            torch.cuda.synchronize()
        began, began_cpu = time.perf_counter(), time.thread_time()
        store.save(step, state, {"run": {"step": step}})
        blocks.append(time.perf_counter() - began)
        processor.append(time.thread_time() - began_cpu)
        store.wait()
        stored.append(time.perf_counter() - began)
    copies = []
    source, target = (torch.ones(num_bytes, dtype=torch.uint8) for _ in range(2))
    for _ in range(NUM_SAVES):
        began_cpu = time.thread_time()
        target.copy_(source)
        copies.append(time.thread_time() - began_cpu)
    return {
        "megabytes": num_bytes / 1e6,
        "block_seconds": statistics.median(blocks),
        "first_block_seconds": blocks[0],
        "block_cpu_seconds": statistics.median(processor),
        "stored_seconds": statistics.median(stored),
        "over_memory_copy": statistics.median(processor) / statistics.median(copies),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=465)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measured(int(arguments.megabytes * 1e6), arguments.device, Path(folder))
    if arguments.json:
        print(json.dumps(figures, indent=1))
        return
    for name, value in figures.items():
        print(f"{name:<20} {value:.3f}")


if __name__ == "__main__":
    main()
