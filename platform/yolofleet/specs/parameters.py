"""One parameter of a search space: its values, and the map between them and the unit interval.

Every searcher works in the unit cube; a parameter turns a coordinate into a value and back. Values of a ``choice``
that are mappings set several fields of the job together: that is how the rows of an ablation table are written.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from yolofleet.specs.base import Spec

Kind = Literal["choice", "uniform", "log_uniform", "integer", "log_integer", "follows"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MOST = Field(max_length=1000)
"""Of the values of a choice, and of the parameters of a space."""
MOST_CANDIDATES = 100_000
"""Of a grid, which are all listed."""
Whole = Annotated[int, Field(ge=-(2**53), le=2**53)]
DECIMALS = 12
"""Quantised values are rounded to this many decimals, so that 0.1 + 0.2 is 0.3."""


class Parameter(Spec):
    """The values of one parameter: exactly one of the kinds."""

    choice: Annotated[list[Any], MOST] | Annotated[dict[str, dict[str, Any]], MOST] | None = None
    """Values to choose from; or names, each with the fields (dotted paths) that it sets together."""
    uniform: tuple[float, float] | None = None
    """Any number from the first to the second; with ``step``, only whole steps from the first on."""
    log_uniform: tuple[float, float] | None = None
    """The same, evenly on a logarithmic scale."""
    integer: tuple[Whole, Whole] | None = None
    """Any whole number from the first to the second, both included; with ``step``, whole steps from the first on."""
    log_integer: tuple[Whole, Whole] | None = None
    """The same, evenly on a logarithmic scale."""
    follows: str | None = None
    """Another parameter, or a numeric field of the job, that decides this one: factor x value ^ power."""
    step: Annotated[float, Field(gt=0)] | None = None
    """Distance between the values of ``uniform`` or ``integer``."""
    factor: float = 1.0
    """For ``follows``."""
    power: float = 1.0
    """For ``follows``."""
    when: dict[str, Any] = Field(default_factory=dict)
    """The parameter is there only when the named ones have this value, or one of this list of values."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            shown = " and ".join(given) or "none"
            raise ValueError(f"a parameter needs exactly one of {', '.join(KINDS)}; {shown} is given")
        if self.choice is not None and len(self.choice) == 0:
            raise ValueError("choice is empty; give at least one value")
        if isinstance(self.choice, list) and any(value in self.choice[:i] for i, value in enumerate(self.choice)):
            raise ValueError(f"choice {self.choice} holds a value twice")
        self._check_range()
        if self.step is not None and self.kind not in ("uniform", "integer"):
            raise ValueError(f"step is for uniform and integer, not for {self.kind}")
        if (self.factor, self.power) != (1.0, 1.0) and self.follows is None:
            raise ValueError("factor and power are for follows")
        return self

    def _check_range(self) -> None:
        if self.kind in ("choice", "follows"):
            return
        low, high = self.range
        if not math.isfinite((high - low) / (self.step or 1.0)):
            raise ValueError(f"{self.kind} [{low:g}, {high:g}]: is too wide for its step; take it narrower")
        if low > high:
            raise ValueError(f"{self.kind} [{low:g}, {high:g}]: the first is the lowest, the second the highest")
        if self.kind.startswith("log") and low <= 0:
            raise ValueError(f"{self.kind} [{low:g}, {high:g}]: both must be above 0")
        if self.step is not None and (high - low) / self.step >= 2**53:
            raise ValueError(f"step {self.step:g} makes more values of [{low:g}, {high:g}] than can be counted")
        if self.kind == "integer" and self.step is not None and self.step != int(self.step):
            raise ValueError(f"step {self.step:g} of an integer must be a whole number")

    @property
    def kind(self) -> Kind:
        """The kind of values."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest value of a numeric kind."""
        low, high = getattr(self, self.kind)
        return float(low), float(high)

    @property
    def options(self) -> list[Any]:
        """The values of a choice; of one with names, the names."""
        return list(self.choice or ())

    @property
    def is_free(self) -> bool:
        """Whether a searcher decides it."""
        return self.follows is None

    @property
    def num_values(self) -> int | None:
        """Number of values; None where they are a continuum."""
        if self.choice is not None:
            return len(self.choice)
        low, high = self.range
        if self.kind == "uniform" and self.step is None:
            return 1 if low == high else None
        if self.kind == "log_uniform":
            return 1 if low == high else None
        step = self.step or 1.0
        return int((high - low) / step + 1e-9) + 1

    def at(self, coordinate: float) -> Any:
        """Return the value at a coordinate in [0, 1); equal shares of the interval are equally likely values."""
        if self.choice is not None:
            return self.options[min(int(coordinate * len(self.choice)), len(self.choice) - 1)]
        low, high = self.range
        if self.kind == "log_integer":
            value = math.exp(math.log(low - 0.5) + coordinate * (math.log(high + 0.5) - math.log(low - 0.5)))
            return min(max(round(value), int(low)), int(high))
        if self.kind == "log_uniform":
            return min(max(math.exp(math.log(low) + coordinate * (math.log(high) - math.log(low))), low), high)
        count = self.num_values
        if count is None:
            return low + coordinate * (high - low)
        value = low + min(int(coordinate * count), count - 1) * (self.step or 1.0)
        return round(value) if self.kind == "integer" else round(value, DECIMALS)

    def coordinate(self, value: Any) -> float:
        """Return the coordinate in [0, 1] of a value: the middle of its share where there are finitely many."""
        if self.choice is not None:
            return (self.options.index(value) + 0.5) / len(self.choice)
        low, high = self.range
        if self.kind == "log_integer":
            span = math.log(high + 0.5) - math.log(low - 0.5)
            return (math.log(value) - math.log(low - 0.5)) / span
        if low == high:
            return 0.5
        if self.kind == "log_uniform":
            return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
        count = self.num_values
        if count is None:
            return float((value - low) / (high - low))
        return float(((value - low) / (self.step or 1.0) + 0.5) / count)

    def values(self) -> list[Any]:
        """Return every value, for a grid.

        Raises:
            ValueError: There is a continuum of them.
        """
        count = self.num_values
        if count is None:
            raise ValueError("takes any value of a range, so a grid over it has no end; give it a step, or a choice")
        if self.choice is not None:
            return self.options
        low, _ = self.range
        step = self.step or 1.0
        whole = self.kind in ("integer", "log_integer")
        return [round(low + i * step) if whole else round(low + i * step, DECIMALS) for i in range(count)]
