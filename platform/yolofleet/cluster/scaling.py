"""How a step scales to more workers: pure functions of measured seconds, bytes and the speed of a link.

Workers share the micro-batches of a step, so its own work is that of the busiest of them. Then their gradients are
summed by a ring: every link carries 2 (n - 1) / n of the bytes, in 2 (n - 1) turns. The sum of a bucket begins as soon
as its gradients are there, in the backward pass of the last micro-batch; what is not over by the end of that pass is
exposed. Sources: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations", 2009; Li
et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", 2020, section 3.2.

Not in it: workers that are slower than others, a network that others use, batch norm over several workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BUCKET_BYTES = 25 << 20
"""Gradients that DistributedDataParallel sums at once."""
LEAST_EFFICIENCY = 0.8
"""Below it more workers are not advised."""


@dataclass(frozen=True)
class Link:
    """What joins the workers."""

    bytes_per_second: float
    """What the busiest link of the ring carries, as `yolofleet cluster doctor` measures it."""
    latency_seconds: float = 20e-6
    """Of one turn of the ring."""


@dataclass(frozen=True)
class StepWork:
    """What a step of the whole job is made of."""

    micro_batches: int
    """Of all workers together."""
    seconds_per_micro_batch: float
    """On one worker."""
    backward_seconds: float
    """Of that, in the backward pass."""
    seconds_once: float
    """On every worker, once a step: the optimiser."""
    gradient_bytes: int
    """What is summed over the workers."""
    every_micro_batch: bool = False
    """Whether gradients are summed after every micro-batch (ZeRO 2), not only after the last."""


def ring_seconds(num_bytes: float, workers: int, link: Link) -> float:
    """Return how long a ring takes to sum so many bytes over the workers."""
    turns = 2 * (workers - 1)
    return turns / workers * num_bytes / link.bytes_per_second + turns * link.latency_seconds


def exposed_seconds(exchange_seconds: float, backward_seconds: float, num_buckets: int) -> float:
    """Return the part of an exchange that a backward pass does not hide.

    Gradients come evenly over the pass. The last bucket is only there at its end; and where exchanging is slower than
    computing, buckets queue up behind the first one.
    """
    return max(exchange_seconds / num_buckets, exchange_seconds - backward_seconds * (1 - 1 / num_buckets))


def step_seconds(work: StepWork, workers: int, link: Link | None, *, bucket_bytes: int = BUCKET_BYTES) -> float:
    """Return the time of a step with so many workers; without a link, as if an exchange took no time."""
    share = -(-work.micro_batches // workers)
    own = share * work.seconds_per_micro_batch + work.seconds_once
    if workers == 1 or link is None:
        return own
    exchange = ring_seconds(work.gradient_bytes, workers, link)
    buckets = -(-work.gradient_bytes // bucket_bytes) or 1
    exposed = exposed_seconds(exchange, work.backward_seconds, buckets)
    return own + exposed * (share if work.every_micro_batch else 1)


@dataclass(frozen=True)
class ScalingPoint:
    """A number of workers, and what it gives."""

    workers: int
    seconds_per_step: float
    efficiency: float
    """Speed-up over one worker, by the number of workers: 1 where nothing is lost."""

    @property
    def worker_seconds(self) -> float:
        """What a step costs."""
        return self.workers * self.seconds_per_step


def scaling_curve(work: StepWork, counts: Iterable[int], link: Link | None) -> list[ScalingPoint]:
    """Return what each number of workers gives; numbers above that of the micro-batches are left out."""
    alone = step_seconds(work, 1, None)
    points = []
    for workers in counts:
        if workers <= work.micro_batches:
            seconds = step_seconds(work, workers, link)
            points.append(ScalingPoint(workers, seconds, alone / (workers * seconds)))
    return points


def advised_workers(curve: Sequence[ScalingPoint], least_efficiency: float = LEAST_EFFICIENCY) -> int:
    """Return the most workers that still earn their cost."""
    return max((point.workers for point in curve if point.efficiency >= least_efficiency), default=curve[0].workers)
