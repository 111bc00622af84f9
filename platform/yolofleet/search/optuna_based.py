"""Suggestions by Optuna's samplers (TPE, NSGA-II, NSGA-III) through ask and tell.

The study lives in memory and is filled from the record, so it can be built anew at any time; a suggestion
depends only on the record and on the seed. Refused candidates are reported to it too, with how far they break each
limit.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from yolofleet.core.errors import UserError
from yolofleet.search.history import History, Observation
from yolofleet.search.space import Parameters, Values, is_active
from yolofleet.specs.parameters import Parameter
from yolofleet.specs.search_parts import AlgorithmSpec, Objective

MOST_REFUSED_REPORTED = 300
"""The searcher learns limits from this many refusals; more only make it slow."""


class OptunaBased:
    """Suggests by one of Optuna's samplers.

    Raises:
        UserError: Optuna is not installed.
    """

    def __init__(
        self,
        parameters: Parameters,
        objectives: Sequence[Objective],
        constraints: Sequence[str],
        algorithm: AlgorithmSpec,
        seed: int,
    ) -> None:
        try:
            import optuna
        except ModuleNotFoundError as error:
            raise UserError(
                f"algorithm.name {algorithm.name} needs Optuna, which is not installed: pip install yolofleet[search]; "
                "gaussian_process does without"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna
        self._parameters = parameters
        self._objectives = list(objectives)
        self._constraints = list(constraints)
        self._algorithm = algorithm
        self._seed = seed
        self._study = optuna.create_study(directions=["maximize"] * len(self._objectives))
        self._reported: set[int] = set()
        self._num_refused = 0

    def suggest(self, history: History, number: int) -> tuple[Values, dict[str, Any]]:
        """Return the next candidate, and what must be remembered of it."""
        self._tell(history)
        self._study.sampler = self._sampler((self._seed * 1_000_003 + number) % 2**31)
        trial = self._study.ask()
        values = self._values(trial)
        frozen = self._study.trials[trial.number]
        notes = {key: value for key, value in frozen.system_attrs.items() if isinstance(value, int | float | str)}
        self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)  # it comes back through the record
        return values, notes

    def _values(self, trial: Any) -> Values:
        """Return the parameters that a trial of Optuna suggests, those left out whose condition does not hold."""
        values: Values = {}
        for name, parameter in self._parameters.by_name.items():
            if is_active(parameter, values):
                values[name] = _suggested(trial, name, parameter)
        return values

    def _sampler(self, seed: int) -> Any:
        samplers = self._optuna.samplers
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            if self._algorithm.name == "tpe":
                return samplers.TPESampler(
                    seed=seed, n_startup_trials=self._algorithm.startup_trials, multivariate=True, group=True
                )
            kind = samplers.NSGAIISampler if self._algorithm.name == "nsga2" else samplers.NSGAIIISampler
            return kind(seed=seed, population_size=self._algorithm.population_size)

    def _tell(self, history: History) -> None:
        """Tell the study every candidate with a result or a refusal that it does not know yet."""
        for index, entry in enumerate(history):
            if index in self._reported:
                continue
            objectives = self._worth(entry)
            if objectives is None:
                continue
            self._reported.add(index)
            self._num_refused += entry.refused
            if entry.refused and self._num_refused > MOST_REFUSED_REPORTED:
                continue
            self._study.add_trial(
                self._optuna.trial.create_trial(
                    params={
                        name: plain_value(self._parameters.by_name[name], value) for name, value in entry.values.items()
                    },
                    distributions={name: self._distribution(name) for name in entry.values},
                    values=objectives,
                    system_attrs=dict(entry.notes),
                    constraints={name: entry.violations.get(name, 0.0) for name in self._constraint_names(entry)},
                )
            )

    def _worth(self, entry: Observation) -> list[float] | None:
        if not entry.refused:
            return entry.objectives(self._objectives)
        # A refused candidate is ranked by its violation alone; what it would be worth is never looked at.
        return [objective.sign * entry.figures.get(objective.metric, 0.0) for objective in self._objectives]

    def _constraint_names(self, entry: Observation) -> list[str]:
        return list(dict.fromkeys([*self._constraints, *entry.violations]))

    def _distribution(self, name: str) -> Any:
        return distribution_of(self._parameters.by_name[name])


def plain_value(parameter: Parameter, value: Any) -> Any:
    """Return a parameter's value as Optuna takes it."""
    return _label(value) if parameter.choice is not None else value


def distribution_of(parameter: Parameter) -> Any:
    """Return a parameter's values as a distribution of Optuna."""
    from optuna import distributions

    if parameter.choice is not None:
        return distributions.CategoricalDistribution([_label(option) for option in parameter.options])
    low, high = parameter.range
    if parameter.kind in ("integer", "log_integer"):
        high = low + (parameter.num_values or 1) * (parameter.step or 1) - (parameter.step or 1)
        return distributions.IntDistribution(
            int(low), int(high), step=int(parameter.step or 1), log=parameter.kind == "log_integer"
        )
    if parameter.kind == "uniform" and parameter.step is not None:
        return distributions.FloatDistribution(low, parameter.at(1.0 - 1e-9), step=parameter.step)
    return distributions.FloatDistribution(low, high, log=parameter.kind == "log_uniform")


def _suggested(trial: Any, name: str, parameter: Parameter) -> Any:
    if parameter.choice is not None:
        labels = [_label(option) for option in parameter.options]
        return parameter.options[labels.index(trial.suggest_categorical(name, labels))]
    low, high = parameter.range
    if parameter.kind in ("integer", "log_integer"):
        last = int(low) + ((parameter.num_values or 1) - 1) * int(parameter.step or 1)
        return trial.suggest_int(
            name, int(low), last, step=int(parameter.step or 1), log=parameter.kind == "log_integer"
        )
    if parameter.kind == "uniform" and parameter.step is not None:
        drawn = trial.suggest_float(name, low, parameter.at(1.0 - 1e-9), step=parameter.step)
        return parameter.at(min(parameter.coordinate(drawn), 1.0 - 1e-9))
    return trial.suggest_float(name, low, high, log=parameter.kind == "log_uniform")


def _label(option: Any) -> str | int | float | bool | None:
    """Return an option as Optuna takes it: lists and mappings as text."""
    return option if isinstance(option, str | int | float | bool | None) else repr(option)
