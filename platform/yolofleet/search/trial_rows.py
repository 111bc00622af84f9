"""The rows of a search's record, checked: each kind has its keys, and no other row takes effect."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from yolofleet.core.text import short
from yolofleet.search.history import Observation
from yolofleet.search.space import Parameters, Values
from yolofleet.tracking.json_lines import CorruptLogError

KINDS = ("refused", "suggested", "measured", "exchanged", "ended")
NON_FINITE = ("NaN", "Infinity", "-Infinity")
"""How a log writes them."""
MOST_REPEATS = 1000
MOST_NUMBER = 10**9
MOST_FIGURE = 1e30
"""Larger ones cannot be squared many times."""

Count = Annotated[int, Field(strict=True, ge=0, le=MOST_NUMBER)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-MOST_FIGURE, le=MOST_FIGURE)]
Seconds = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0, le=MOST_FIGURE)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]


def _finite_only(figures: Any) -> Any:
    """Leave out figures that are NaN, infinite, or as large as those of a diverging run: as good as not measured."""
    if not isinstance(figures, Mapping):
        return figures
    return {
        name: value
        for name, value in figures.items()
        if not (isinstance(value, float) and not abs(value) <= MOST_FIGURE) and value not in NON_FINITE
    }


Figures = Annotated[dict[str, Number], BeforeValidator(_finite_only)]


class _Row(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Candidate(_Row):
    values: Values
    figures: Figures
    violations: dict[str, float] | None = None
    notes: Values | None = None

    def observation(self) -> Observation:
        """Return the candidate as it was suggested."""
        return Observation(self.values, self.figures, violations=self.violations or {}, notes=self.notes or {})


class Refused(_Candidate):
    """A candidate that breaks a limit."""

    kind: Literal["refused"]


class Suggested(_Candidate):
    """A new trial."""

    kind: Literal["suggested"]
    trial: Count


class Measured(_Row):
    """Metrics of one run of a trial."""

    kind: Literal["measured"]
    trial: Count
    repeat: Annotated[int, Field(strict=True, ge=0, lt=MOST_REPEATS)]
    share: Share
    step: Annotated[int, Field(strict=True, ge=0, lt=2**53)]
    measured: Figures
    gpu_seconds: Seconds


class Exchanged(_Row):
    """A member of a population passed an exchange; one that changed has a source."""

    kind: Literal["exchanged"]
    trial: Count
    exchange: Count
    source: Count | None = Field(default=None, alias="donor")
    values: Values = {}


class Ended(_Row):
    """The end of a trial, or of one more of its runs."""

    kind: Literal["ended"]
    trial: Count
    reason: str
    gpu_seconds: Seconds = 0.0


SearchRow = Refused | Suggested | Measured | Exchanged | Ended
_ROW: TypeAdapter[SearchRow] = TypeAdapter(Annotated[SearchRow, Field(discriminator="kind")])


def parse_row(row: Mapping[str, Any], source: str, parameters: Parameters | None) -> SearchRow | None:
    """Return a row; None for one of another kind, which a newer yolofleet may write.

    Args:
        row: As it was read.
        source: Where it comes from, for messages.
        parameters: The space's, whose values a candidate has; None: values are not checked.

    Raises:
        CorruptLogError: A key is missing or has a value that it cannot have.
    """
    if row.get("kind") not in KINDS:
        return None
    try:
        parsed = _ROW.validate_python(dict(row))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"][1:])
        refuse_row(row, source, f"{key}: {first['msg']}, not {short(first['input'])}")
    if parameters is not None and not isinstance(parsed, Measured | Ended):
        for name, value in parsed.values.items():
            if not _is_value(parameters, name, value):
                refuse_row(
                    row, source, f"values.{short(name)}: {short(value)} is no value of a parameter of the search"
                )
    return parsed


def refuse_row(row: Mapping[str, Any], source: str, reason: str) -> NoReturn:
    """Raise `CorruptLogError` for a row."""
    raise CorruptLogError(f"{source}: {reason}; repair or remove the row {short(dict(row))}")


def _is_value(parameters: Parameters, name: str, value: Any) -> bool:
    """Return whether a parameter can have a value: whether it lies anywhere along the parameter's axis."""
    try:
        return math.isfinite(parameters.by_name[name].coordinate(value))
    except (ArithmeticError, LookupError, TypeError, ValueError):
        return False
