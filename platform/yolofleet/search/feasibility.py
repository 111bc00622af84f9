"""What a candidate costs and whether it may have a worker: known from its block table, before anything trains.

Profiling is shape arithmetic (`yolofleet.models.profile`): about a millisecond a candidate, and candidates that share
a model and an image size share the work. Latency alone is measured, on the deployed form, when a space asks for it.

Latency of a candidate's deployed form, measured on this process's device: batch 1, median of single images.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from yolofleet.core.errors import UserError
from yolofleet.models.memory import STRATEGIES, training_memory
from yolofleet.models.profile import cost
from yolofleet.models.wiring import wire
from yolofleet.search.space import Parameters, Space, Values
from yolofleet.specs.job import JobSpec
from yolofleet.specs.search_parts import Limit
from yolofleet.training.setup.builders import trained_table

WARM_UP = 5
REPETITIONS = 20


def measure_on(name: str) -> Callable[[JobSpec, int], float]:
    """Return what measures a job's model in milliseconds, with fresh weights: they do not change its speed.

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


TRAINING_PASSES = 3
"""A training step costs about three forward passes: one forward, two backward (input and weight gradients)."""
MOST_KEPT = 50_000
NOT_BUILDABLE = "cannot be built"

Measure = Callable[[JobSpec, int], float]
"""Takes a job and its number of classes, returns milliseconds."""


@dataclass(frozen=True)
class Screened:
    """What is known of a candidate before it trains.

    Attributes:
        figures: Figures by name; empty where the candidate makes no valid model.
        violations: How far each broken limit is exceeded, as a share of the limit; empty for a feasible candidate.
        problem: Why it cannot be built, where it cannot.
    """

    figures: dict[str, float]
    violations: dict[str, float]
    problem: str | None = None

    @property
    def feasible(self) -> bool:
        """Whether it may have a worker."""
        return not self.violations


def violations(figures: Mapping[str, float], constraints: Mapping[Any, Limit]) -> dict[str, float]:
    """Return how far each broken limit is exceeded, as a share of the limit."""
    found: dict[str, float] = {}
    for name, limit in constraints.items():
        value = figures[name]
        if limit.max is not None and value > limit.max:
            found[name] = (value - limit.max) / max(abs(limit.max), 1e-12)
        elif limit.min is not None and value < limit.min:
            found[name] = (limit.min - value) / max(abs(limit.min), 1e-12)
    return found


class Screen:
    """Profiles candidates of a space and holds them against its limits.

    Args:
        space: The space.
        num_classes: Classes of the data.
        num_samples: Training images, for the compute of a whole run.
        measure_latency: Measures a job's deployed form; needed where latency is limited or wanted.
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
            reason = str(error).splitlines()[0]
            return Screened({}, {NOT_BUILDABLE: 1e6}, reason)
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
        """Return the same screen without its measurement: figures and limits that need none."""
        return Screen(self._space, num_classes=self._num_classes, num_samples=self._num_samples)

    def _figures(self, job: JobSpec) -> dict[str, float]:
        part = [job.model.document(), job.data.image_size, job.micro_batch_size, job.precision]
        part += [job.strategy, job.cluster.most_workers, job.assignment.document()]
        key = json.dumps(part)
        if key not in self._known:
            if len(self._known) >= MOST_KEPT:
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
    """Return what a job's model costs: deployed and in training, at the job's image size.

    Raises:
        UserError: The model cannot be built, or does not take the image size.
    """
    graph = wire(trained_table(job))
    size = (job.data.image_size, job.data.image_size)
    deployed = cost(graph, num_classes=num_classes, size=size, folded=True, auxiliary=False)
    training = cost(graph, num_classes=num_classes, size=size)
    precision = job.precision if job.precision in ("fp16", "bf16") else "fp32"
    memory = training_memory(
        graph,
        num_classes=num_classes,
        size=size,
        micro_batch_size=job.micro_batch_size,
        precision=precision,
        strategy=next((name for name in STRATEGIES if name == job.strategy), "ddp"),
        num_workers=job.cluster.most_workers,
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
) -> float:
    """Make sure that some candidate meets every limit.

    Args:
        parameters: The free parameters.
        screen: Profiles a candidate.
        points: Points of the unit cube to look at.
        source: What to name in the message.

    Returns:
        The share of the candidates looked at that is feasible.

    Raises:
        UserError: None is; names the candidate that comes nearest, and by how much it misses.
    """
    nearest: tuple[float, Values, Screened] | None = None
    feasible = looked_at = 0
    for point in points:
        values = parameters.at(point)
        screened = screen(values)
        looked_at += 1
        feasible += screened.feasible
        miss = max(screened.violations.values(), default=0.0)
        if nearest is None or miss < nearest[0]:
            nearest = (miss, values, screened)
    if feasible or nearest is None:
        return feasible / max(looked_at, 1)
    _, values, screened = nearest
    shown = ", ".join(f"{name}={_short(value)}" for name, value in values.items())
    if screened.problem is not None:
        raise UserError(f"{source}: none of {looked_at} candidates makes a valid job; {shown}: {screened.problem}")
    misses = "; ".join(
        f"{name} is {screened.figures[name]:.6g}, {share:.1%} beyond its limit"
        for name, share in screened.violations.items()
    )
    raise UserError(
        f"{source}: constraints: none of {looked_at} candidates meets them. The nearest is {shown}: {misses}. "
        "Loosen the limit, or let the parameters reach further"
    )


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
