"""Which parameters matter: shares of the variance of what was measured, read off a Gaussian process fitted to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from yolofleet.search.gaussian_process import fit
from yolofleet.search.space import Parameters, Values

LEVELS = 16
OTHERS = 128
TRIALS_A_PARAMETER = 4
FEWEST_TRIALS = 8


@dataclass(frozen=True)
class Importance:
    """How much one parameter matters."""

    parameter: str
    share: float
    """Variance of its main effect, as a share of the sum over all parameters."""
    low: float
    """What is expected at its worst value, the others averaged out."""
    high: float
    """The same at its best value."""


def importances(
    parameters: Parameters, candidates: Sequence[Values], measured: Sequence[float], shares: Sequence[float]
) -> list[Importance] | None:
    """Return how much each parameter matters, most first; None where there are too few trials to tell.

    Args:
        parameters: The free parameters.
        candidates: What was tried.
        measured: What came of it; more is better.
        shares: After which share of the training.
    """
    count = len(parameters)
    if len(candidates) < max(FEWEST_TRIALS, TRIALS_A_PARAMETER * count) or np.std(measured) == 0:
        return None
    encoded = [_encoded(parameters, parameters.coordinates(values)) for values in candidates]
    inputs = np.array([[*row, 1.0 - share] for row, share in zip(encoded, shares, strict=True)])
    model = fit(inputs, np.array(measured, dtype=np.float64))
    random = np.random.default_rng(0)
    others = random.random((OTHERS, count))
    effects: dict[str, NDArray[np.float64]] = {}
    for axis, (name, parameter) in enumerate(parameters.by_name.items()):
        levels = min(LEVELS, parameter.num_values or LEVELS)
        means = []
        for level in range(levels):
            points = others.copy()
            points[:, axis] = (level + 0.5) / levels
            rows = np.array([[*_encoded(parameters, point.tolist()), 0.0] for point in points])
            means.append(float(model.predict(rows)[0].mean()))
        effects[name] = np.array(means)
    total = sum(float(means.var()) for means in effects.values())
    found = [
        Importance(name, float(means.var()) / total if total else 0.0, float(means.min()), float(means.max()))
        for name, means in effects.items()
    ]
    return sorted(found, key=lambda entry: -entry.share)


def _encoded(parameters: Parameters, coordinates: Sequence[float]) -> list[float]:
    """Return coordinates with each choice as one column an option: the distance of options means nothing."""
    row: list[float] = []
    for parameter, coordinate in zip(parameters.by_name.values(), coordinates, strict=True):
        if parameter.choice is None:
            row.append(coordinate)
        else:
            option = min(int(coordinate * len(parameter.choice)), len(parameter.choice) - 1)
            row += [float(option == index) for index in range(len(parameter.choice))]
    return row
