"""Gaussian process regression for a few hundred noisy observations of a few parameters.

Matérn 5/2 kernel with one length a parameter, noise learned (Rasmussen and Williams, 2006, chapters 2, 4 and 5). The
logarithms of lengths, signal and noise maximise the marginal likelihood plus weak priors, by a fixed number of gradient
steps from a fixed start: the same observations always give the same model. Cost: a Cholesky decomposition and an
inverse of the observations' matrix a step.

Why it is here beside Optuna's `GPSampler`: the search on top of it needs two thirds of the trials for the same
hypervolume (`benchmarks/search_quality.py`), because it models only what must be measured and takes GFLOPs as known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ROOT5 = 5.0**0.5
STEPS = 60
STEP_SIZE = 0.15
JITTER = 1e-6
OUTLIER_SPREADS = 3.0


class Prior(NamedTuple):
    """What is believed beforehand of the logarithm of a length, the signal or the noise."""

    mean: float
    deviation: float
    low: float
    high: float


LENGTH = Prior(np.log(0.6), 1.0, -3.5, 3.0)
"""In units of the parameter's range."""
SIGNAL = Prior(0.0, 1.0, -3.0, 3.0)
"""In units of the observations' variance, as the noise."""
NOISE = Prior(np.log(0.05), 1.5, -6.0, 0.5)


