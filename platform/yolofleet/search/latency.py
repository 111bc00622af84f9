"""Latency of a candidate's deployed form, measured on this process's device: batch 1, median of single pictures."""

from __future__ import annotations

from collections.abc import Callable

from yolofleet.specs.job import JobSpec

WARM_UP = 5
REPETITIONS = 20


def measure_on(name: str) -> Callable[[JobSpec, int], float]:
    """Return what measures a job's model in milliseconds, with fresh weights: they do not change its speed.

    Raises:
        UserError: There is no such device here.
    """
    from yolofleet.evaluation.device import chosen_device

    device = chosen_device(name, "latency_device")

    def measure(job: JobSpec, num_classes: int) -> float:
        from yolofleet.evaluation.latency import median_milliseconds
        from yolofleet.models import build_model

        model = build_model(job.model, num_classes, deployed=True).eval().to(device)
        return median_milliseconds(model, job.data.image_size, device, warm_up=WARM_UP, repetitions=REPETITIONS)

    return measure
