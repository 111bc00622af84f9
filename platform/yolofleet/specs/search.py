"""The search spec: a base job, its free parameters, the limits, the objectives, and how to search."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from yolofleet.core.errors import UserError
from yolofleet.specs.base import Count, Spec, SpecError, apply_overrides, parse_override
from yolofleet.specs.job_paths import flatten, unknown_path
from yolofleet.specs.parameters import MOST, MOST_CANDIDATES, Parameter
from yolofleet.specs.search_parts import AlgorithmSpec, BudgetSpec, Figure, Limit, Objective, PaperSpec, SchedulerSpec
from yolofleet.specs.tracking import NotifySpec
from yolofleet.specs.yaml_document import AnyFile, DocumentError, read_yaml
from yolofleet.storage import StoredFile, open_file

SEARCH_FORMAT = 1
NAMING = ("format", "name")
"""Fields of a job that the search sets for each trial by itself."""
EXECUTION = (
    *NAMING,
    "storage",
    "tracking",
    "notify",
    "cluster",
    "checkpoint",
    "log_every_steps",
    "record_samples",
    "release_onnx",
    "release_precision",
)
"""Fields that do not change what is computed, so they are the same for all trials."""


class SearchSpec(Spec):
    """A search over jobs."""

    format: Annotated[int, Field(ge=1)] = SEARCH_FORMAT
    """Version of this file format."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]
    """Name of the search. The same name resumes the same search."""
    job: dict[str, Any]
    """The base job: a path, taken from the folder of this file, or the job itself."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Fields of the base job that differ, by dotted path."""
    parameters: Annotated[dict[str, Parameter], Field(min_length=1), MOST]
    """Parameters that vary: dotted paths of the job, or a name of its own for a choice that sets several fields."""
    constraints: dict[Figure, Limit] = Field(default_factory=dict)
    """Limits on figures that are known before training."""
    objectives: list[Objective] = Field(min_length=1, default_factory=lambda: [Objective(metric="val_AP", goal="max")])
    """The objectives, one or several."""
    algorithm: AlgorithmSpec = AlgorithmSpec()
    scheduler: SchedulerSpec = SchedulerSpec()
    repeats: Annotated[int, Field(ge=1, le=1000)] = 1
    """Runs of each candidate, with other seeds; the same seeds, hence the same sample order, for all candidates."""
    concurrency: Count | None = None
    """Trials at a time; unless given, as many as fit the cluster."""
    budget: BudgetSpec
    samples_per_second: Annotated[float, Field(gt=0)] | None = None
    """Measured training speed of the base job on one worker, to forecast the time; measured in the first trials unless
    given."""
    latency_device: str | None = None
    """Device on which ``latency_milliseconds`` is measured: cpu, cuda."""
    paper: PaperSpec | None = None
    """Published results to compare with."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Decides which candidates are tried."""
    notify: NotifySpec | None = None
    """Who is notified when the search ends or fails."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.format > SEARCH_FORMAT:
            raise ValueError(
                f"format {self.format} is newer than this version reads ({SEARCH_FORMAT}); upgrade yolofleet"
            )
        for path in flatten(self.set):
            _check_path(path, "set", NAMING)
        for name, parameter in self.parameters.items():
            _check_parameter(name, parameter, self.parameters)
        if len({objective.metric for objective in self.objectives}) < len(self.objectives):
            raise ValueError("objectives: a metric is given twice")
        limited = "latency_milliseconds" in self.constraints
        wanted = any(objective.metric == "latency_milliseconds" for objective in self.objectives)
        if (limited or wanted) and self.latency_device is None:
            raise ValueError("latency_milliseconds is measured: name the device with latency_device (cpu, cuda)")
        if self.algorithm.name == "grid":
            for name, parameter in self.parameters.items():
                if parameter.is_free and parameter.num_values is None:
                    raise ValueError(
                        f"parameters.{name}: takes any value of a range, so a grid has no end; give a step"
                    )
            count = math.prod(parameter.num_values or 1 for parameter in self.free_parameters().values())
            if count > MOST_CANDIDATES:
                raise ValueError(
                    f"parameters: {count:.3g} candidates, more than the {MOST_CANDIDATES:,} that a grid lists; give "
                    "longer steps, or search with another algorithm"
                )
        if self.scheduler.name != "none" and self.repeats > 1:
            raise ValueError("repeats are for scheduler none: a rung compares single runs")
        return self

    @classmethod
    def load(cls, path: AnyFile, overrides: list[str] | None = None) -> Self:
        """Read a YAML file, apply ``key.path=value`` overrides and build the spec.

        ``job.KEY=VALUE`` changes the base job, ``parameters.PATH.KIND=VALUE`` a parameter.

        Raises:
            UserError: A file cannot be read, or a key or value does not fit.
        """
        document = read_yaml(path)
        if isinstance(document, dict):
            document = _override(document, overrides or [])
            document["job"] = _base_job(document.get("job"), path)
        return cls.parse(document, source=str(path))

    def free_parameters(self) -> dict[str, Parameter]:
        """Return the parameters that a searcher decides."""
        return {name: parameter for name, parameter in self.parameters.items() if parameter.is_free}


def _base_job(job: Any, path: AnyFile) -> Any:
    """Return the base job as a plain document; a relative path counts from the space's own folder."""
    if job is None:
        raise SpecError(f"{path}: job: is missing; give the path of the base job, from the folder of this file")
    if not isinstance(job, str):
        return job
    file = open_file(job, beside=path if isinstance(path, StoredFile) else Path(str(path)))
    document = read_yaml(file)
    if not isinstance(document, dict):
        raise SpecError(f"{path}: job: {file} holds no job")
    return document


