"""The results of a record: front, importances and scaling law, and the reason where the trials support none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from yolofleet.search.importance import importances
from yolofleet.search.report import render_search
from yolofleet.search.results import results_of, summary_lines
from yolofleet.search.scaling_law import fit_scaling_law
from yolofleet.search.space import Parameters, Space
from yolofleet.search.trials import Measurement, Observation, Trials
from yolofleet.specs.parameters import Parameter
from yolofleet.specs.search import SearchSpec


def test_a_known_law_is_recovered_with_its_uncertainty() -> None:
    random = np.random.default_rng(0)
    compute = np.geomspace(1, 100, 14)
    trials = [(c, 0.6 - 0.3 * c**-0.4 + random.normal(0, 0.002)) for c in compute]
    law = fit_scaling_law(trials)
    assert law.supported
    assert law.power == pytest.approx(0.4, abs=0.15)
    gained = 0.3 * 100**-0.4 * (1 - 2**-0.4)
    assert law.doubling == pytest.approx(gained, rel=0.4)
    assert law.doubling_interval is not None
    assert law.doubling_interval[0] <= (law.doubling or 0) <= law.doubling_interval[1]
    assert "twice the compute" in law.sentence()


@pytest.mark.parametrize(
    ("trials", "message"),
    [
        ([(1.0, 0.2), (2.0, 0.3)], "needs 5 trials on the front of AP and compute, and 2 trials are there"),
        ([(1 + i / 10, 0.2 + i / 100) for i in range(8)], "spans a factor of 1.7"),
        ([(1.0, 0.2)], "and 1 trial is there"),
        ([], "and 0 trials are there"),
    ],
)
def test_few_trials_support_no_law(trials: list[tuple[float, float]], message: str) -> None:
    law = fit_scaling_law(trials)
    assert not law.supported
    assert message in law.sentence()


def test_the_parameter_that_matters_is_found() -> None:
    parameters = Parameters(
        {
            "x": Parameter(uniform=(0, 1)),
            "idle": Parameter(uniform=(0, 1)),
            "kind": Parameter(choice=["a", "b", "c"]),
        }
    )
    random = np.random.default_rng(1)
    candidates = [parameters.at(random.random(3).tolist()) for _ in range(40)]
    measured = [3 * values["x"] + {"a": 0.0, "b": 1.5, "c": 0.2}[values["kind"]] for values in candidates]
    result = importances(parameters, candidates, measured, [1.0] * 40)
    assert result is not None
    by_name = {entry.parameter: entry.share for entry in result}
    assert by_name["x"] > by_name["kind"] > by_name["idle"]
    assert by_name["idle"] < 0.05
    assert sum(by_name.values()) == pytest.approx(1)
    assert importances(parameters, candidates[:5], measured[:5], [1.0] * 5) is None


def test_repeats_give_a_mean_and_a_spread(make_spec: Callable[..., SearchSpec]) -> None:
    spec = make_spec(repeats=2, budget={"trials": 1})
    record = Trials(repeats=2)
    figures = {"gflops": 1.0, "parameters": 1e6, "training_petaflops": 1.0}
    values = {"model.transition_width": 0.5, "hyperparameters.lr0": 0.01}
    record.suggest(Observation(values, figures))
    for repeat, ap in enumerate((0.4, 0.5)):
        record.measure(0, Measurement(repeat, 1.0, 10, {"val_AP": ap}, 5.0))
    record.end(0, "completed")
    results = results_of(spec, record)
    entry = results.entry(0)
    assert entry.measured["val_AP"] == pytest.approx(0.45)
    assert entry.spread["val_AP"] == pytest.approx(0.0707, abs=1e-4)
    assert entry.runs == ["0000", "0000-repeat1"]
    assert "0.4500 ± 0.0707" in "\n".join(summary_lines(results, "runs/small"))


def test_a_search_without_a_result_says_so(make_spec: Callable[..., SearchSpec]) -> None:
    results = results_of(make_spec(), Trials())
    assert (results.best, results.front) == (None, [])
    assert "no trial has completed" in summary_lines(results, "runs/small")
    page = render_search(results, {})
    assert "No trial has begun yet." in page and "best.yaml" not in page and "<figure" not in page
    assert "What more budget would bring" not in page


def test_one_trial_is_a_line_of_the_table_and_no_chart(make_spec: Callable[..., SearchSpec]) -> None:
    spec, trials = make_spec(), Trials()
    values = {name: parameter.at(0.5) for name, parameter in Space(spec, source="small").parameters.by_name.items()}
    figures = {"gflops": 0.6, "parameters": 1.8e6, "training_petaflops": 6.0}
    pages = []
    for number in range(2):
        trials.suggest(Observation(values=values, figures=figures))
        trials.measure(number, Measurement(0, 1.0, 100, {"val_AP": 0.2 + number / 10}, 300.0))
        trials.end(number, "completed")
        pages.append(render_search(results_of(spec, trials), {}))
    assert "<figure" not in pages[0] and "1 trial, 1 trained to the end" in pages[0]
    own, _, published = pages[1].partition("Among published models")
    assert "<figcaption>AP</figcaption>" in own and "in percent" not in own  # one unit among one's own trials
    assert "AP in percent" in published
