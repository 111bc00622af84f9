"""Latency of a candidate's deployed form, measured on this process's device: batch 1, median of single pictures."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from yolofleet.specs.job import JobSpec

WARM_UP = 5
REPETITIONS = 20


def measure_on(name: str) -> Callable[[JobSpec, int], float]:
    """Return what measures a job's model in milliseconds, with fresh weights: they do not change its speed.

    Raises:
        UserError: There is no such device here.
    """
    import torch

    from yolofleet.evaluation.device import chosen_device

    device = chosen_device(name, "latency_device")

    def measure(job: JobSpec, num_classes: int) -> float:
        from yolofleet.models import build_model

        model = build_model(job.model, num_classes, deployed=True).eval().to(device)
        side = job.data.image_size
        image = torch.rand(1, 3, side, side, device=device)
        seconds = []
        with torch.inference_mode():
            for repetition in range(WARM_UP + REPETITIONS):
                begin = time.perf_counter()
                model(image)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if repetition >= WARM_UP:
                    seconds.append(time.perf_counter() - begin)
        return statistics.median(seconds) * 1000

    return measure
