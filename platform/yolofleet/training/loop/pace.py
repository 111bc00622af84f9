"""How fast a run is and what holds it back: the stages of a step, the share of the device's peak, slow workers.

On a CPU the host's clock measures the stages. On a GPU events in its stream do: a stage takes as long as the device is
in it. A reading ends with the step of a row of metrics, and is taken with the values of that step, a step later: the
device has passed its events by then, and the host waits for none.
"""

from __future__ import annotations

import platform
import re
import socket
import statistics
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from yolofleet.training.loop.worker_group import CPU, WorkerGroup

STAGES = ("data_wait", "copy", "forward", "loss", "backward", "exchange", "optimizer", "checkpoint")
"""What a row of metrics has a share of, each under NAME_share; what is left over is the loop's own."""
OWN_STAGES = STAGES[:5]
"""Those in which a worker waits for no other."""
OTHER, EVALUATION = "other", "evaluation"
"""Evaluations have an end of their own in a run, so they are left out of its speed."""
MOST_MARKS = 4096
TRAINING_PASSES = 3
"""A backward pass costs two forward passes: one for the gradients of the weights, one for those of the inputs."""
DATA_SHEET_TERAFLOPS: dict[str, tuple[float, float]] = {
    r"B200": (2250.0, 1125.0),
    r"H200 NVL": (835.0, 417.0),
    r"H200": (989.0, 494.0),
    r"H100 PCIe": (756.0, 378.0),
    r"H100 80GB HBM3": (989.0, 494.0),
    r"A100": (312.0, 156.0),
    r"L40S": (362.0, 183.0),
    r"L4": (121.0, 60.0),
    r"A10": (125.0, 62.5),
    r"T4": (65.0, 8.1),
    r"V100-SXM2": (125.0, 15.7),
}
"""Dense peaks in half precision and in float32 (TF32 where the GPU has it, as torch's convolutions do), from NVIDIA's
data sheets, without sparsity and at the boost clock."""
PRODUCT_SIDE = {"cpu": 512, "cuda": 8192}
PRODUCT_REPEATS = 5
SLOW_EXCESS = 0.25
"""A worker that needs so much more time than the others for a micro-batch is slow."""
SLOW_READINGS = 3
"""Rows of metrics in a row in which it has to be."""


class _Reading:
    """The marks between two rows of metrics."""

    def __init__(self, marks: deque[tuple[str, Any]]) -> None:
        self.marks = marks
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.samples = self.pixels = 0


