"""The scaling model against processes: steps of 1, 2 and 4 workers that exchange gradients by gloo on this machine.

    python benchmarks/scaling.py [--megabytes 24] [--seconds 0.2] [--steps 8] [--json]

A worker sleeps in place of computing, so that the cores of one machine do for all of them, and sums real tensors while
it does, in buckets, as DistributedDataParallel does in the last backward pass. The speed of the link is measured with
two workers, by one sum of everything; the model (`yolofleet.cluster.scaling`) then says how long a step takes.

- ``measured_seconds``, ``forecast_seconds``: of a step; ``ratio``: measured over forecast.
- ``efficiency``, ``forecast_efficiency``: speed-up over one worker, by the number of workers.
- ``hidden_share``: part of the exchange that the backward pass has hidden.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
import torch.distributed as dist

from yolofleet.cluster.scaling import Link, StepWork, ring_seconds, step_seconds

COUNTS = (1, 2, 4)
MICRO_BATCHES = 4
BACKWARD_SHARE = 0.5
BUCKET_BYTES = 4 << 20
"""Small ones, so that a short exchange has several."""


def work_rank(rank: int, workers: int, port: int, work: StepWork, steps: int) -> tuple[float, float]:
    """Do steps as one of the workers; returns the median seconds of a step, and of one sum of everything."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=workers)
    try:
        whole = torch.ones(work.gradient_bytes // 4)
        parts = [torch.ones(BUCKET_BYTES // 4) for _ in range(-(-work.gradient_bytes // BUCKET_BYTES))]
        taken = [do_step(work, workers, parts) for _ in range(steps + 1)][1:]
        sums = []
        for _ in range(steps + 1):
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(whole)
            sums.append(time.perf_counter() - began)
        return statistics.median(taken), statistics.median(sums[1:])
    finally:
        dist.destroy_process_group()


def do_step(work: StepWork, workers: int, parts: list[torch.Tensor]) -> float:
    """Do a step; returns its seconds."""
    dist.barrier()
    began = time.perf_counter()
    share = -(-work.micro_batches // workers)
    time.sleep(share * work.seconds_per_micro_batch - work.backward_seconds)
    pending = []
    for part in parts:
        time.sleep(work.backward_seconds / len(parts))
        if workers > 1:
            pending.append(dist.all_reduce(part, async_op=True))
    for handle in pending:
        handle.wait()
    time.sleep(work.seconds_once)
    return time.perf_counter() - began


def measure(workers: int, work: StepWork, steps: int) -> tuple[float, float]:
    """Return the seconds of a step of so many workers, and of one sum of everything."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = [pool.submit(work_rank, rank, workers, port, work, steps) for rank in range(workers)]
        results = [entry.result() for entry in found]
    return max(step for step, _ in results), max(whole for _, whole in results)


def compare(work: StepWork, steps: int) -> list[dict[str, Any]]:
    """Return measured and forecast figures of each number of workers."""
    measured = {workers: measure(workers, work, steps) for workers in COUNTS}
    link = Link(2 * (2 - 1) / 2 * work.gradient_bytes / measured[2][1], latency_seconds=0.0)
    rows = []
    for workers, (seconds, _) in measured.items():
        forecast = step_seconds(work, workers, link, bucket_bytes=BUCKET_BYTES)
        alone = step_seconds(work, workers, None)
        exchange = ring_seconds(work.gradient_bytes, workers, link) if workers > 1 else 0.0
        rows.append(
            {
                "workers": workers,
                "measured_seconds": round(seconds, 4),
                "forecast_seconds": round(forecast, 4),
                "ratio": round(seconds / forecast, 3),
                "efficiency": round(measured[1][0] / (workers * seconds), 3),
                "forecast_efficiency": round(step_seconds(work, 1, None) / (workers * forecast), 3),
                "exchange_seconds": round(exchange, 4),
                "hidden_share": round(1 - max(0.0, seconds - alone) / exchange, 3) if exchange else None,
            }
        )
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=24, help="of gradients")
    parser.add_argument("--seconds", type=float, default=0.2, help="of a micro-batch")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    work = StepWork(
        micro_batches=MICRO_BATCHES,
        seconds_per_micro_batch=arguments.seconds,
        backward_seconds=BACKWARD_SHARE * arguments.seconds,
        seconds_once=0.02,
        gradient_bytes=arguments.megabytes << 20,
    )
    rows = compare(work, arguments.steps)
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    print("".join(f"{name:>20}" for name in rows[0]))
    for row in rows:
        print("".join(f"{value!s:>20}" for value in row.values()))


if __name__ == "__main__":
    main()
