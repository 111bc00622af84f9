"""The scaling law of AP and training compute, AP = limit - gain x compute ^ -power, and the gain of the next doubling.

It is fitted to the best AP at each compute (the front), by least squares for each of a range of powers. Its uncertainty
comes from a bootstrap over the trials. Where the trials do not support a law, the reason is given instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolofleet.core.text import plural
from yolofleet.search.pareto import front

FEWEST_POINTS = 5
LEAST_RANGE = 3.0
BOOTSTRAP_SETS = 200
POWERS = np.geomspace(0.03, 2.0, 60)
INTERVAL = (0.1, 0.9)


@dataclass(frozen=True)
class ScalingLaw:
    """A fitted law, or the reason why there is none."""

    supported: bool
    """Whether the trials support a law."""
    reason: str | None = None
    """Why they do not."""
    limit: float | None = None
    """AP at unlimited compute."""
    gain: float | None = None
    """Factor of the term that shrinks with compute."""
    power: float | None = None
    """Its exponent."""
    largest_compute: float | None = None
    """Largest compute among the trials, in petaFLOPs."""
    doubling: float | None = None
    """AP that twice that compute is expected to add."""
    doubling_interval: tuple[float, float] | None = None
    """The 10th and the 90th percentile of it over the bootstrap."""
    num_points: int = 0
    """Trials on the fitted front."""

    def sentence(self) -> str:
        """Return the law, or why there is none, as a sentence."""
        if not self.supported or self.doubling is None or self.doubling_interval is None:
            return f"no scaling law of AP over compute: {self.reason}"
        low, high = self.doubling_interval
        return (
            f"AP = {100 * (self.limit or 0):.1f} - {100 * (self.gain or 0):.3g} x PFLOP^-{self.power:.2f}; twice the "
            f"compute of the largest trial is expected to add {100 * self.doubling:.2f} AP "
            f"({100 * low:.2f} to {100 * high:.2f})"
        )


def fit_scaling_law(trials: Sequence[tuple[float, float]]) -> ScalingLaw:
    """Fit AP against compute.

    Args:
        trials: Compute in petaFLOPs and AP (0 to 1) of each completed trial.
    """
    points = np.array(trials, dtype=np.float64).reshape(-1, 2)
    envelope = _envelope(points)
    count = len(envelope)
    if count < FEWEST_POINTS:
        found = plural(count, "trial is", "trials are")
        return ScalingLaw(False, f"it needs {FEWEST_POINTS} trials on the front of AP and compute, and {found} there")
    span = envelope[-1, 0] / envelope[0, 0]
    if span < LEAST_RANGE:
        reason = f"the front's compute spans a factor of {span:.1f}, {LEAST_RANGE:g} is needed"
        return ScalingLaw(False, reason, num_points=count)
    limit, gain, power, residual = _fit(envelope)
    explained = 1 - residual / max(float(((envelope[:, 1] - envelope[:, 1].mean()) ** 2).sum()), 1e-12)
    largest = float(envelope[-1, 0])
    random = np.random.default_rng(0)
    doublings = []
    for _ in range(BOOTSTRAP_SETS):
        drawn = _envelope(points[random.integers(len(points), size=len(points))])
        if len(drawn) >= 3:
            _, g, p, _ = _fit(drawn)
            doublings.append(g * largest**-p * (1 - 2**-p))
    doubling = gain * largest**-power * (1 - 2**-power)
    low, high = (float(value) for value in np.quantile(doublings, INTERVAL)) if doublings else (0.0, 0.0)
    if power in (POWERS[0], POWERS[-1]):
        return ScalingLaw(
            False, "the front is no power law of compute: its exponent cannot be determined", num_points=count
        )
    if gain <= 0 or low <= 0 or explained < 0.7:
        return ScalingLaw(
            False,
            f"compute explains too little of AP along the front ({max(explained, 0):.0%}), or the sign of its effect "
            "is uncertain; more trials of different compute are needed",
            num_points=count,
        )
    return ScalingLaw(True, None, limit, gain, power, largest, doubling, (low, high), count)


def _envelope(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the points that no cheaper point reaches, by growing compute."""
    if not len(points):
        return points
    kept = points[front(np.stack([points[:, 1], -points[:, 0]], axis=1))]
    ordered: NDArray[np.float64] = kept[np.argsort(kept[:, 0])]
    return ordered


def _fit(points: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Return limit, gain, power and squared residual of the best fit.

    For a given power the law is linear in limit and gain, so a search over the powers finds the best fit safely.
    """
    best = (0.0, 0.0, 1.0, np.inf)
    for power in POWERS:
        basis = np.stack([np.ones(len(points)), -(points[:, 0] ** -power)], axis=1)
        solution, *_ = np.linalg.lstsq(basis, points[:, 1], rcond=None)
        residual = float(((basis @ solution - points[:, 1]) ** 2).sum())
        if residual < best[3]:
            best = (float(solution[0]), float(solution[1]), float(power), residual)
    return best