def _override(document: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    plain = []
    result = apply_overrides(document, [])
    for override in overrides:
        path, value = parse_override(override)
        group, _, rest = path.partition(".")
        if group not in ("job", "set", "parameters") or not rest:
            plain.append(override)
            continue
        if group == "parameters":
            _override_parameter(result, rest, value, override)
        else:
            fields = result.setdefault("set", {})
            fields.pop(rest, None)
            fields[rest] = value
    return apply_overrides(result, plain)


def _override_parameter(document: dict[str, Any], rest: str, value: Any, override: str) -> None:
    """Set a parameter, or one key of it; its name is a dotted path itself, so the longest matching name counts."""
    parameters = document.setdefault("parameters", {})
    if rest in parameters or isinstance(value, dict):
        parameters[rest] = value
        return
    name, _, key = rest.rpartition(".")
    if not name or key not in Parameter.model_fields:
        raise DocumentError(
            f"override {override!r}: write parameters.PATH.KIND=VALUE, e.g. parameters.model.depth.choice='[1.0, 1.5]'"
        )
    kinds = ("choice", "uniform", "log_uniform", "integer", "log_integer", "follows")
    kept = {k: v for k, v in parameters.get(name, {}).items() if not (key in kinds and k in kinds)}
    parameters[name] = kept | {key: value}


def _check_path(path: str, where: str, reserved: tuple[str, ...] = EXECUTION) -> None:
    if (problem := unknown_path(path)) is not None:
        raise ValueError(f"{where}: {problem}")
    if path.partition(".")[0] not in reserved:
        return
    if path in NAMING:
        raise ValueError(f"{where}: '{path}' is given to each trial by the search")
    raise ValueError(f"{where}: '{path}' does not change what is computed; put it under set, the same for all trials")


def _check_parameter(name: str, parameter: Parameter, others: dict[str, Parameter]) -> None:
    where = f"parameters.{name}"
    if isinstance(parameter.choice, dict):
        for label, fields in parameter.choice.items():
            for path in flatten(fields):
                _check_path(path, f"{where}.{label}")
    else:
        _check_path(name, where)
    if parameter.follows is not None and parameter.follows not in others:
        _check_path(parameter.follows, f"{where}.follows")
    for condition in parameter.when:
        if condition not in others:
            raise ValueError(f"{where}.when: '{condition}' is no parameter of this space; it has {', '.join(others)}")
        if list(others).index(condition) >= list(others).index(name):
            raise ValueError(f"{where}.when: '{condition}' must stand before '{name}'")
        _check_condition(parameter.when[condition], others[condition], f"{where}.when.{condition}")


def _check_condition(wanted: Any, other: Parameter, where: str) -> None:
    if other.choice is None:
        raise ValueError(f"{where}: a condition needs a parameter that is a choice")
    for value in wanted if isinstance(wanted, list) else [wanted]:
        if value not in other.options:
            raise ValueError(f"{where}: {value!r} is none of its choices {other.options}")


def load_search(path: AnyFile, overrides: list[str] | None = None) -> SearchSpec:
    """Read a search space; a job given instead is refused with the command that trains it.

    Raises:
        UserError: The file is no space.
    """
    document = read_yaml(path)
    if isinstance(document, dict) and "parameters" not in document and "model" in document:
        raise UserError(f"{path}: is a job, not a search space; train it with 'yolofleet train {path}'")
    return SearchSpec.load(path, overrides)