@dataclass(frozen=True)
class GaussianProcess:
    """A fitted model."""

    inputs: Array
    """(n, parameters) observed points."""
    lengths: Array
    """(parameters,) length of each parameter."""
    signal: float
    """Variance of the function, in units of the observations' variance."""
    noise: float
    """Variance of one observation, in the same unit."""
    factor: Array
    """Lower Cholesky factor of the observations' covariance."""
    weights: Array
    """(n,) covariance applied inversely to the observations."""
    mean: float
    """Mean of the observations."""
    deviation: float
    """Their standard deviation."""

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Return mean and standard deviation of the function (noise not included) at (m, parameters) points."""
        # Mean: k(x, X) K^-1 y. Variance: k(x, x) - k(x, X) K^-1 k(X, x), the last term as the squared length of L^-1 k.
        across = self.signal * _kernel(_distances(points, self.inputs, self.lengths))
        mean = across @ self.weights
        solved = np.linalg.solve(self.factor, across.T)
        variance = np.maximum(self.signal - (solved**2).sum(axis=0), 1e-10)
        return self.mean + self.deviation * mean, self.deviation * np.sqrt(variance)

    def extended(self, points: Array, values: Array) -> GaussianProcess:
        """Return the model with more observations and the same lengths, signal and noise."""
        inputs = np.concatenate([self.inputs, points])
        # The targets are not kept: K = L L^T times the weights gives them back.
        known = self.factor @ (self.factor.T @ self.weights)
        targets = np.concatenate([known, (values - self.mean) / self.deviation])
        covariance = self.signal * _kernel(_distances(inputs, inputs, self.lengths))
        factor, weights = _solved(covariance + (self.noise + JITTER) * np.eye(len(targets)), targets)
        return replace(self, inputs=inputs, factor=factor, weights=weights)


def fit(inputs: Array, values: Array) -> GaussianProcess:
    """Fit a model to observations.

    Values far below the rest (a run that diverged) are raised to three spreads under the median: that a point is bad
    must be known, how bad it is would only bend the model elsewhere.

    Args:
        inputs: (n, parameters) points of the unit cube.
        values: (n,) what was observed there; more is better.
    """
    values = without_outliers(values)
    mean, deviation = float(values.mean()), float(values.std()) or 1.0
    targets = (values - mean) / deviation
    squares = (inputs.T[:, :, None] - inputs.T[:, None, :]) ** 2  # (parameters, n, n)
    best = _most_likely(squares, targets)
    lengths, signal, noise = np.exp(best[:-2]), float(np.exp(best[-2])), float(np.exp(best[-1]))
    covariance = signal * _kernel(_scaled(squares, lengths**-2))
    factor, weights = _solved(covariance + (noise + JITTER) * np.eye(len(targets)), targets)
    return GaussianProcess(inputs, lengths, signal, noise, factor, weights, mean, deviation)


def _most_likely(squares: Array, targets: Array) -> Array:
    """Return the logarithms (parameters + 2,) of lengths, signal and noise under which the targets are most likely.

    Adam (Kingma and Ba, 2015), upwards: a step is about as long for a flat logarithm as for a steep one. Its length
    never shrinks, so it does not settle: the best point on the way is the answer.
    """
    means, _, low, high = _priors(len(squares))
    best: Array = means
    state, best_score = best, -np.inf
    momentum, scale = np.zeros_like(state), np.zeros_like(state)
    for step in range(1, STEPS + 1):
        score, gradient = _evidence(state, squares, targets)
        if score > best_score:
            best, best_score = state, score
        momentum = 0.9 * momentum + 0.1 * gradient
        scale = 0.99 * scale + 0.01 * gradient**2
        # Both averages began at zero; divided by the weight that they have gathered so far, they are not too small.
        ascent = (momentum / (1 - 0.9**step)) / (np.sqrt(scale / (1 - 0.99**step)) + 1e-8)
        state = np.clip(state + STEP_SIZE * ascent, low, high)
    return best


def _priors(num_parameters: int) -> Array:
    """Return mean, deviation, low and high (4, parameters + 2) of each logarithm of a state."""
    rows: Array = np.array([LENGTH] * num_parameters + [SIGNAL, NOISE]).T
    return rows


def without_outliers(values: Array) -> Array:
    """Return the values, those far below the rest raised to three spreads under the median."""
    if len(values) < 4:
        return values
    median, upper = np.quantile(values, [0.5, 0.9])
    spread = max(float(upper - median), 1e-9)
    raised: Array = np.maximum(values, median - OUTLIER_SPREADS * spread)
    return raised


def _solved(covariance: Array, targets: Array) -> tuple[Array, Array]:
    """Return the lower Cholesky factor of a covariance, and its inverse applied to the targets."""
    factor = np.linalg.cholesky(covariance)
    weights = np.linalg.solve(factor.T, np.linalg.solve(factor, targets))
    return factor.astype(np.float64), weights.astype(np.float64)


def _kernel(distances: Array) -> Array:
    kernel: Array = (1 + ROOT5 * distances + 5.0 / 3.0 * distances**2) * np.exp(-ROOT5 * distances)
    return kernel


def _distances(left: Array, right: Array, lengths: Array) -> Array:
    a, b = left / lengths, right / lengths
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * a @ b.T
    distances: Array = np.sqrt(np.maximum(squares, 0.0))
    return distances


def _scaled(squares: Array, inverse_squares: Array) -> Array:
    """Return the (n, n) distances in units of the lengths, from the squares (parameters, n, n) of each parameter."""
    distances: Array = np.sqrt(inverse_squares @ squares.reshape(len(squares), -1)).reshape(squares.shape[1:])
    return distances


def _evidence(state: Array, squares: Array, targets: Array) -> tuple[float, Array]:
    """Return the logarithm of marginal likelihood and priors, and its gradient, at the logarithms in ``state``.

    Args:
        state: (parameters + 2,) logarithms of the lengths, of signal and of noise.
        squares: (parameters, n, n) squared differences of the observed points.
        targets: (n,) what was observed.
    """
    inverse_squares, signal, noise = np.exp(-2 * state[:-2]), np.exp(state[-2]), np.exp(state[-1])
    distances = _scaled(squares, inverse_squares)
    decay = np.exp(-ROOT5 * distances)
    kernel = (1 + ROOT5 * distances + 5.0 / 3.0 * distances**2) * decay
    factor = np.linalg.cholesky(signal * kernel + (noise + JITTER) * np.eye(len(targets)))
    inverse_factor = np.linalg.inv(factor)
    inverse = inverse_factor.T @ inverse_factor
    weights = inverse @ targets
    # log p(y) = -1/2 y^T K^-1 y - 1/2 log |K| + constant; log |K| is twice the sum of the logarithms of L's diagonal.
    score = -0.5 * float(targets @ weights) - float(np.log(np.diag(factor)).sum())
    # By the covariance it changes as 1/2 (w w^T - K^-1), with w = K^-1 y; by a logarithm, as the sum over all entries
    # of that times how the entry changes.
    pull = 0.5 * (np.outer(weights, weights) - inverse)
    # d kernel / d log length_k = 5/3 (1 + sqrt5 r) exp(-sqrt5 r) * square_k / length_k^2
    common = pull * signal * (5.0 / 3.0) * (1 + ROOT5 * distances) * decay
    gradient = np.empty_like(state)
    gradient[:-2] = squares.reshape(len(squares), -1) @ common.ravel() * inverse_squares
    gradient[-2] = (pull * signal * kernel).sum()
    gradient[-1] = noise * np.trace(pull)
    # The priors are Gaussians of the logarithms.
    means, deviations, _, _ = _priors(len(squares))
    score -= 0.5 * float((((state - means) / deviations) ** 2).sum())
    gradient -= (state - means) / deviations**2
    return score, gradient
