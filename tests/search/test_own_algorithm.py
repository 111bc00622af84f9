"""A search algorithm of one's own is one file and one registering line; unknown names are refused with the nearest."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from yolofleet.core.errors import UserError
from yolofleet.core.extension_points import load_plugins
from yolofleet.search.engine import Engine, SegmentResult, TrialSegment
from yolofleet.search.feasibility import Screened
from yolofleet.search.searcher import ALGORITHMS, Searcher, SearchProblem
from yolofleet.search.space import Parameters, Values
from yolofleet.search.trials import Trials
from yolofleet.specs.parameters import Parameter
from yolofleet.specs.search import SearchSpec
from yolofleet.specs.search_parts import AlgorithmSpec, BudgetSpec, Objective

PLUGIN = '''
"""A grid of Halton points: the van der Corput sequence in bases 2 and 3."""

from yolofleet.search.searcher import ALGORITHMS


def van_der_corput(number, base):
    value, scale = 0.0, 1.0
    while number:
        number, digit = divmod(number, base)
        scale /= base
        value += digit * scale
    return value


@ALGORITHMS.register("halton")
class Halton:
    def __init__(self, problem):
        self.parameters = problem.parameters

    def suggest(self, history, number):
        if number == 6:
            return None
        return self.parameters.at([van_der_corput(number + 1, base) for base in (2, 3)]), {"point": number}
'''
PARAMETERS = Parameters({"x": Parameter(uniform=(0.0, 1.0)), "y": Parameter(uniform=(0.0, 1.0))})


@pytest.fixture
def halton(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of an algorithm that a plugin adds, for the length of a test."""
    (tmp_path / "halton_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("YOLOFLEET_PLUGINS", "halton_plugin")
    ALGORITHMS.built_in()
    monkeypatch.setattr(ALGORITHMS, "_items", dict(ALGORITHMS._items))
    load_plugins.cache_clear()
    yield "halton"
    load_plugins.cache_clear()
    sys.modules.pop("halton_plugin", None)


def test_an_algorithm_of_ones_own_runs_a_search(halton: str, make_spec: Callable[..., SearchSpec]) -> None:
    spec = make_spec(algorithm={"name": halton})
    record = Trials()
    searcher = Searcher(
        SearchProblem(
            PARAMETERS,
            objectives=[Objective(metric="ap", goal="max")],
            algorithm=spec.algorithm,
            screen=screen_left_half,
        )
    )
    engine = Engine(record, searcher, BudgetSpec(trials=10))
    while isinstance(segment := engine.next_segment(), TrialSegment):
        engine.complete(segment, SegmentResult(step=10, share=1.0, measured={"ap": segment.values["x"]}))
    assert [tuple(entry.values.values()) for entry in record.history()] == [
        (0.5, pytest.approx(1 / 3)),
        (0.25, pytest.approx(2 / 3)),
        (0.75, pytest.approx(1 / 9)),
        (0.125, pytest.approx(4 / 9)),
        (0.625, pytest.approx(7 / 9)),
        (0.375, pytest.approx(2 / 9)),
    ]
    assert [entry.refused for entry in record.history()] == [False, False, True, False, True, False]
    assert record.trials[3].observation.notes == {"point": 5}
    assert all(trial.end == "completed" for trial in record.trials.values())


def test_the_algorithm_of_the_manual_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs/extending.md").read_text()
    monkeypatch.setattr(ALGORITHMS, "_items", dict(ALGORITHMS.items()))
    exec(page.partition("```python\n# middle.py\n")[2].partition("```")[0], {})
    searcher = Searcher(
        SearchProblem(
            PARAMETERS,
            objectives=[Objective(metric="ap", goal="max")],
            algorithm=AlgorithmSpec(name="middle"),
            screen=screen_left_half,
        )
    )
    suggestion = searcher.suggest([])
    assert suggestion is not None
    assert suggestion.observation.values == {"x": 0.5, "y": 0.5}
    assert searcher.suggest([suggestion.observation]) is None


def screen_left_half(values: Values) -> Screened:
    return Screened({"cost": values["x"]}, {"cost": values["x"] - 0.5} if values["x"] > 0.5 else {})


def test_an_unknown_algorithm_is_refused_with_the_nearest(make_spec: Callable[..., SearchSpec]) -> None:
    with pytest.raises(
        UserError, match=r"algorithm\.name: no search algorithm 'quasirandom'; did you mean 'quasi_random'"
    ):
        make_spec(algorithm={"name": "quasirandom"})


def test_the_default_algorithm_is_registered() -> None:
    assert AlgorithmSpec().name in ALGORITHMS.built_in()
