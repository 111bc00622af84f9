"""What the fields of a log's rows must be, so that whoever computes with a row need not ask.

A run directory may have been written by anybody. A row with another type in a known field is damaged: it is named, and
never read as something else. Fields that are not listed here are free, but names and numbers stay within bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from yolofleet.core.text import short

LONGEST_NAME = 250
"""Of a field; MLflow takes as many characters."""
MOST = 2**63
COUNTS = ("step", "num_steps", "workers", "steps_redone", "trial", "micro_batch")
"""Whole numbers of at least 0."""
AMOUNTS = ("non_finite_steps", "skipped_samples")
"""Finite numbers of at least 0."""
NUMBERS = (
    *("gpus_per_worker", "price_per_hour", "seconds", "seconds_lost", "data_wait_share"),
    *("prepared_seconds", "first_step_seconds", "settled_seconds"),
)
"""Any numbers, also NaN."""
TEXTS = ("kind", "time", "user", "project", "skipped", "host")
LISTS = ("hosts",)
NULL_IS_NONE = (*COUNTS, *AMOUNTS, *NUMBERS)
"""Where null says the same as no field."""


def fault_of(row: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a row, for a message; None where nothing is."""
    for name, value in row.items():
        if len(name) > LONGEST_NAME or not name.isprintable():
            return f"a field is called {short(name)}"
        if not _is_sound(name, value):
            return f"{name} is {short(value)}"
    return None


def _is_sound(name: str, value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, int) and not -MOST < value < MOST:
        return False
    if name in COUNTS:
        return is_number and isinstance(value, int) and value >= 0
    if name in AMOUNTS:
        return is_number and math.isfinite(value) and value >= 0
    if name in NUMBERS:
        return is_number
    if name in TEXTS:
        return value is None or isinstance(value, str)
    return name not in LISTS or isinstance(value, list)


_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def plain_fields(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a stored row as they were before `without_non_finite`; a null leaves a number out."""
    return {
        key: _NON_FINITE.get(value, value) if isinstance(value, str) and key not in TEXTS else value
        for key, value in found.items()
        if value is not None or key not in NULL_IS_NONE
    }


def without_non_finite(value: Any) -> Any:
    """Return a value with texts in the place of NaN and infinity, which JSON lacks."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: without_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_non_finite(item) for item in value]
    return value
