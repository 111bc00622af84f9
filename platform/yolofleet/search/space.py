"""The search space: maps points of the unit cube to candidates (values of the free parameters), and these to jobs.

Searchers work in the unit cube, where every parameter has one coordinate from 0 to 1. Points are pure functions of the
seed and their number, so a resumed search draws the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yolofleet.core.errors import UserError
from yolofleet.specs.base import SpecError
from yolofleet.specs.job import JobSpec
from yolofleet.specs.job_paths import field_at, flatten, with_fields
from yolofleet.specs.parameters import Parameter
from yolofleet.specs.search import SearchSpec

MOST_CANDIDATES = 100_000
PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71)


def random_point(seed: int, number: int, num_parameters: int) -> list[float]:
    """Return a uniformly distributed point."""
    point: list[float] = np.random.default_rng((seed, number)).random(num_parameters).tolist()
    return point


def even_point(seed: int, number: int, num_parameters: int) -> list[float]:
    """Return a point of a scrambled Halton sequence, whose first points fill the cube more evenly than random ones.

    Beyond 20 parameters such sequences are no better than random points, so further coordinates are random.
    """
    known = min(num_parameters, len(PRIMES))
    # Each coordinate mirrors the digits of the number, in a prime base of its own and permuted, behind the point.
    point = [_radical_inverse(number + 1, PRIMES[axis], seed, axis) for axis in range(known)]
    # A shift by the seed, around the cube, keeps the first points of all seeds from lying near 0.
    shift = np.random.default_rng((seed, 7)).random(known)
    point = [(coordinate + offset) % 1.0 for coordinate, offset in zip(point, shift.tolist(), strict=True)]
    return point + random_point(seed, number, num_parameters - known)


def _radical_inverse(number: int, base: int, seed: int, axis: int) -> float:
    result, scale = 0.0, 1.0 / base
    permutation = _permutation(base, seed, axis)
    while number:
        number, digit = divmod(number, base)
        result += permutation[digit] * scale
        scale /= base
    return result


@lru_cache(maxsize=256)
def _permutation(base: int, seed: int, axis: int) -> tuple[int, ...]:
    """Return the order of the digits; 0 stays first, because every number has endless zeros before its digits."""
    rest = np.random.default_rng((seed, axis, base)).permutation(np.arange(1, base))
    return (0, *rest.tolist())


def pool(seed: int, number: int, num_points: int, num_parameters: int) -> NDArray[np.float64]:
    """Return (points, parameters) random points for draw ``number`` of an algorithm to choose among."""
    return np.random.default_rng((seed, number, 1)).random((num_points, num_parameters))


Values = dict[str, Any]
"""A candidate: the value of each active free parameter, by name."""


class Parameters:
    """The free parameters of a space, in order; it knows nothing of jobs.

    Args:
        parameters: The free parameters by name; one with conditions comes after the parameters that it depends on.
    """

    def __init__(self, parameters: Mapping[str, Parameter]) -> None:
        self.by_name = dict(parameters)

    def __len__(self) -> int:
        return len(self.by_name)

    def at(self, coordinates: Sequence[float]) -> Values:
        """Return the candidate at a point of the unit cube, one coordinate a parameter."""
        values: Values = {}
        for (name, parameter), coordinate in zip(self.by_name.items(), coordinates, strict=True):
            if is_active(parameter, values):
                values[name] = parameter.at(coordinate)
        return values

    def coordinates(self, values: Values) -> list[float]:
        """Return the point of a candidate; 0.5 for inactive parameters."""
        return [
            parameter.coordinate(values[name]) if name in values else 0.5 for name, parameter in self.by_name.items()
        ]

    def grid(self) -> list[Values]:
        """Return every candidate, the first parameter varying slowest.

        Raises:
            UserError: There are more than `MOST_CANDIDATES`.
        """
        count = math.prod(parameter.num_values or 1 for parameter in self.by_name.values())
        if count > MOST_CANDIDATES:
            raise UserError(
                f"algorithm grid: {count:,} combinations are more than the {MOST_CANDIDATES:,} that it goes through; "
                "give fewer choices or a larger step, or choose another algorithm"
            )
        combinations: list[Values] = [{}]
        for name, parameter in self.by_name.items():
            combinations = [
                extended
                for values in combinations
                for extended in (
                    [values | {name: value} for value in parameter.values()]
                    if is_active(parameter, values)
                    else [values]
                )
            ]
        return combinations

    @property
    def num_candidates(self) -> int | None:
        """Number of different candidates; None where a parameter is continuous."""
        counts = [parameter.num_values for parameter in self.by_name.values()]
        if any(count is None for count in counts):
            return None
        upper = math.prod(count for count in counts if count is not None)
        return upper if not any(p.when for p in self.by_name.values()) or upper > MOST_CANDIDATES else len(self.grid())


def is_active(parameter: Parameter, values: Mapping[str, Any]) -> bool:
    """Return whether the values so far meet a parameter's conditions."""
    return all(
        name in values and values[name] in (wanted if isinstance(wanted, list) else [wanted])
        for name, wanted in parameter.when.items()
    )


