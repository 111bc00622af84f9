"""A search put together from its spec: space, data, screen, record, searcher, schedule and engine.

`SearchSession.open` checks everything that can be checked before a trial trains, so that a search fails at its start or
not at all: metric names, changeable parameters, limits that no candidate meets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

from yolofleet.core.errors import UserError
from yolofleet.core.text import did_you_mean
from yolofleet.data.dataset import ShardDataset
from yolofleet.evaluation.protocol import COCO_PROTOCOL
from yolofleet.search.directory import SearchDirectory
from yolofleet.search.engine import COMPLETED, Engine, TrialSegment
from yolofleet.search.feasibility import Screen, check_feasible, measure_on
from yolofleet.search.history import best_first
from yolofleet.search.schedulers import Halving, Population, check_changeable
from yolofleet.search.searcher import Searcher, SearchProblem
from yolofleet.search.space import Space, even_point
from yolofleet.search.trial_segment import clone_checkpoint, use_kept_weights
from yolofleet.search.trials import Row, Trial, Trials
from yolofleet.specs.job import JobSpec
from yolofleet.specs.job_paths import flatten
from yolofleet.specs.search import SearchSpec
from yolofleet.specs.search_parts import Figure
from yolofleet.tracking.json_lines import CorruptLogError
from yolofleet.training.loop.progress import LossTerms
from yolofleet.training.setup.builders import open_dataset

TRAINING_METRICS = (*LossTerms.NAMES, "samples_per_second")
REPORTED_METRICS = (*(f"val_{name}" for name in (*COCO_PROTOCOL.figure_names, *LossTerms.NAMES)), *TRAINING_METRICS)
KNOWN_FIGURES: tuple[str, ...] = get_args(Figure)
POINTS_SCREENED = 256
"""Candidates screened before the start, to see what they cost and that some meet the limits."""
POINTS_MEASURED = 8
"""The same where the latency of each is measured."""


def check_metrics(spec: SearchSpec, *, source: str) -> None:
    """Refuse objectives that no trial reports.

    Raises:
        UserError: Names the objective, the nearest metric, and all that there are.
    """
    known = (*REPORTED_METRICS, *KNOWN_FIGURES)
    for objective in spec.objectives:
        if objective.metric not in known:
            hint = did_you_mean(objective.metric, known)
            raise UserError(
                f"{source}: objectives: no trial reports '{objective.metric}'{hint or '.'} "
                f"Reported: {', '.join(REPORTED_METRICS)}; known before training: {', '.join(KNOWN_FIGURES)}"
            )
    if not any(objective.metric in REPORTED_METRICS for objective in spec.objectives):
        raise UserError(
            f"{source}: objectives: all are known without training, so nothing needs to be searched; "
            "'yolofleet models list' shows them. Add one that is measured, e.g. val_AP"
        )


@dataclass(frozen=True)
class SearchSession:
    """One search."""

    spec: SearchSpec
    space: Space
    screen: Screen
    """Profiles candidates."""
    train: ShardDataset
    """The training set."""

    @classmethod
    def open(cls, spec: SearchSpec, *, source: str) -> SearchSession:
        """Check a search against its data and put it together; nothing is written.

        Raises:
            UserError: The search cannot work; says why.
        """
        space = Space(spec, source=source)
        check_metrics(spec, source=source)
        if spec.scheduler.name == "population":
            check_changeable([path for name in spec.parameters for path in _paths_of(spec, name)])
            if spec.budget.trials is None:
                raise UserError(f"{source}: scheduler population: its size is budget.trials, which is not set")
        job = space.base_job
        if job.stop is not None:
            raise UserError(f"{source}: the job has stop, but a search decides how far trials train; set stop: null")
        train = open_dataset(job.data, job.data.train)
        measure = None if spec.latency_device is None else measure_on(spec.latency_device)
        screen = Screen(space, num_classes=len(train.classes), num_samples=len(train), measure_latency=measure)
        points = _even_points(spec, space) + _ends(len(space.parameters))
        check_feasible(space.parameters, screen, points, source=source)
        return cls(spec, space, screen, train)

    def trials(self, directory: SearchDirectory) -> Trials:
        """Return the record of earlier starts; new rows are stored in the directory."""

        def store_row(row: Row) -> None:
            directory.append_row(row)
            if row["kind"] == "ended":
                directory.append_metrics(_progress(trials, self.spec, row))
                if row["reason"] != COMPLETED:
                    _append_end(directory, trials.trials[row["trial"]], row["reason"])

        parameters, source = self.space.parameters, directory.record_url
        trials = Trials(repeats=self.spec.repeats, store_row=store_row, parameters=parameters, source=source)
        trials.replay(directory.rows())
        return trials

    def engine(self, trials: Trials, directory: SearchDirectory) -> Engine:
        """Return the engine of the search."""
        spec = self.spec
        searcher = Searcher(
            SearchProblem(
                self.space.parameters,
                objectives=spec.objectives,
                constraints={str(name): limit for name, limit in spec.constraints.items()},
                algorithm=spec.algorithm,
                screen=self.screen,
                known=frozenset(KNOWN_FIGURES),
                seed=spec.seed,
            )
        )
        job_of = self.job_of(directory)

        def clone(segment: TrialSegment) -> None:
            assert segment.source is not None
            source = directory.trial(segment.source.run_name)
            clone_checkpoint(source, segment.source.step, directory.trial(segment.run_name), job_of(segment))

        return Engine(trials, searcher, spec.budget, self._schedule(), clone=clone)

    def job_of(self, directory: SearchDirectory) -> Callable[[TrialSegment], JobSpec]:
        """Return what builds the job of a segment: its run directory lies below the search's, and it registers none."""
        base = self.space.base_job

        def job(segment: TrialSegment) -> JobSpec:
            fields: dict[str, Any] = {
                "name": segment.run_name,
                "seed": base.seed + segment.repeat,
                "storage": directory.trials_url,
                "tracking.register_as": None,
                "cluster.evaluation": "inline",  # a free slot is for another trial, not for evaluation
            }
            return use_kept_weights(self.space.job(segment.values, fields), base, directory).with_absolute_paths()

        return job

    @property
    def measured_objectives(self) -> list[str]:
        """Metrics that each trial must report."""
        return [entry.metric for entry in self.spec.objectives if entry.metric not in KNOWN_FIGURES]

    def _schedule(self) -> Halving | Population | None:
        spec, parameters = self.spec, self.space.parameters
        if spec.scheduler.name == "asha":
            compute = self._compute_of(_even_points(spec, self.space)) or self._compute_of(
                _ends(len(parameters))
            )  # `open` found one in these
            return Halving(spec.scheduler, spec.objectives, _petaflops, max(compute))
        if spec.scheduler.name == "population":
            return Population(spec.scheduler, spec.objectives, parameters, spec.seed)
        return None

    def _compute_of(self, points: list[list[float]]) -> list[float]:
        """Return the compute of the whole training of each feasible candidate among points."""
        screened = [self.screen(self.space.parameters.at(point)) for point in points]
        return [entry.figures["training_petaflops"] for entry in screened if entry.feasible]


