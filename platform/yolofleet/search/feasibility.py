"""Screening: computes the figures of a candidate and compares them with the limits, before anything trains.

Profiling is shape arithmetic over the block table (`yolofleet.models.profile`): about two milliseconds a candidate, and
candidates of the same model and image size are profiled once. Only latency is measured, on the deployed form and only
where a space asks for it: batch 1, median over single images.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from yolofleet.core.errors import UserError
from yolofleet.core.text import first_line, plural
from yolofleet.models.memory import STRATEGIES, training_memory
from yolofleet.models.profile import cost
from yolofleet.models.wiring import wire
from yolofleet.search.space import Parameters, Space, Values
from yolofleet.specs.job import JobSpec
from yolofleet.specs.search_parts import Limit
from yolofleet.training.setup.builders import trained_table

WARM_UP = 5
REPETITIONS = 20
TRAINING_PASSES = 3
"""A training step costs about three forward passes: one forward, two backward (input and weight gradients)."""
MOST_CACHED = 50_000
NOT_BUILDABLE = "cannot be built"

Measure = Callable[[JobSpec, int], float]
"""Returns the latency of a job's model in milliseconds, given the job and its number of classes."""


def measure_on(name: str) -> Measure:
    """Return the measurement of latency on a device; weights are random, because they do not change the speed.

    Raises:
        UserError: There is no such device here.
    """
    from yolofleet.evaluation.detector import select_device

    device = select_device(name, "latency_device")

    def measure(job: JobSpec, num_classes: int) -> float:
        from yolofleet.evaluation.detector import median_milliseconds
        from yolofleet.models import build_model

        model = build_model(job.model, num_classes, deployed=True).eval().to(device)
        return median_milliseconds(model, job.data.image_size, device, warm_up=WARM_UP, repetitions=REPETITIONS)

    return measure


@dataclass(frozen=True)
class Screened:
    """The result of screening a candidate."""

    figures: dict[str, float]
    """Figures by name; empty where no model can be built."""
    violations: dict[str, float]
    """How far each broken limit is exceeded, as a share of the limit; empty for a feasible candidate."""
    problem: str | None = None
    """Why no model can be built."""

    @property
    def feasible(self) -> bool:
        """Whether it may train."""
        return not self.violations


def violations(figures: Mapping[str, float], constraints: Mapping[Any, Limit]) -> dict[str, float]:
    """Return how far each broken limit is exceeded, as a share of the limit."""
    exceeded: dict[str, float] = {}
    for name, limit in constraints.items():
        value = figures[name]
        if limit.max is not None and value > limit.max:
            exceeded[name] = (value - limit.max) / max(abs(limit.max), 1e-12)
        elif limit.min is not None and value < limit.min:
            exceeded[name] = (limit.min - value) / max(abs(limit.min), 1e-12)
    return exceeded


