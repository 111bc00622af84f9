"""AP against training compute: AP = limit - gain x compute ^ -power, and what the next doubling would buy.

Fitted to the best AP at each compute (the front), by least squares for each of a range of powers. Its uncertainty comes
from fits to redrawn sets of trials. Where the data cannot carry it, that is what is said instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolofleet.search.pareto import front

FEWEST_POINTS = 5
LEAST_RANGE = 3.0
REDRAWN = 200
POWERS = np.geomspace(0.03, 2.0, 60)
INTERVAL = (0.1, 0.9)


@dataclass(frozen=True)
class ScalingLaw:
    """A fitted law, or why there is none.

    Attributes:
        supported: Whether the trials carry a law.
        reason: Why not, where they do not.
        limit: AP that endless compute would reach.
        gain: Factor of the term that compute removes.
        power: Its exponent.
        largest_compute: Largest compute among the trials, in petaFLOPs.
        doubling: AP that twice that compute is expected to add.
        doubling_interval: From the 10th to the 90th percentile of the redrawn fits.
        num_points: Trials on the front that was fitted.
    """

    supported: bool
    reason: str | None = None
    limit: float | None = None
    gain: float | None = None
    power: float | None = None
    largest_compute: float | None = None
    doubling: float | None = None
    doubling_interval: tuple[float, float] | None = None
    num_points: int = 0

    def at(self, compute: float) -> float | None:
        """Return the AP that the law expects, None without a law."""
        if self.limit is None or self.gain is None or self.power is None:
            return None
        return float(self.limit - self.gain * compute**-self.power)

    def sentence(self) -> str:
        """Return what it says, for people."""
        if not self.supported or self.doubling is None or self.doubling_interval is None:
            return f"no scaling law: {self.reason}"
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
        return ScalingLaw(False, f"{count} trials on the front of AP and compute, {FEWEST_POINTS} are needed")
    span = envelope[-1, 0] / envelope[0, 0]
    if span < LEAST_RANGE:
        return ScalingLaw(
            False,
            f"the front's compute spans a factor of {span:.1f}, {LEAST_RANGE:g} is needed",
            num_points=count,
        )
    limit, gain, power, residual = _fitted(envelope)
    explained = 1 - residual / max(float(((envelope[:, 1] - envelope[:, 1].mean()) ** 2).sum()), 1e-12)
    largest = float(envelope[-1, 0])
    random = np.random.default_rng(0)
    doublings = []
    for _ in range(REDRAWN):
        redrawn = _envelope(points[random.integers(len(points), size=len(points))])
        if len(redrawn) >= 3:
            _, g, p, _ = _fitted(redrawn)
            doublings.append(g * largest**-p * (1 - 2**-p))
    doubling = gain * largest**-power * (1 - 2**-power)
    low, high = (float(value) for value in np.quantile(doublings, INTERVAL)) if doublings else (0.0, 0.0)
    if power in (POWERS[0], POWERS[-1]):
        return ScalingLaw(False, "the front is no power law of compute: its exponent stays open", num_points=count)
    if gain <= 0 or low <= 0 or explained < 0.7:
        return ScalingLaw(
            False,
            f"compute explains too little of AP along the front ({max(explained, 0):.0%}), or the sign of its effect "
            "is open; more trials of different compute are needed",
            num_points=count,
        )
    return ScalingLaw(True, None, limit, gain, power, largest, doubling, (low, high), count)


def _envelope(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the points that no cheaper one reaches, by growing compute."""
    if not len(points):
        return points
    kept = points[front(np.stack([points[:, 1], -points[:, 0]], axis=1))]
    ordered: NDArray[np.float64] = kept[np.argsort(kept[:, 0])]
    return ordered


def _fitted(points: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Return limit, gain, power and squared residual of the best fit."""
    best = (0.0, 0.0, 1.0, np.inf)
    for power in POWERS:
        basis = np.stack([np.ones(len(points)), -(points[:, 0] ** -power)], axis=1)
        solution, *_ = np.linalg.lstsq(basis, points[:, 1], rcond=None)
        residual = float(((basis @ solution - points[:, 1]) ** 2).sum())
        if residual < best[3]:
            best = (float(solution[0]), float(solution[1]), float(power), residual)
    return best
