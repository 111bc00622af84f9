"""The dotted paths of a job: which there are, and setting fields by them."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel

from yolofleet.specs.hyperparameters import Hyperparameters
from yolofleet.specs.job import JobSpec


@cache
def job_paths() -> tuple[str, ...]:
    """Return the dotted path of every field that a job can hold, groups included."""
    return tuple(_paths(JobSpec, ""))


def _paths(model: type[BaseModel], prefix: str) -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        found.append(path)
        inner = Hyperparameters if path == "hyperparameters" else _model_within(field.annotation)
        if inner is not None:
            found += _paths(inner, f"{path}.")
    return found


def _model_within(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _model_within(inner)) is not None), None)


def unknown_path(path: str) -> str | None:
    """Return why a dotted path is no field of a job, with the nearest one; None where it is one."""
    if path in job_paths():
        return None
    near = difflib.get_close_matches(path, job_paths(), n=1, cutoff=0.5)
    if not near:  # the last part alone, for someone who left out the group
        last = path.rpartition(".")[2]
        near = [known for known in job_paths() if known.rpartition(".")[2] == last][:1]
    return f"a job has no field '{path}'" + (f"; did you mean '{near[0]}'?" if near else "")


def with_fields(document: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job's document with fields set by their dotted paths; the document given is unchanged."""
    result = copy.deepcopy(dict(document))
    for path, value in fields.items():
        place = result
        *groups, last = path.split(".")
        for group in groups:
            inner = place.get(group)
            if not isinstance(inner, dict):
                inner = place[group] = {}
            place = inner
        place[last] = copy.deepcopy(value)
    return result


def field_at(document: Mapping[str, Any], path: str) -> Any:
    """Return the field at a dotted path, None where the document does not hold it."""
    place: Any = document
    for key in path.split("."):
        if not isinstance(place, Mapping) or key not in place:
            return None
        place = place[key]
    return place


def flattened(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested fields by dotted path; a path that is a field of a job by itself and no group is not opened."""
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        path = f"{prefix}{key}"
        is_group = any(known.startswith(f"{path}.") for known in job_paths())
        if isinstance(value, Mapping) and is_group:
            flat |= flattened(value, f"{path}.")
        else:
            flat[path] = value
    return flat
