"""A search put together: its space, data, record, searcher, schedule and engine.

Which metrics a trial of this platform reports, so that a wrong name is told before anything trains.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

from yolofleet.core.errors import UserError
from yolofleet.data.dataset import ShardDataset
from yolofleet.evaluation.average_precision import FIGURE_NAMES
from yolofleet.search.directory import SearchDirectory
from yolofleet.search.engine import COMPLETED, Engine, Leg
from yolofleet.search.feasibility import Screen, check_feasible
from yolofleet.search.ranking import best_first
from yolofleet.search.schedulers import Halving, Population, check_changeable
from yolofleet.search.searcher import Searcher
from yolofleet.search.space import Space, even_point
from yolofleet.search.trial_segment import clone_checkpoint, with_kept_weights
from yolofleet.search.trials import Row, Trial, Trials
from yolofleet.specs.job import JobSpec
from yolofleet.specs.search import SearchSpec
from yolofleet.specs.search_parts import Figure
from yolofleet.training.setup.builders import open_dataset

TRAINING_METRICS = ("loss", "loss_box", "loss_objectness", "loss_classification", "samples_per_second")


def reported_metrics() -> tuple[str, ...]:
    """Return the metrics that a trial reports."""
    return (*(f"val_{name}" for name in FIGURE_NAMES), *TRAINING_METRICS)


def check_metrics(spec: SearchSpec, *, source: str) -> None:
    """Refuse an objective that no trial ever reports.

    Raises:
        UserError: Names the objective, the nearest metric, and all there are.
    """
    measured = reported_metrics()
    known = (*measured, *get_args(Figure))
    for objective in spec.objectives:
        if objective.metric in known:
            continue
        near = difflib.get_close_matches(objective.metric, known, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UserError(
            f"{source}: objectives: no trial reports '{objective.metric}'; {hint}Reported: {', '.join(measured)}; "
            f"known beforehand: {', '.join(get_args(Figure))}"
        )
    if not any(objective.metric in measured for objective in spec.objectives):
        raise UserError(
            f"{source}: objectives: all are known without training, so nothing needs to be searched; "
            "'yolofleet models list' shows them. Add one that is measured, e.g. val_AP"
        )


POINTS_LOOKED_AT = 256
"""Candidates profiled before the start, to see that some meet the limits and what they cost."""
KNOWN_FIGURES: tuple[str, ...] = get_args(Figure)


@dataclass(frozen=True)
class Session:
    """One search.

    Attributes:
        spec: What is looked for.
        space: Its space.
        screen: Profiles candidates.
        train: The training set.
        feasible_share: Share of the candidates looked at that meets the limits.
    """

    spec: SearchSpec
    space: Space
    screen: Screen
    train: ShardDataset
    feasible_share: float

    @classmethod
    def open(cls, spec: SearchSpec, *, source: str) -> Session:
        """Check a search against its data and put it together; nothing is written.

        Raises:
            UserError: Something cannot work.
        """
        space = Space(spec, source=source)
        check_metrics(spec, source=source)
        if spec.scheduler.name == "population":
            paths = [path for name in spec.parameters for path in _paths_of(spec, name)]
            check_changeable(paths)
            if spec.budget.trials is None:
                raise UserError(f"{source}: scheduler population: its size is budget.trials, which is not set")
        job = space.base_job
        train = open_dataset(job.data, job.data.train)
        measure = None
        if spec.latency_device is not None:
            from yolofleet.search.feasibility import measure_on

            measure = measure_on(spec.latency_device)
        screen = Screen(space, num_classes=len(train.classes), num_samples=len(train), measure_latency=measure)
        number = len(space.parameters)
        points = [even_point(spec.seed, index, number) for index in range(POINTS_LOOKED_AT if measure is None else 8)]
        points += [[0.0] * number, [1.0 - 1e-9] * number]
        share = check_feasible(space.parameters, screen, points, source=source)
        return cls(spec, space, screen, train, share)

    def trials(self, directory: SearchDirectory) -> Trials:
        """Return the record of an earlier start, ready to be gone on with."""

        def keep(row: Row) -> None:
            directory.append_row(row)
            if row["kind"] == "ended":
                directory.append_metrics(_progress(trials, self.spec))
            if row["kind"] == "ended" and row["reason"] != COMPLETED:
                _note_end(directory, trials.trials[row["trial"]], row["reason"])

        trials = Trials(repeats=self.spec.repeats, keep=keep)
        trials.replay(directory.rows())
        return trials

    def engine(self, trials: Trials, directory: SearchDirectory) -> Engine:
        """Return what decides on the next leg."""
        spec = self.spec
        searcher = Searcher(
            self.space.parameters,
            objectives=spec.objectives,
            constraints={str(name): limit for name, limit in spec.constraints.items()},
            algorithm=spec.algorithm,
            screen=self.screen,
            known=set(KNOWN_FIGURES),
            seed=spec.seed,
        )
        return Engine(trials, searcher, spec.budget, self.schedule(), clone=self._cloner(directory))

    def schedule(self) -> Halving | Population | None:
        """Return how much is spent on each trial."""
        spec = self.spec
        if spec.scheduler.name == "asha":
            points = (even_point(spec.seed, index, len(self.space.parameters)) for index in range(POINTS_LOOKED_AT))
            screened = [self.screen(self.space.parameters.at(point)) for point in points]
            largest = max(entry.figures["training_petaflops"] for entry in screened if entry.feasible)
            return Halving(spec.scheduler, spec.objectives, _compute, largest)
        if spec.scheduler.name == "population":
            return Population(spec.scheduler, spec.objectives, self.space.parameters, spec.seed)
        return None

    def job_of(self, directory: SearchDirectory) -> Callable[[Leg], JobSpec]:
        """Return what gives a leg its job: a run directory below the search's, no registration of its own."""
        base = self.space.base_job

        def job(leg: Leg) -> JobSpec:
            fields: dict[str, Any] = {
                "name": leg.run_name,
                "seed": base.seed + leg.repeat,
                "storage": directory.trials_url,
                "tracking.register_as": None,
                "cluster.evaluation": "inline",  # a place to spare is another trial's
            }
            return with_kept_weights(self.space.job(leg.values, fields), base, directory).with_absolute_paths()

        return job

    def _cloner(self, directory: SearchDirectory) -> Callable[[Leg], None]:
        job_of = self.job_of(directory)

        def clone(leg: Leg) -> None:
            assert leg.donor is not None
            source = directory.trial(leg.donor.run_name)
            clone_checkpoint(source, leg.donor.step, directory.trial(leg.run_name), job_of(leg))

        return clone

    @property
    def measured_objectives(self) -> list[str]:
        """Metrics that each trial must report."""
        return [entry.metric for entry in self.spec.objectives if entry.metric not in KNOWN_FIGURES]