def key_of(values: Values) -> str:
    """Return a key that is the same for equal candidates."""
    return repr(sorted(values.items(), key=lambda item: item[0]))


class Space:
    """A space over jobs.

    Raises:
        UserError: The base job is not valid, or no value of a parameter makes a valid job.
    """

    def __init__(self, spec: SearchSpec, *, source: str = "search space") -> None:
        self.spec = spec
        self.source = source
        self.parameters = Parameters(spec.free_parameters())
        self.base = with_fields(spec.job, flatten(spec.set)) | {"name": spec.name}
        self.base_job = JobSpec.parse(self.base, source=f"{source}: base job")
        self._check_values()

    def fields(self, values: Values) -> dict[str, Any]:
        """Return the fields of the job that a candidate sets, by dotted path, with those that follow others."""
        fields: dict[str, Any] = {}
        for name, parameter in self.spec.parameters.items():
            if parameter.follows is not None:
                if is_active(parameter, values):
                    fields[name] = self._follow(name, parameter, fields)
            elif name in values:
                if isinstance(parameter.choice, dict):
                    fields |= flatten(parameter.choice[values[name]])
                else:
                    fields[name] = values[name]
        return fields

    def document(self, values: Values, fields: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the job of a candidate as a plain document, with further fields."""
        return with_fields(self.base, self.fields(values) | dict(fields or {}))

    def job(self, values: Values, fields: Mapping[str, Any] | None = None) -> JobSpec:
        """Return the job of a candidate, with further fields.

        Raises:
            SpecError: The job is not valid.
        """
        shown = ", ".join(f"{name}={value}" for name, value in values.items())
        return JobSpec.parse(self.document(values, fields), source=f"{self.source}: candidate {shown}")

    def _follow(self, name: str, parameter: Parameter, fields: Mapping[str, Any]) -> Any:
        source = str(parameter.follows)
        value = fields[source] if source in fields else self._base_value(source)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SpecError(f"{self.source}: parameters.{name}.follows: {source} is {value!r}, which is not a number")
        try:
            result = float(parameter.factor * float(value) ** parameter.power)  # of a negative value it is no real one
            is_usable = math.isfinite(result)
        except (ArithmeticError, TypeError):
            is_usable = False
        if not is_usable:
            formula = f"{parameter.factor:g} * {value:g} ** {parameter.power:g}"
            raise SpecError(f"{self.source}: parameters.{name}: {formula} is non-finite; change factor or power")
        return round(result) if isinstance(self._base_value(name), int) else round(result, 12)

    def _base_value(self, path: str) -> Any:
        value = field_at(self.base_job.document(), path)
        if value is None and path.startswith("hyperparameters."):
            value = field_at({"hyperparameters": self.base_job.resolved_hyperparameters().document()}, path)
        return value

    def _check_values(self) -> None:
        """Refuse a parameter of which no value, in the middle of the space, makes a valid job."""
        middle = self.parameters.at([0.5] * len(self.parameters))
        for name, parameter in self.parameters.by_name.items():
            ends = parameter.options if parameter.choice is not None else [parameter.at(0.0), parameter.at(1.0 - 1e-9)]
            needed = {other: want[0] if isinstance(want, list) else want for other, want in parameter.when.items()}
            problems = []
            for value in ends:
                try:
                    self.job(self._only_active(middle | needed | {name: value}))
                except UserError as error:
                    problems.append(f"{self.source}: parameters.{name}: {value!r}: {_reason(error)}")
            if problems and len(problems) == len(ends):
                raise SpecError(problems[0])

    def _only_active(self, values: Values) -> Values:
        kept: Values = {}
        for name, parameter in self.parameters.by_name.items():
            if name in values and is_active(parameter, kept):
                kept[name] = values[name]
        return kept


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0].partition(": candidate ")[2].partition(": ")[2] or str(error).splitlines()[0]
