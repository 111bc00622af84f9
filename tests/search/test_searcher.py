"""Every algorithm is screened, repeatable and resumes from the record; models are better than chance."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from yolofleet.search.feasibility import Screened, violations
from yolofleet.search.history import Observation
from yolofleet.search.searcher import Searcher, SearchProblem
from yolofleet.search.space import Parameters, Values, key_of
from yolofleet.search.trials import Measurement, Row, Trials
from yolofleet.specs.parameters import Parameter
from yolofleet.specs.search_parts import AlgorithmSpec, Limit, Objective

PARAMETERS = Parameters(
    {
        "x": Parameter(uniform=(0.0, 1.0)),
        "n": Parameter(integer=(1, 8)),
        "kind": Parameter(choice=["plain", "rich"]),
        "rate": Parameter(log_uniform=(1e-3, 1e-1), when={"kind": "rich"}),
    }
)
OBJECTIVES = [Objective(metric="ap", goal="max"), Objective(metric="cost", goal="min")]
CONSTRAINTS = {"cost": Limit(max=6.0)}
ALGORITHMS = ["random", "quasi_random", "tpe", "nsga2", "nsga3", "gaussian_process"]


def screen(values: Values) -> Screened:
    figures = {"cost": values["n"] * (2.0 if values["kind"] == "rich" else 1.0)}
    return Screened(figures, violations(figures, CONSTRAINTS))


def ap(values: Values) -> float:
    return float(values["n"] - 10 * (values["x"] - 0.3) ** 2 + 100 * values.get("rate", 0.0))


def searcher(name: str, objectives: list[Objective] = OBJECTIVES) -> Searcher:
    return Searcher(
        SearchProblem(
            PARAMETERS,
            objectives=objectives,
            constraints=CONSTRAINTS,
            algorithm=AlgorithmSpec(name=name, startup_trials=4, population_size=4),
            screen=screen,
            known=frozenset({"cost"}),
            seed=1,
        )
    )


def search(record: Trials, source: Searcher, until: int) -> None:
    while len(record.trials) < until:
        suggestion = source.suggest(record.history())
        assert suggestion is not None
        for refused in suggestion.refused:
            record.refuse(refused)
        trial = record.suggest(suggestion.observation)
        record.measure(trial.number, Measurement(0, 1.0, 10, {"ap": ap(trial.values)}, 1.0))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_no_trial_breaks_a_limit_and_what_was_refused_is_on_record(name: str) -> None:
    record = Trials()
    search(record, searcher(name), 14)
    assert all(screen(trial.values).feasible for trial in record.trials.values())
    if name != "gaussian_process":  # which never suggests what breaks a limit once its model is trusted
        assert record.num_refused > 0
    refused = [entry for entry in record.history() if entry.refused]
    assert all(entry.violations == screen(entry.values).violations for entry in refused)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_search_resumes_from_its_record_as_if_it_had_never_stopped(name: str) -> None:
    rows: list[Row] = []
    whole = Trials(store_row=rows.append)
    search(whole, searcher(name), 12)
    again = Trials()
    cut = next(index for index, row in enumerate(rows) if row["kind"] == "measured" and row["trial"] == 6)
    again.replay(json.loads(json.dumps(rows[: cut + 1])))
    search(again, searcher(name), 12)
    assert [key_of(trial.values) for trial in again.trials.values()] == [
        key_of(trial.values) for trial in whole.trials.values()
    ]


def test_a_model_finds_more_than_chance() -> None:
    best = {}
    for name in ("random", "gaussian_process"):
        record = Trials()
        search(record, searcher(name, OBJECTIVES[:1]), 24)
        best[name] = max(ap(trial.values) for trial in record.trials.values())
    assert best["gaussian_process"] > best["random"]
    assert best["gaussian_process"] > 12.5  # 13 is the best that the limit allows


def test_a_grid_is_walked_once_and_ends() -> None:
    parameters = Parameters({"n": Parameter(integer=(1, 3)), "kind": Parameter(choice=["plain", "rich"])})
    source = Searcher(
        SearchProblem(
            parameters,
            objectives=OBJECTIVES,
            constraints=CONSTRAINTS,
            algorithm=AlgorithmSpec(name="grid"),
            screen=screen,
            known=frozenset({"cost"}),
        )
    )
    history: list[Observation] = []
    while (suggestion := source.suggest(history)) is not None:
        history += [*suggestion.refused, replace(suggestion.observation, measured={"ap": 1.0})]
    assert [entry.values for entry in history] == parameters.grid()


def test_a_small_space_is_used_up() -> None:
    parameters = Parameters({"n": Parameter(integer=(1, 3)), "kind": Parameter(choice=["plain"])})
    for name in ("random", "tpe", "gaussian_process"):
        source = Searcher(
            SearchProblem(
                parameters,
                objectives=OBJECTIVES,
                constraints=CONSTRAINTS,
                algorithm=AlgorithmSpec(name=name),
                screen=screen,
                known=frozenset({"cost"}),
            )
        )
        history: list[Observation] = []
        while (suggestion := source.suggest(history)) is not None:
            history += [*suggestion.refused, replace(suggestion.observation, measured={"ap": 1.0})]
        assert len({key_of(entry.values) for entry in history}) == len(history) == 3


def test_three_objectives() -> None:
    objectives = [*OBJECTIVES, Objective(metric="x_cost", goal="min")]
    source = searcher("gaussian_process", objectives)
    history: list[Observation] = []
    for _ in range(8):
        suggestion = source.suggest(history)
        assert suggestion is not None
        entry = suggestion.observation
        measured = {"ap": ap(entry.values), "x_cost": entry.values["x"]}
        history += [*suggestion.refused, replace(entry, measured=measured)]
    assert len(history) >= 8
