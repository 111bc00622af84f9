"""The dotted paths of a job's fields: a list of all, and reading and setting fields by them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from typing import Any, get_origin

from pydantic import BaseModel

from yolofleet.core.text import did_you_mean
from yolofleet.specs.base import spec_within
from yolofleet.specs.hyperparameters import Hyperparameters
from yolofleet.specs.job import JobSpec


@cache
def job_paths() -> tuple[str, ...]:
    """Return the dotted path of every field that a job can hold, groups included."""
    return tuple(_paths(JobSpec, ""))


@cache
def _groups() -> frozenset[str]:
    """Return the paths that have paths below them."""
    return frozenset(path.rpartition(".")[0] for path in job_paths())


def _paths(model: type[BaseModel], prefix: str) -> list[str]:
    paths = []
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        paths.append(path)
        inner = Hyperparameters if path == "hyperparameters" else _group_of(field.annotation)
        if inner is not None:
            paths += _paths(inner, f"{path}.")
    return paths


def _group_of(annotation: Any) -> type[BaseModel] | None:
    """Return the spec that a field holds; None for plain values and for lists, whose items have no dotted path."""
    return None if get_origin(annotation) in (list, tuple) else spec_within(annotation)


def unknown_path(path: str) -> str | None:
    """Return why a dotted path names no field of a job, with the nearest one; None where it names one."""
    if path in job_paths():
        return None
    last = path.rpartition(".")[2]  # by itself, for a user who left out the group
    same_name = next((f"; did you mean '{known}'?" for known in job_paths() if known.rpartition(".")[2] == last), "")
    return f"a job has no field '{path}'" + (did_you_mean(path, job_paths()) or same_name)


def with_fields(document: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job's document with fields set by their dotted paths; the document given is unchanged."""
    result = copy.deepcopy(dict(document))
    for path, value in fields.items():
        group = result
        *names, last = path.split(".")
        for name in names:
            if not isinstance(group.get(name), dict):
                group[name] = {}
            group = group[name]
        group[last] = copy.deepcopy(value)
    return result


def field_at(document: Mapping[str, Any], path: str) -> Any:
    """Return the field at a dotted path, None where the document does not hold it."""
    group: Any = document
    for key in path.split("."):
        if not isinstance(group, Mapping) or key not in group:
            return None
        group = group[key]
    return group


def flatten(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested fields by dotted path; the value of a field that is no group stays as it is."""
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and path in _groups():
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = value
    return flat
