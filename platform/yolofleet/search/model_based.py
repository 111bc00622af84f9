"""Suggestions by a Gaussian process: models what must be measured, computes what can be.

Each suggestion draws a pool of candidates, some anywhere and some near the best so far, screens them, and takes the one
expected to add most. What breaks a limit is never suggested, and a known objective (GFLOPs, parameters) is exact.
Trials that stopped early count too: the share of training done is one more input, and it is asked about the end.

With one measured objective and one that is known beforehand (AP and GFLOPs), the expected gain of hypervolume is
exact: over each stretch of the known objective that a candidate would cover, it is the expected improvement over the
best AP there. With a single objective it is the expected improvement. Any other number of objectives is turned into
one by a weighted worst case whose weights are drawn anew for each suggestion (ParEGO, Knowles 2006).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from yolofleet.search import history as record
from yolofleet.search.feasibility import Screened
from yolofleet.search.gaussian_process import GaussianProcess, fit
from yolofleet.search.history import History, Observation
from yolofleet.search.pareto import front
from yolofleet.search.space import Parameters, Values, key_of, pool
from yolofleet.specs.search_parts import Objective

Array = NDArray[np.float64]
PARETO_SLACK = 0.05
"""Share of the plain sum in the weighted worst case, which keeps it from preferring dominated points."""
POOL = 600
"""Candidates drawn for a suggestion, half of them anywhere."""
REFINED = 4
"""Of those, how many are looked around in a second round."""
NEIGHBOURS = 40
SPREADS = (0.03, 0.1, 0.3)
"""Distances of neighbours, in shares of a parameter's range."""
MOST_MODELLED = 400
"""Newest observations that the model is fitted to."""