class Pace:
    """Which stages the time of the workers goes into, since the last reading.

    Args:
        group: This worker.
        num_owned: Micro-batches of a step that are this worker's.
        flops_per_pixel: Operations of the forward pass for one pixel of an image.
        peak_flops: Operations that one worker's device does in a second at most; None: not known.
    """

    def __init__(
        self, group: WorkerGroup, num_owned: int = 1, flops_per_pixel: float = 0.0, peak_flops: float | None = None
    ) -> None:
        self._group = group
        self._num_owned = num_owned
        self._flops_per_pixel = flops_per_pixel
        self._peak_flops = peak_flops
        self._on_gpu = group.device.type == "cuda"
        self._slow: Counter[int] = Counter()
        self._now = self._ended = _Reading(deque([(OTHER, self._mark())]))

    def watch(self, model: nn.Module) -> None:
        """Tell the exchange of gradients from the backward pass: its first parameter is the last to get a gradient."""
        first = next((parameter for parameter in model.parameters() if parameter.requires_grad), None)
        if self._group.world_size > 1 and first is not None:
            first.register_post_accumulate_grad_hook(lambda _: self.enter("exchange"))  # type: ignore[no-untyped-call]

    def enter(self, stage: str) -> None:
        """Count the time from now on to a stage."""
        self._now.marks.append((stage, self._mark()))
        if len(self._now.marks) > MOST_MARKS:
            self._add_up(self._now, wait=False)

    def meet(self, alone: str = OTHER) -> None:
        """Count the time from now on to the exchange with other workers; to the stage given where there are none."""
        self.enter("exchange" if self._group.world_size > 1 else alone)

    def count_step(self, samples: int, size: Sequence[int]) -> None:
        """Count a step of all workers.

        Args:
            samples: Its images.
            size: Their height and width in pixels.
        """
        self._now.samples += samples
        self._now.pixels += samples * size[0] * size[1]

    def begin(self) -> None:
        """Begin a reading; `take` gives the one that ends here."""
        self.enter(self._now.marks[-1][0])
        self._ended, self._now = self._now, _Reading(deque([self._now.marks[-1]]))

    def take(self) -> tuple[dict[str, float], dict[str, Any] | None]:
        """Return what the reading that has ended says; a collective.

        Returns:
            Speed and shares for a row of metrics, means over the workers; and the fields of an event where a worker has
            just turned out to be slow.
        """
        ended = self._ended
        self._add_up(ended, wait=True)
        table = torch.zeros(self._group.world_size, len(STAGES) + 2, dtype=torch.float64)
        total = sum(seconds for stage, seconds in ended.seconds.items() if stage != EVALUATION)
        own = [*(ended.seconds[stage] for stage in STAGES), total, self._num_owned]
        table[self._group.rank] = torch.tensor(own, dtype=torch.float64)
        if self._group.world_size > 1:
            table = table.to(self._group.device)
            self._group.sum(table)
        rows = table.tolist()
        elapsed = max(sum(row[-2] for row in rows) / len(rows), 1e-9)
        reading = {
            f"{stage}_share": min(1.0, sum(row[index] for row in rows) / len(rows) / elapsed)
            for index, stage in enumerate(STAGES)
        }
        reading["samples_per_second"] = ended.samples / elapsed
        flops = TRAINING_PASSES * self._flops_per_pixel * ended.pixels / elapsed
        reading["teraflops_per_second"] = flops / 1e12
        if self._peak_flops:
            reading["model_flops_utilization"] = flops / self._peak_flops / self._group.world_size
        slow = None
        if len(rows) > 1:
            excess = find_excess([sum(row[: len(OWN_STAGES)]) / max(row[-1], 1) for row in rows])
            slowest = max(range(len(excess)), key=excess.__getitem__)
            reading |= {"slowest_rank": slowest, "slowest_rank_excess": excess[slowest]}
            slow = self._name_slow(excess, rows)
        return reading, slow

    def _name_slow(self, excess: Sequence[float], rows: Sequence[Sequence[float]]) -> dict[str, Any] | None:
        """Return the event of a worker that was slow in enough readings, once; the same decision on every worker."""
        for rank, more in enumerate(excess):
            self._slow[rank] = self._slow[rank] + 1 if more > SLOW_EXCESS else 0
        named = [rank for rank in range(len(rows)) if self._slow[rank] == SLOW_READINGS]
        if not named:
            return None
        hosts = self._group.concatenate_texts(f"{socket.gethostname()}\n").splitlines()
        rank = max(named, key=excess.__getitem__)
        shares = [[seconds / max(row[-1], 1) for seconds in row] for row in rows]  # of one micro-batch, as the excess
        usual = [statistics.median_low(column) for column in zip(*shares, strict=True)]
        own = {stage: shares[rank][index] - usual[index] for index, stage in enumerate(OWN_STAGES)}
        stage = max(own, key=own.__getitem__).replace("_", " ")
        return {"rank": rank, "host": hosts[rank], "excess_percent": round(100 * excess[rank]), "stage": stage}

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _add_up(self, reading: _Reading, *, wait: bool) -> None:
        """Add the time between marks to their stages; those that a GPU has not passed yet stay, unless it waits."""
        marks = reading.marks
        if wait and self._on_gpu:
            marks[-1][1].synchronize()
        while len(marks) > 1:
            (stage, begin), (_, end) = marks[0], marks[1]
            if self._on_gpu and not end.query():
                return
            reading.seconds[stage] += begin.elapsed_time(end) / 1000 if self._on_gpu else end - begin
            marks.popleft()


def find_excess(seconds: Sequence[float]) -> list[float]:
    """Return by which share each worker needs more time than the usual one; negative for a faster one."""
    usual = max(statistics.median_low(seconds), 1e-12)
    return [own / usual - 1 for own in seconds]


@dataclass(frozen=True)
class Peak:
    """What a device can do at most."""

    device: str
    """Its name."""
    flops: float
    """Operations in a second."""
    source: str
    """``data sheet``, or ``measured`` by a matrix product here."""

    def document(self) -> dict[str, Any]:
        """Return the fields for an event."""
        return {"device": self.device, "peak_teraflops": round(self.flops / 1e12, 3), "peak_source": self.source}


def find_peak(device: torch.device, dtype: torch.dtype) -> Peak:
    """Return the peak of this process's device in the arithmetic of the passes."""
    if device.type != "cuda":
        return Peak(platform.processor() or platform.machine(), measure_product(device, dtype), "measured")
    name = torch.cuda.get_device_name(device)
    known = known_teraflops(name, dtype)
    if known is not None:
        return Peak(name, known * 1e12, "data sheet")
    return Peak(name, measure_product(device, dtype), "measured")


def known_teraflops(name: str, dtype: torch.dtype) -> float | None:
    """Return the peak of a GPU by its data sheet; None for one that is not listed."""
    for pattern, (half, single) in DATA_SHEET_TERAFLOPS.items():
        if re.search(rf"\b{pattern}\b", name):
            return {torch.float16: half, torch.bfloat16: half, torch.float32: single}.get(dtype)
    return None


def measure_product(device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> float:
    """Return the operations a second of the fastest of a few matrix products, the ceiling of a convolution."""
    side = PRODUCT_SIDE.get(device.type, 512)
    left, right = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    products = torch.backends.cuda.matmul
    before, products.allow_tf32 = products.allow_tf32, torch.backends.cudnn.allow_tf32  # as convolutions compute
    try:
        return 2 * side**3 / fastest_seconds(lambda: left @ right, device, PRODUCT_REPEATS)
    finally:
        products.allow_tf32 = before


def fastest_seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the time of the fastest of a few repetitions, the first of which does not count."""
    seconds = []
    for _ in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])
