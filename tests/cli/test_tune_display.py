"""The display of a search: what is trained, measured so far, used of the budget, and how long the rest takes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolofleet.cli.tune_display import Live, SearchDisplay
from yolofleet.search.engine import SegmentResult, TrialSegment
from yolofleet.search.forecast import seconds_left, work_done
from yolofleet.search.history import Observation
from yolofleet.search.space import Space
from yolofleet.search.trials import Measurement, Trials
from yolofleet.specs.search import SearchSpec

SPACE: dict[str, Any] = {
    "name": "small",
    "job": {"name": "base", "model": {"name": "yolov7-tiny"}, "data": {"train": "train", "val": "val"}},
    "parameters": {"hyperparameters.lr0": {"log_uniform": [0.001, 0.1]}, "model.depth": {"uniform": [0.5, 2.0]}},
    "objectives": [{"metric": "val_AP", "goal": "max"}],
    "budget": {"trials": 8, "gpu_hours": 2},
}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def display_of(trials: Trials, clock: Clock, **changes: Any) -> SearchDisplay:
    spec = SearchSpec.parse(SPACE | changes, source="space.yaml")
    session = SimpleNamespace(spec=spec, space=Space(spec, source="space.yaml"))
    return SearchDisplay(session, trials, clock)  # type: ignore[arg-type]


def suggest(trials: Trials, gflops: float = 10.0) -> int:
    values = {"hyperparameters.lr0": 0.01, "model.depth": 1.0}
    return trials.suggest(Observation(values, {"gflops": gflops})).number


def measure(trials: Trials, number: int, share: float, ap: float, repeat: int = 0) -> None:
    trials.measure(number, Measurement(repeat, share, round(10 * share), {"val_AP": ap}, 360.0))


def rows_of(display: SearchDisplay, running: dict[tuple[int, int], Live], most: int = 16) -> dict[str, list[str]]:
    _, rows = display.rows(running, most)
    return {row[0]: row[2:] for row in rows}


def test_a_running_trial_shows_its_newest_evaluation() -> None:
    trials = Trials()
    display = display_of(trials, Clock())
    for _ in range(2):
        suggest(trials)
    running = {(0, 0): Live(0.4, {"step": 4, "val_AP": 0.125}), (1, 0): Live()}
    assert rows_of(display, running) == {
        "0": ["0.125", "10", "40%", "running"],
        "1": ["-", "10", "0%", "starting"],
    }
    measure(trials, 0, 0.5, 0.25)
    assert rows_of(display, {}) == {"0": ["0.25", "10", "50%", "waiting"]}


def test_the_best_is_marked_and_failed_trials_are_listed_last() -> None:
    trials = Trials()
    display = display_of(trials, Clock())
    for ap in (0.1, 0.3, 0.2):
        number = suggest(trials)
        measure(trials, number, 1.0, ap)
        trials.end(number, "completed")
    trials.end(suggest(trials), "failed: out of memory")
    busy = suggest(trials)
    shown = rows_of(display, {(busy, 0): Live(0.1, {"step": 1})})
    assert list(shown) == ["4", "1", "2", "0", "3"]
    assert [row[-1] for row in shown.values()] == ["running", "completed, best", "completed", "completed", "failed"]
    assert list(rows_of(display, {(busy, 0): Live()}, most=3)) == ["4", "1", "3"]
    assert "4 of 8 trials ended; 1 failed; 0 candidates refused; 0.3 of 2 worker hours" in display.budget({})


def test_the_front_of_two_objectives_is_marked() -> None:
    trials = Trials()
    objectives = [{"metric": "val_AP", "goal": "max"}, {"metric": "gflops", "goal": "min"}]
    display = display_of(trials, Clock(), objectives=objectives)
    for gflops, ap in ((10.0, 0.3), (20.0, 0.2), (5.0, 0.1)):
        number = suggest(trials, gflops)
        measure(trials, number, 1.0, ap)
        trials.end(number, "completed")
    assert {key: row[-1] for key, row in rows_of(display, {}).items()} == {
        "0": "completed, front",
        "1": "completed",
        "2": "completed, front",
    }


def test_the_table_fits_a_narrow_screen_a_row_a_trial() -> None:
    trials = Trials()
    display = display_of(trials, Clock())
    for _ in range(5):
        measure(trials, suggest(trials), 1.0, 0.123456)
    lines = display.lines({}, 4, 79)
    assert max(map(len, lines)) <= 79
    assert sum(line.startswith("    ") and "0.1235" in line for line in lines) == 4
    assert lines[0].startswith("small: 0 of 8 trials ended") and "best so far: trial 0, val_AP 0.1235" in lines
    (head,) = (line for line in lines if "parameters" in line)
    assert head.split() == ["trial", "parameters", "val_AP", "gflops", "trained", "state"]


def test_before_the_first_trial_the_display_says_what_is_waited_for() -> None:
    assert "starting their processes" in "".join(display_of(Trials(), Clock()).lines({}, 10, 100))


def test_time_left_follows_the_pace_of_this_start() -> None:
    trials, clock = Trials(), Clock()
    for _ in range(2):  # of an earlier start
        number = suggest(trials)
        measure(trials, number, 1.0, 0.1)
        trials.end(number, "completed")
    display = display_of(trials, clock, budget={"trials": 8})
    assert "left" not in display.budget({})
    clock.now = 120.0
    number = suggest(trials)
    measure(trials, number, 1.0, 0.1)
    trials.end(number, "completed")
    assert display.budget({}).endswith("2 min, about 10 min left")  # five more at two minutes each
    second = suggest(trials)
    assert display.budget({(second, 0): Live(0.5)}).endswith("2 min, about 6 min left")
    display = display_of(trials, clock, budget={"trials": 8, "wall_hours": 0.5})
    clock.now += 600.0
    assert display.budget({}).endswith("10 min of 30 min, about 20 min left")


def test_events_say_which_trial_of_how_many(capsys: pytest.CaptureFixture[str]) -> None:
    trials = Trials()
    display = display_of(trials, Clock())
    number = suggest(trials)
    segment = TrialSegment(number, 0, trials.trials[number].values, "0000", 0.5)
    display.print_event("begin", segment, None)
    measure(trials, number, 0.5, 0.25)
    display.print_event("end", segment, SegmentResult(5, 0.5, {"val_AP": 0.25}, 360.0))
    begin, end = capsys.readouterr().err.splitlines()
    assert "trial 0000 (number 1 of 8) to 50%: lr0=0.01, depth=1" in begin
    assert "at 50%: val_AP 0.25 (360.0 worker seconds); 0 of 8 trials ended" in end


@given(
    shares=st.lists(st.floats(0.01, 1.0), max_size=8),
    live=st.lists(st.floats(0.0, 1.0), max_size=8),
    rungs=st.integers(0, 3),
    hours=st.one_of(st.none(), st.floats(0.1, 10)),
)
def test_work_done_is_a_share_that_never_falls_as_trials_train(
    shares: list[float], live: list[float], rungs: int, hours: float | None
) -> None:
    scheduler = {"name": "asha", "rungs": rungs} if rungs else {"name": "none"}
    budget = {"trials": 8} | ({} if hours is None else {"gpu_hours": hours})
    spec = SearchSpec.parse(SPACE | {"scheduler": scheduler, "budget": budget}, source="space.yaml")
    trials = Trials()
    before = 0.0
    for share in shares:
        number = suggest(trials)
        measure(trials, number, share, 0.1)
        done = work_done(spec, trials, {}, None)
        assert done is not None and before <= done <= 1
        before = done
    with_live = work_done(spec, trials, {(number, 0): share for number, share in enumerate(live)}, None)
    assert with_live is not None and before <= with_live <= 1
    left = seconds_left(spec, 60.0, with_live, 0.0)
    assert left is None or left >= 0
    for number in list(trials.trials):
        trials.end(number, "completed")
    if len(trials.trials) == 8:
        assert work_done(spec, trials, {}, None) == 1.0
