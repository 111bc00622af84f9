"""A substitute for training with a known optimum, to measure searches on: cheap, noisy, shaped like detector scaling.

Depth d in [0.33, 2.5], transition width w in [0.5, 2.0], image size r in {320, 384, ..., 1280} and learning rate l in
[3e-4, 3e-1] decide GFLOPs G, AP at the end of training A, AP after a share t of it, and GPU hours.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolofleet.search.feasibility import Screened, violations
from yolofleet.search.pareto import front, hypervolume
from yolofleet.search.space import Parameters, Values
from yolofleet.specs.parameters import Parameter
from yolofleet.specs.search_parts import Limit, Objective

PARAMETERS = Parameters(
    {
        "d": Parameter(uniform=(0.33, 2.5)),
        "w": Parameter(uniform=(0.5, 2.0)),
        "r": Parameter(integer=(320, 1280), step=64.0),
        "l": Parameter(log_uniform=(3e-4, 3e-1)),
    }
)
MOST_GFLOPS = 200.0
CONSTRAINTS = {"gflops": Limit(max=MOST_GFLOPS)}
REFERENCE = (30.0, -MOST_GFLOPS)
OBJECTIVES = [
    Objective(metric="val_AP", goal="max", reference=30.0),
    Objective(metric="gflops", goal="min", reference=MOST_GFLOPS),
]


def gflops(values: Values) -> float:
    """Return the cost of a candidate."""
    return float(100 * values["d"] * values["w"] ** 2 * (values["r"] / 640) ** 2)


def hours(values: Values, share: float) -> float:
    """Return the GPU hours of a share of its training."""
    return 8 * gflops(values) / 100 * share


def final_ap(values: Values) -> float:
    """Return AP at the end of training, without noise."""
    size = gflops(values) / 100
    best_rate = 0.01 * size**-0.15
    return max(_at_best_rate(values["d"], values["w"], values["r"]) - 6 * math.log10(values["l"] / best_rate) ** 2, 0.0)


def _at_best_rate(d: float, w: float, r: float) -> float:
    size = d * w**2 * (r / 640) ** 2
    imbalance = (math.log(w) - 0.55 * math.log(d)) ** 2 + 0.5 * (math.log(r / 640) - 0.5 * math.log(d)) ** 2
    return 62 - 11 * size**-0.32 - 2.2 * imbalance


def diverges(values: Values) -> bool:
    """Return whether the learning rate is so high that the run diverges."""
    return math.log10(values["l"] / (0.01 * (gflops(values) / 100) ** -0.15)) > 0.8


def measured_ap(values: Values, share: float, seed: int, trial: int) -> float:
    """Return AP after a share of the training, with noise seeded by (seed, trial, share)."""
    if diverges(values) and share > 0.1:
        return 0.0
    curve = (1 - math.exp(-4.5 * share**0.6)) / (1 - math.exp(-4.5))
    random = np.random.default_rng((seed, trial, round(share * 1_000_000)))
    return final_ap(values) * curve + float(random.normal(0, 0.25 / math.sqrt(max(share, 0.05))))


def screen(values: Values) -> Screened:
    """Return the figures and violations of a candidate."""
    figures = {"gflops": gflops(values), "gpu_hours": hours(values, 1.0)}
    return Screened(figures, violations(figures, CONSTRAINTS))


def grid(num: int) -> NDArray[np.float64]:
    """Return (n, 2) AP at the best learning rate and negated GFLOPs over ``num`` x ``num`` x 16 candidates."""
    depth = np.linspace(0.33, 2.5, num)[:, None, None]
    width = np.linspace(0.5, 2.0, num)[None, :, None]
    side = np.arange(320, 1281, 64)[None, None, :]
    size = depth * width**2 * (side / 640) ** 2
    imbalance = (np.log(width) - 0.55 * np.log(depth)) ** 2 + 0.5 * (np.log(side / 640) - 0.5 * np.log(depth)) ** 2
    ap = 62 - 11 * size**-0.32 - 2.2 * imbalance
    points: NDArray[np.float64] = np.stack([ap.ravel(), -100 * size.ravel()], axis=1)
    return points[points[:, 1] >= -MOST_GFLOPS]


def true_hypervolume(num: int = 120) -> float:
    """Return the hypervolume of the true front."""
    points = grid(num)
    points = points[np.lexsort((-points[:, 0], -points[:, 1]))]  # cheap first
    best = np.maximum.accumulate(points[:, 0])
    rising = np.concatenate([[True], best[1:] > best[:-1]])
    return hypervolume(points[rising], REFERENCE)


def best_ap(num: int = 120) -> float:
    """Return the best AP under the constraint."""
    return float(grid(num)[:, 0].max())


def found_hypervolume(entries: list[Any]) -> float:
    """Return the hypervolume of the candidates that a search takes for its front, by their noise-free AP."""
    if not entries:
        return 0.0
    seen = np.array([[entry.measured["val_AP"], -entry.figures["gflops"]] for entry in entries])
    chosen = [entry for entry, kept in zip(entries, front(seen), strict=True) if kept]
    return hypervolume(np.array([[final_ap(entry.values), -gflops(entry.values)] for entry in chosen]), REFERENCE)