def _progress(trials: Trials, spec: SearchSpec) -> dict[str, Any]:
    """Return a row of the search's own metrics, as it stands when one more trial ends."""
    ended = 1 + sum(trial.end is not None for trial in trials.trials.values())
    results = [trial.result(spec.repeats) for trial in trials.trials.values()]
    scored = [entry for entry in results if entry.share >= 1 and entry.objectives(spec.objectives) is not None]
    row: dict[str, Any] = {"step": ended, "refused": trials.num_refused, "worker_hours": trials.gpu_seconds / 3600}
    if scored:
        best = scored[best_first([entry.objectives(spec.objectives) or [] for entry in scored])[0]]
        row |= {f"best_{objective.metric}": best.value(objective.metric) for objective in spec.objectives}
    return row


def _note_end(directory: SearchDirectory, trial: Trial, reason: str) -> None:
    """Note in a trial's own runs that the search ended them, so that whoever looks at one sees why."""
    kind = "failed" if reason.startswith("failed") else "stopped"
    for repeat in range(max((entry.repeat for entry in trial.measurements), default=0) + 1):
        run = directory.trial(trial.run_name(repeat), source="driver")
        if run.exists():
            with run:
                run.append_event(kind, reason=reason)


def _compute(trial: Trial) -> float:
    return trial.observation.figures["training_petaflops"]


def _paths_of(spec: SearchSpec, name: str) -> list[str]:
    parameter = spec.parameters[name]
    if isinstance(parameter.choice, dict):
        from yolofleet.specs.job_paths import flatten

        return [path for fields in parameter.choice.values() for path in flatten(fields)]
    return [name]