class ModelBased:
    """Suggests what is expected to add most.

    Args:
        parameters: The free parameters.
        objectives: What is wanted.
        known: The metrics among them that screening knows beforehand.
        bounds: Limits by figure.
        screen: Profiles a candidate.
        seed: Decides the pools.
    """

    def __init__(
        self,
        parameters: Parameters,
        objectives: Sequence[Objective],
        known: set[str],
        bounds: dict[str, float],
        screen: Callable[[Values], Screened],
        seed: int,
    ) -> None:
        self._parameters = parameters
        self._objectives = list(objectives)
        self._known = known
        self._bounds = bounds
        self._screen = screen
        self._seed = seed
        self._categorical = [
            parameter.choice is not None and not _is_ordered(parameter.options)
            for parameter in parameters.by_name.values()
        ]

    def suggest(self, history: History, number: int) -> Values | None:
        """Return the next candidate, None where the pool held nothing new that is feasible."""
        seen = record.observed(history, self._objectives)
        points = pool(self._seed, number, POOL, len(self._parameters))
        points[POOL // 2 :] = self._neighbours(self._leaders(seen), POOL - POOL // 2, number)
        taken = record.keys(history)
        candidates = self._screened(points, taken)
        if not candidates:
            return None
        score = self._scorer(history, seen, number)
        scores = score(candidates)
        best = np.argsort(-scores)[:REFINED]
        around = [self._parameters.coordinates(candidates[i][0]) for i in best]
        refined = self._screened(self._neighbours(around, REFINED * NEIGHBOURS, number + 1_000_003), taken)
        everything = [candidates[i] for i in best] + refined
        chosen: Values = everything[int(np.argmax(score(everything)))][0]
        return chosen

    def _screened(self, points: Array, taken: set[str]) -> list[tuple[Values, Screened]]:
        """Return the feasible new candidates among points, each once."""
        found: dict[str, tuple[Values, Screened]] = {}
        for point in points:
            values = self._parameters.at(point.tolist())
            key = key_of(values)
            if key not in taken and key not in found and (screened := self._screen(values)).feasible:
                found[key] = (values, screened)
        return list(found.values())

    def _leaders(self, seen: list[Observation]) -> list[list[float]]:
        rows = np.array([entry.objectives(self._objectives) for entry in seen])
        return [
            self._parameters.coordinates(entry.values) for entry, kept in zip(seen, front(rows), strict=True) if kept
        ]

    def _neighbours(self, points: list[list[float]], count: int, number: int) -> Array:
        """Return points near the given ones; a coordinate of a category is drawn anew now and then."""
        random = np.random.default_rng((self._seed, number, 2))
        chosen = np.array(points)[random.integers(len(points), size=count)]
        spread = np.array(SPREADS)[random.integers(len(SPREADS), size=(count, 1))]
        moved = chosen + spread * random.standard_normal(chosen.shape)
        moved = np.abs(moved)
        moved = np.clip(np.where(moved > 1, 2 - moved, moved), 0.0, 1 - 1e-9)
        redrawn = random.random(chosen.shape) < 0.2
        categories = np.array(self._categorical)[None, :]
        result: Array = np.where(categories, np.where(redrawn, random.random(chosen.shape), chosen), moved)
        return result

    def _scorer(
        self, history: History, seen: list[Observation], number: int
    ) -> Callable[[list[tuple[Values, Screened]]], Array]:
        """Return what tells the worth of candidates, given everything so far."""
        seen = seen[-MOST_MODELLED:]
        rows = np.array([entry.objectives(self._objectives) for entry in seen])
        pending = record.running(history, self._objectives)
        measured = [i for i, objective in enumerate(self._objectives) if objective.metric not in self._known]
        if len(self._objectives) == 2 and len(measured) == 1:
            column = measured[0]
            model = self._model(seen, rows[:, column], pending)
            return self._hypervolume_scorer(model, seen, rows, column)
        if len(self._objectives) == 1:
            model = self._model(seen, rows[:, 0], pending)
            ends = np.array([entry.share >= 1 for entry in seen])
            level = _posterior_best(model, self._features(seen)) if not ends.all() else float(rows[:, 0].max())
            return lambda candidates: self._improvement(model, candidates, level)
        weights = np.random.default_rng((self._seed, number, 3)).dirichlet(np.ones(len(self._objectives)))
        combined = weighted_worst_case(rows, weights)
        model = self._model(seen, combined, pending)
        return lambda candidates: self._improvement(model, candidates, float(combined.max()))

    def _hypervolume_scorer(
        self, model: GaussianProcess, seen: list[Observation], rows: Array, column: int
    ) -> Callable[[list[tuple[Values, Screened]]], Array]:
        other = 1 - column
        reference = record.reference_point(seen, self._objectives, self._bounds)
        metric, sign = self._objectives[other].metric, self._objectives[other].sign
        mean, _ = model.predict(self._features(seen))
        # The model's mean stands for what was measured: a lucky measurement must not stand in the way for ever.
        points = np.stack([mean, rows[:, other]], axis=1)
        points = points[front(points)]

        def score(candidates: list[tuple[Values, Screened]]) -> Array:
            mean, deviation = model.predict(self._features([Observation(values) for values, _ in candidates]))
            known = np.array([sign * screened.figures[metric] for _, screened in candidates])
            return expected_hypervolume_gain(mean, deviation, known, points, (reference[column], reference[other]))

        return score

    def _improvement(self, model: GaussianProcess, candidates: list[tuple[Values, Screened]], level: float) -> Array:
        mean, deviation = model.predict(self._features([Observation(values) for values, _ in candidates]))
        return expected_improvement(mean, deviation, level)

    def _model(self, seen: list[Observation], targets: Array, pending: list[Observation]) -> GaussianProcess:
        """Fit the model; what is running counts with what the model expects of it, so that it is not tried again."""
        inputs = self._features(seen)
        model = fit(inputs, targets)
        if not pending:
            return model
        waiting = self._features(pending)
        expected, _ = model.predict(waiting)
        return model.extended(waiting, expected)

    def _features(self, entries: Sequence[Observation]) -> Array:
        """Return (n, features): coordinates, categories one column each, and the share of training."""
        rows = []
        for entry in entries:
            row: list[float] = []
            for (name, parameter), categorical, coordinate in zip(
                self._parameters.by_name.items(),
                self._categorical,
                self._parameters.coordinates(entry.values),
                strict=True,
            ):
                if categorical:
                    row += [float(entry.values.get(name) == option) for option in parameter.options]
                else:
                    row.append(coordinate)
            rows.append([*row, -np.log2(max(entry.share, 1e-3)) / 4])
        return np.array(rows)


def _posterior_best(model: GaussianProcess, features: Array) -> float:
    """Return the best that the model expects at the end of training of the candidates so far."""
    ends = features.copy()
    ends[:, -1] = 0.0
    return float(model.predict(ends)[0].max())


def _is_ordered(options: list[object]) -> bool:
    """Return whether a choice is of growing numbers, which lie on a line."""
    numbers = [option for option in options if isinstance(option, int | float) and not isinstance(option, bool)]
    return len(numbers) == len(options) and numbers == sorted(numbers)


def expected_improvement(mean: Array, deviation: Array, level: Array | float) -> Array:
    """Return the expected excess over a level, for Gaussians of this mean and deviation (more is better)."""
    z = (mean - level) / deviation
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    below: Array = torch.special.ndtr(torch.from_numpy(z)).numpy()
    gain: Array = deviation * (z * below + density)
    return np.maximum(gain, 0.0)


def expected_hypervolume_gain(
    mean: Array, deviation: Array, known: Array, front: Array, reference: tuple[float, float]
) -> Array:
    """Return the expected gain of hypervolume of each candidate.

    Args:
        mean: (m,) mean of the measured objective; more is better.
        deviation: (m,) its standard deviation.
        known: (m,) the known objective; more is better (negate what shall be small).
        front: (n, 2) measured and known objective of the points so far; more is better.
        reference: The values that are worth nothing.
    """
    # Only what beats the reference point covers any area.
    inside = front[(front[:, 0] > reference[0]) & (front[:, 1] > reference[1])]
    # Going up along the known objective, the best measured value among the points that reach that far falls in steps.
    edges = np.concatenate([[reference[1]], np.sort(inside[:, 1])])
    levels = np.array([_best_from(inside, edge, reference[0]) for edge in edges])
    uppers = np.append(edges[1:], np.inf)
    # A candidate adds, over the part of each stretch that it reaches, what it is expected to lie above the level there.
    covered = np.clip(np.minimum(known[:, None], uppers) - edges, 0.0, None)  # (m, stretches)
    gains = expected_improvement(mean[:, None], deviation[:, None], levels[None, :])
    total: Array = (covered * gains).sum(axis=1)
    return total


def _best_from(points: Array, edge: float, otherwise: float) -> float:
    """Return the best measured value among the points that lie beyond an edge of the known objective."""
    reaching = points[points[:, 1] > edge, 0]
    return float(reaching.max()) if len(reaching) else otherwise


def weighted_worst_case(points: Array, weights: Array) -> Array:
    """Return one number for each point: the worst of its weighted objectives, scaled to 0..1 (more is better)."""
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points - low) / np.where(high > low, high - low, 1.0)
    short = weights * (1 - scaled)
    result: Array = -(short.max(axis=1) + PARETO_SLACK * short.sum(axis=1))
    return result