class Screen:
    """Profiles candidates of a space and compares them with its limits.

    Args:
        space: The space.
        num_classes: Classes of the data.
        num_samples: Training images, for the compute of a whole run.
        measure_latency: Measures latency; needed where it is a limit or an objective.
    """

    def __init__(
        self, space: Space, *, num_classes: int = 80, num_samples: int = 1, measure_latency: Measure | None = None
    ) -> None:
        self._space = space
        self._num_classes = num_classes
        self._num_samples = num_samples
        self._measure_latency = measure_latency
        self._known: dict[str, dict[str, float]] = {}

    def __call__(self, values: Values) -> Screened:
        """Profile a candidate."""
        constraints = self._space.spec.constraints
        try:
            job = self._space.job(values)
            figures = dict(self._figures(job))
        except UserError as error:
            return Screened({}, {NOT_BUILDABLE: 1e6}, first_line(error))
        steps = job.num_steps(self._num_samples)
        flops = figures["gflops_training"] * 1e9 * TRAINING_PASSES
        figures["training_petaflops"] = flops * steps * job.global_batch_size / 1e15
        cheap = {name: limit for name, limit in constraints.items() if name != "latency_milliseconds"}
        broken = violations(figures, cheap)
        if self._measure_latency is not None and not broken:
            figures["latency_milliseconds"] = self._latency(job)
            broken = violations(figures, constraints)
        return Screened(figures, broken)

    def without_latency(self) -> Screen:
        """Return a screen that measures nothing, for the figures and limits other than latency."""
        return Screen(self._space, num_classes=self._num_classes, num_samples=self._num_samples)

    def _figures(self, job: JobSpec) -> dict[str, float]:
        part = [job.model.document(), job.data.image_size, job.micro_batch_size, job.precision]
        part += [job.strategy, job.cluster.most_workers, job.assignment.document()]
        part += [job.hyperparameters.get("optimizer"), job.memory]
        key = json.dumps(part)
        if key not in self._known:
            if len(self._known) >= MOST_CACHED:
                self._known.clear()
            self._known[key] = profile_job(job, self._num_classes)
        return self._known[key]

    def _latency(self, job: JobSpec) -> float:
        assert self._measure_latency is not None
        key = json.dumps(["latency", job.model.document(), job.data.image_size])
        if key not in self._known:
            self._known[key] = {"milliseconds": self._measure_latency(job, self._num_classes)}
        return self._known[key]["milliseconds"]


def profile_job(job: JobSpec, num_classes: int) -> dict[str, float]:
    """Return the figures of a job's model at the job's image size, deployed and in training.

    Raises:
        UserError: The model cannot be built, or not for this image size.
    """
    graph = wire(trained_table(job))
    size = (job.data.image_size, job.data.image_size)
    deployed = cost(graph, num_classes=num_classes, size=size, folded=True, auxiliary=False)
    training = cost(graph, num_classes=num_classes, size=size)
    optimizer = job.resolved_hyperparameters().optimizer
    precision = job.precision if job.precision in ("fp16", "bf16") else "fp32"
    memory = training_memory(
        graph,
        num_classes=num_classes,
        size=size,
        micro_batch_size=job.resolved_micro_batch_size,
        precision=precision,
        strategy=next((name for name in STRATEGIES if name == job.strategy), "ddp"),
        num_workers=job.cluster.most_workers,
        moments=1 if optimizer == "sgd" else 2,
        memory=job.memory,
    )
    return {
        "gflops": deployed.gflops,
        "gflops_with_bias": deployed.gflops_with_bias,
        "gflops_training": training.gflops,
        "parameters": float(deployed.parameters),
        "parameters_training": float(training.parameters),
        "activation_bytes": float(memory.activations),
        "training_bytes": float(memory.total),
    }


def check_feasible(
    parameters: Parameters, screen: Callable[[Values], Screened], points: Iterable[list[float]], *, source: str
) -> None:
    """Refuse limits that no candidate meets.

    Raises:
        UserError: No candidate is feasible; names the nearest one, and by how much it misses each limit.
    """
    nearest: tuple[float, Values, Screened] | None = None
    count = 0
    for point in points:
        values = parameters.at(point)
        screened = screen(values)
        count += 1
        miss = max(screened.violations.values(), default=0.0)
        if nearest is None or miss < nearest[0]:
            nearest = (miss, values, screened)
    if nearest is None or nearest[0] == 0:
        return
    _, values, screened = nearest
    shown = ", ".join(f"{name}={_short(value)}" for name, value in values.items())
    candidates = plural(count, "candidate")
    if screened.problem is not None:
        raise UserError(f"{source}: none of {candidates} makes a valid job; {shown}: {screened.problem}")
    misses = "; ".join(
        f"{name} is {screened.figures[name]:.6g}, {share:.1%} beyond its limit"
        for name, share in screened.violations.items()
    )
    raise UserError(
        f"{source}: constraints: none of {candidates} meets them. The nearest is {shown}: {misses}. "
        "Loosen the limit, or widen the ranges of the parameters"
    )


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
