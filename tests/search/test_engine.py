"""What the engine runs next: budgets, rungs, exchanges, and resuming from the record after any interruption."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from yolofleet.core.errors import WorkError
from yolofleet.search.engine import MOST_OUTAGES, Engine, Pause, SegmentResult, TrialSegment
from yolofleet.search.feasibility import Screened
from yolofleet.search.history import Observation
from yolofleet.search.schedulers import Halving, Population
from yolofleet.search.searcher import Searcher, SearchProblem
from yolofleet.search.space import Parameters, Values
from yolofleet.search.trials import Measurement, Row, Trial, Trials
from yolofleet.specs.parameters import Parameter
from yolofleet.specs.search_parts import AlgorithmSpec, BudgetSpec, Objective, SchedulerSpec

PARAMETERS = Parameters({"x": Parameter(uniform=(0.0, 1.0)), "size": Parameter(choice=[1, 2, 4])})
AP = [Objective(metric="ap", goal="max")]
Schedule = Callable[[], Halving | Population | None]


def screen(values: Values) -> Screened:
    return Screened({"training_petaflops": float(values["size"])}, {})


def ap(segment: TrialSegment) -> float:
    return float((1 - abs(segment.values["x"] - 0.4)) * segment.share**0.3)


def engine(record: Trials, schedule: Halving | Population | None, algorithm: str = "random", **budget: Any) -> Engine:
    searcher = Searcher(
        SearchProblem(
            PARAMETERS,
            objectives=AP,
            algorithm=AlgorithmSpec(name=algorithm),
            screen=screen,
            seed=3,
        )
    )
    return Engine(record, searcher, BudgetSpec(**budget), schedule)


def halving(measure: str = "share") -> Halving:
    spec = SchedulerSpec(name="asha", reduction=3.0, rungs=2, measure=measure)  # type: ignore[arg-type]
    return Halving(spec, AP, lambda trial: trial.observation.figures["training_petaflops"], 4.0)


def population() -> Population:
    return Population(SchedulerSpec(name="population", rungs=2, quantile=0.25), AP, PARAMETERS, seed=5)


def run(source: Engine, at_a_time: int = 1, most_segments: int = 1000) -> list[TrialSegment]:
    """Run segments, ``at_a_time`` at once, the oldest ending first; returns them as they ended."""
    running: list[TrialSegment] = []
    done: list[TrialSegment] = []
    while len(done) < most_segments:
        while len(running) < at_a_time and isinstance(segment := source.next_segment(), TrialSegment):
            running.append(segment)
        if not running:
            break
        segment = running.pop(0)
        source.complete(
            segment,
            SegmentResult(
                step=int(segment.share * 90), share=segment.share, measured={"ap": ap(segment)}, gpu_seconds=60
            ),
        )
        done.append(segment)
    return done


@pytest.mark.parametrize("at_a_time", [1, 3])
def test_every_trial_of_the_budget_is_trained_once(at_a_time: int) -> None:
    record = Trials()
    segments = run(engine(record, None, trials=7), at_a_time)
    assert sorted(segment.trial for segment in segments) == list(range(7))
    assert all(trial.end == "completed" for trial in record.trials.values())


def test_repeats_are_runs_of_their_own() -> None:
    record = Trials(repeats=3)
    segments = run(engine(record, None, trials=2))
    assert [segment.run_name for segment in segments] == [
        "0000",
        "0000-repeat1",
        "0000-repeat2",
        "0001",
        "0001-repeat1",
        "0001-repeat2",
    ]
    assert record.history()[0].measured == {"ap": pytest.approx(ap(segments[0]))}


def test_hours_end_a_search_and_a_larger_budget_resumes_it() -> None:
    rows: list[Row] = []
    assert len(run(engine(Trials(store_row=rows.append), None, gpu_hours=3 / 60))) == 3
    again = Trials()
    again.replay(rows)
    assert len(run(engine(again, None, gpu_hours=5 / 60))) == 2
    assert len(again.trials) == 5


def test_the_clock_ends_a_search() -> None:
    now = [0.0]
    searcher_engine = engine(Trials(), None, wall_hours=1.0)
    searcher_engine._clock = lambda: now[0]  # type: ignore[method-assign]
    searcher_engine._start = 0.0
    assert isinstance(searcher_engine.next_segment(), TrialSegment)
    now[0] = 3601.0
    assert searcher_engine.next_segment() is Pause.WAIT  # for the one that runs


def test_a_failed_trial_gets_no_more_workers() -> None:
    record = Trials()
    source = engine(record, None, trials=2)
    segment = source.next_segment()
    assert isinstance(segment, TrialSegment)
    source.complete(segment, SegmentResult(failure="the loss is NaN"))
    assert [entry.trial for entry in run(source)] == [1]
    assert record.trials[0].failed


def ended(source: Engine, *results: str) -> None:
    """Let the next segments end one after the other, each with a result ("ok") or with a failure of 60 s."""
    for result in results:
        segment = source.next_segment()
        assert isinstance(segment, TrialSegment)
        failed = SegmentResult(failure=result, gpu_seconds=60)
        source.complete(segment, SegmentResult(1, segment.share, {"ap": 0.5}, 60) if result == "ok" else failed)


def test_failures_use_up_the_hours_and_a_resumed_search_counts_them() -> None:
    rows: list[Row] = []
    record = Trials(store_row=rows.append)
    source = engine(record, None, gpu_hours=4 / 60)
    ended(source, "ok", "NaN", "ok", "NaN")
    assert source.next_segment() is Pause.DONE and record.gpu_seconds == 240
    again = Trials()
    again.replay(json.loads(json.dumps(rows)))
    assert again.gpu_seconds == 240 and engine(again, None, gpu_hours=4 / 60).next_segment() is Pause.DONE
    older = Trials()
    older.replay(
        {key: value for key, value in row.items() if key != "gpu_seconds"} for row in rows if row["kind"] != "measured"
    )
    assert older.gpu_seconds == 0 and [trial.failed for trial in older.trials.values()] == [False, True, False, True]


def test_a_search_ends_when_trials_fail_one_after_the_other_though_others_had_results() -> None:
    source = engine(Trials(), None, gpu_hours=100)
    ended(source, "ok", "a", "b", "ok", "c", "d", "there is no GPU")
    with pytest.raises(WorkError, match=r"3 trials failed one after the other; the last one failed: there is no GPU\."):
        source.next_segment()


def test_the_runs_of_one_trial_fail_as_one_and_cost_what_each_did() -> None:
    record = Trials(repeats=3)
    source = engine(record, None, trials=2)
    segments = [source.next_segment() for _ in range(3)]
    for segment in segments:
        assert isinstance(segment, TrialSegment) and segment.trial == 0
        source.complete(segment, SegmentResult(failure=f"of {segment.repeat}", gpu_seconds=60))
    assert record.trials[0].end == "failed: of 0" and record.gpu_seconds == 180
    assert len(run(source)) == 3, "the other trial's"


def test_an_outage_fails_no_trial_and_one_that_lasts_ends_the_search() -> None:
    rows: list[Row] = []
    record = Trials(store_row=rows.append)
    source = engine(record, None, trials=3)
    away = SegmentResult(outage="s3://bucket: got no answer")
    ended(source, "ok")
    for number in range(2 * MOST_OUTAGES - 1):
        segment = source.next_segment()
        assert isinstance(segment, TrialSegment)
        assert segment.trial == (1 if number < MOST_OUTAGES else 2)
        source.complete(segment, SegmentResult(1, 1.0, {"ap": 0.5}) if number == MOST_OUTAGES - 1 else away)
    source.complete(source.next_segment(), away)  # type: ignore[arg-type]
    with pytest.raises(WorkError, match=rf"in {MOST_OUTAGES} attempts .*s3://bucket: got no answer.*it resumes"):
        source.next_segment()
    assert [trial.end for trial in record.trials.values()] == ["completed", "completed", None]
    again = Trials()
    again.replay(rows)
    assert [segment.trial for segment in run(engine(again, None, trials=3))] == [2]


@pytest.mark.parametrize("measure", ["share", "compute"])
def test_halving_spends_most_on_the_best(measure: str) -> None:
    record = Trials()
    segments = run(engine(record, halving(measure), trials=27))
    ends = [trial for trial in record.trials.values() if trial.end == "completed"]
    spent = sum(
        segment.share - max((e.share for e in segments[:i] if e.trial == segment.trial), default=0)
        for i, segment in enumerate(segments)
    )
    assert 1 <= len(ends) <= 14
    assert spent < 27 * 0.6
    best = min(record.trials.values(), key=lambda trial: abs(trial.values["x"] - 0.4))
    assert best.end == "completed"
    stopped = [trial for trial in record.trials.values() if str(trial.end).startswith("stopped")]
    assert len(stopped) + len(ends) == 27
    assert "not among the best of rung" in str(stopped[0].end)


def test_rungs_by_compute_cost_every_size_the_same() -> None:
    schedule = halving("compute")
    record = Trials()
    run(engine(record, schedule, trials=12))
    for trial in record.trials.values():
        size = trial.observation.figures["training_petaflops"]
        assert schedule.share(trial, 0) * size == pytest.approx(min(4 / 9, size))


def test_a_population_copies_the_best_and_changes_a_little() -> None:
    rows: list[Row] = []
    record = Trials(store_row=rows.append)
    cloned: list[TrialSegment] = []
    source = engine(record, population(), trials=8)
    source._clone = cloned.append
    segments = run(source)
    assert len(segments) == 8 * 3
    changed = [trial for trial in record.trials.values() if trial.exchanges]
    assert changed
    for segment in cloned:
        assert segment.source is not None
        assert segment.source.step in (30, 60)
        trial = record.trials[segment.trial]
        assert segment.run_name.endswith(f"exchange{trial.exchanges[-1].number}") or segment.run_name.endswith(
            "exchange1"
        )
    stored = [(row["trial"], row["exchange"], row["donor"]) for row in rows if "donor" in row]  # the key of old records
    exchanges = [(trial.number, entry.number, entry.source) for trial in changed for entry in trial.exchanges]
    assert sorted(stored) == sorted(exchanges)
    first = [trial.exchanges[0] for trial in changed if trial.exchanges[0].number == 1]
    assert len(first) == 2  # a quarter of eight
    for exchange in first:
        copied = record.trials[exchange.source]
        assert not any(entry.number == 1 for entry in copied.exchanges)
        assert exchange.values["x"] == pytest.approx(copied.observation.values["x"] * 0.8) or exchange.values[
            "x"
        ] == pytest.approx(min(copied.observation.values["x"] * 1.25, 1.0))


def test_a_member_without_the_metric_copies_and_is_never_copied() -> None:
    members = [
        Trial(
            number,
            Observation(values={"x": number / 4, "size": 1}, figures={}),
            [Measurement(0, 1 / 3, 30, {"seconds": float(number)} if number else {}, 1.0)],
        )
        for number in range(4)
    ]
    fastest = [Objective(metric="seconds", goal="min")]
    spec = SchedulerSpec(name="population", rungs=2, quantile=0.25)
    changed = Population(spec, fastest, PARAMETERS, seed=5).exchanges(members, 1)
    assert {number: exchange.source for number, exchange in changed.items()} == {0: 1}


@pytest.mark.parametrize(
    ("schedule", "algorithm"),
    [(lambda: None, "gaussian_process"), (lambda: None, "tpe"), (halving, "random"), (population, "random")],
    ids=["gaussian process", "tpe", "halving", "population"],
)
def test_a_driver_killed_five_times_leaves_the_same_trials_none_twice(schedule: Schedule, algorithm: str) -> None:
    whole = Trials()
    run(engine(whole, schedule(), algorithm, trials=12))
    rows: list[Row] = []
    done: list[tuple[int, str, float]] = []
    chance = random.Random(1)
    for start in range(6):
        record = Trials(store_row=rows.append)
        record.replay(json.loads(json.dumps(rows)))
        most = chance.randrange(1, 4) if start < 5 else 1000
        source = engine(record, schedule(), algorithm, trials=12)
        done += [(segment.trial, segment.run_name, segment.share) for segment in run(source, most_segments=most)]
        if start < 5:
            source.next_segment()  # begun, then lost with its driver
    assert len(done) == len(set(done))
    assert {t.number: t.values for t in record.trials.values()} == {t.number: t.values for t in whole.trials.values()}
    assert {t.number: t.end for t in record.trials.values()} == {t.number: t.end for t in whole.trials.values()}
