"""One process of the invariance test: it trains on the same made-up batches in groups of one to four workers.

python invariance_worker.py RANK FOLDER JOB.json
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch._dynamo  # optimisers import it at their first step
import torch.distributed as dist
from torch import nn

from yolofleet.data.micro_batch import MicroBatch
from yolofleet.specs.job import JobSpec
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.loop import train as train_module
from yolofleet.training.loop import trainer
from yolofleet.training.loop.update import MicroBatchStatistics, Precision, WeightAverage
from yolofleet.training.loop.worker_group import WorkerGroup

WORLD_SIZES = (1, 2, 3, 4)
LIMIT = timedelta(minutes=3)
"""How long one worker waits for the others of its group."""
BOXES = (3, 0, 5, 2, 60, 4)
"""Boxes of each micro-batch of a step: one has none, one has 60."""


class MadeUpStream:
    """Images of noise with boxes anywhere; the same global batch in every step."""

    def __init__(self, job: JobSpec) -> None:
        self._size, self._side = job.resolved_micro_batch_size, job.data.image_size

    def micro_batches(self, start_step: int, owned: Sequence[int]) -> Iterator[MicroBatch]:
        for step in itertools.count(start_step):
            for index in owned:
                yield self._make(step, index)

    def _make(self, step: int, index: int) -> MicroBatch:
        generator = np.random.default_rng(index)
        images = generator.integers(0, 256, (self._size, 3, self._side, self._side), dtype=np.uint8)
        count = BOXES[index]
        sides = generator.uniform(0.05, 0.4, (count, 2))
        centres = generator.uniform(sides / 2, 1 - sides / 2)
        columns = [generator.integers(0, self._size, (count, 1)), generator.integers(0, 3, (count, 1)), centres, sides]
        targets = np.concatenate(columns, axis=1).astype(np.float32)
        return MicroBatch(step, index, torch.from_numpy(images), torch.from_numpy(targets), (f"{step}-{index}",))


class Recorder:
    """What the loop computed: gradients and batch norm of the first step, weights of the last."""

    def __init__(self, num_steps: int) -> None:
        self.found: dict[str, torch.Tensor] = {}
        self._num_steps = num_steps
        self._norm, self._update = Precision.gradient_norm, WeightAverage.update
        self._finish = MicroBatchStatistics.finish_step
        recorder = self

        def gradient_norm(precision: Precision, model: nn.Module, optimizer: Any) -> torch.Tensor:
            recorder.keep("gradient", ((name, p.grad) for name, p in model.named_parameters() if p.grad is not None))
            return recorder._norm(precision, model, optimizer)

        def update(average: WeightAverage, num_updates: int) -> None:
            recorder._update(average, num_updates)
            if num_updates == recorder._num_steps:
                recorder.keep("weights", average._source.state_dict().items())
                recorder.keep("average", average.model.state_dict().items())

        def finish_step(statistics: MicroBatchStatistics, num_micro_batches: int, *, accept: torch.Tensor) -> None:
            recorder._finish(statistics, num_micro_batches, accept=accept)
            recorder.keep("statistics", statistics.running.items())

        MicroBatchStatistics.finish_step = finish_step  # type: ignore[method-assign]
        Precision.gradient_norm = gradient_norm  # type: ignore[method-assign]
        WeightAverage.update = update  # type: ignore[method-assign]

    def keep(self, kind: str, tensors: Any) -> None:
        if not any(name.startswith(f"{kind}.") for name in self.found):
            self.found |= {
                f"{kind}.{name}": tensor.detach().clone(memory_format=torch.contiguous_format)
                for name, tensor in tensors
            }

    def restore(self) -> None:
        MicroBatchStatistics.finish_step = self._finish  # type: ignore[method-assign]
        Precision.gradient_norm = self._norm  # type: ignore[method-assign]
        WeightAverage.update = self._update  # type: ignore[method-assign]


def train(rank: int, world_size: int, folder: Path, job: JobSpec, num_steps: int) -> None:
    losses: list[float] = []
    recorder = Recorder(num_steps)
    with RunDirectory.open(folder / f"runs-{world_size}", job.name) as run:
        train_module.train(
            job,
            run,
            WorkerGroup(rank, world_size),
            evaluate=lambda model: None,
            report=lambda row: losses.append(row["loss"]),
        )
    recorder.restore()
    if rank == 0:
        recorder.found["loss"] = torch.tensor(losses, dtype=torch.float64)
    safetensors.torch.save_file(recorder.found, folder / f"world-{world_size}-rank-{rank}.safetensors")


def main(rank: int, folder: Path, document: dict[str, Any], num_steps: int) -> None:
    torch.set_num_threads(1)
    job = JobSpec.parse(document, source="job")
    trainer.training_stream = lambda *_: MadeUpStream(job)  # type: ignore[assignment]
    trainer.run_deal = lambda _: "epoch"  # the made-up stream deals nothing
    for world_size in WORLD_SIZES:
        if rank >= world_size or world_size % job.batch_norm_workers:
            continue
        if world_size == 1:
            train(rank, 1, folder, job, num_steps)
            continue
        dist.init_process_group(
            "gloo", f"file://{folder}/meeting-{world_size}", rank=rank, world_size=world_size, timeout=LIMIT
        )
        train(rank, world_size, folder, job, num_steps)
        texts = [f"said by {number}\n" * number for number in range(world_size)]  # the first says nothing
        assert WorkerGroup(rank, world_size).concatenate_texts(texts[rank]) == "".join(texts)
        dist.destroy_process_group()


def fork() -> int:
    """Return the rank of this process: 0 for the first, which started the others."""
    for rank in range(1, max(WORLD_SIZES)):
        if os.fork() == 0:
            return rank
    return 0


if __name__ == "__main__":
    own_rank = fork()
    main(own_rank, Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()), int(sys.argv[3]))
    if own_rank == 0:
        codes = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in WORLD_SIZES[1:]]
        sys.exit(max(codes))