def _even_points(spec: SearchSpec, space: Space) -> list[list[float]]:
    """Return points spread evenly over a space; few where a latency is measured at each."""
    count = POINTS_SCREENED if spec.latency_device is None else POINTS_MEASURED
    return [even_point(spec.seed, index, len(space.parameters)) for index in range(count)]


def _ends(number: int) -> list[list[float]]:
    """Return the two ends of a space with so many parameters: the smallest and the largest candidate lie there."""
    return [[0.0] * number, [1.0 - 1e-9] * number]


def _petaflops(trial: Trial) -> float:
    compute = trial.observation.figures.get("training_petaflops")
    if compute is None:
        raise CorruptLogError(f"trials.jsonl: trial {trial.number} has no figure training_petaflops; repair its row")
    return compute


def _progress(trials: Trials, spec: SearchSpec, end: Row) -> dict[str, Any]:
    """Return a row of the search's own metrics at the moment when one more trial ends, by the row of its end."""
    ended = len({end["trial"], *(number for number, trial in trials.trials.items() if trial.end is not None)})
    hours = (trials.gpu_seconds + end.get("gpu_seconds", 0.0)) / 3600
    results = [trial.result(spec.repeats) for trial in trials.trials.values()]
    scored = [(entry, row) for entry in results if entry.share >= 1 and (row := entry.objectives(spec.objectives))]
    metrics: dict[str, Any] = {"step": ended, "refused": trials.num_refused, "worker_hours": hours}
    if scored:
        best, _ = scored[best_first([row for _, row in scored])[0]]
        metrics |= {f"best_{objective.metric}": best.value(objective.metric) for objective in spec.objectives}
    return metrics


def _append_end(directory: SearchDirectory, trial: Trial, reason: str) -> None:
    """Append an event to each run of a trial that the search ended, so that the run itself says why."""
    kind = "failed" if reason.startswith("failed") else "stopped"
    for repeat in range(max((entry.repeat for entry in trial.measurements), default=0) + 1):
        run = directory.trial(trial.run_name(repeat), source="driver")
        if run.exists():
            with run:
                run.append_event(kind, reason=reason)


def _paths_of(spec: SearchSpec, name: str) -> list[str]:
    """Return the fields of the job that a parameter sets."""
    choice = spec.parameters[name].choice
    return [path for fields in choice.values() for path in flatten(fields)] if isinstance(choice, dict) else [name]
