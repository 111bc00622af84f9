"""Successive halving promotes exactly the trials that the published algorithm does, in the same order."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.test_engine import AP, engine, run
from yolofleet.search.engine import SegmentResult, TrialSegment
from yolofleet.search.history import Observation
from yolofleet.search.schedulers import Halving
from yolofleet.search.trials import Measurement, Trial, Trials
from yolofleet.specs.search_parts import Objective, SchedulerSpec


def halving(reduction: float, rungs: int, objectives: list[Objective] = AP) -> Halving:
    return Halving(SchedulerSpec(name="asha", reduction=reduction, rungs=rungs), objectives, lambda trial: 1.0, 1.0)


Pick = Callable[[int], int]
"""Returns which of so many running jobs ends next."""


def oldest(count: int) -> int:
    return 0


def published(
    worth: Sequence[float], reduction: int, rungs: int, workers: int, pick: Pick = oldest
) -> list[tuple[int, int]]:
    """Return the jobs of algorithm 2 of Li et al. 2020, as (trial, rung) in the order of their ends.

    Rung ``rungs`` is the end of training. A free worker takes the best trial of the top 1 / reduction of a rung that
    was not promoted from it yet, the highest rung first, or else a new trial. Of two that are worth the same, the one
    that was suggested first is the better one.
    """
    results: list[list[int]] = [[] for _ in range(rungs + 1)]
    promoted: list[set[int]] = [set() for _ in range(rungs)]
    running: list[tuple[int, int]] = []
    ended: list[tuple[int, int]] = []
    num_begun = 0

    def job() -> tuple[int, int] | None:
        nonlocal num_begun
        for rung in reversed(range(rungs)):
            best = sorted(results[rung], key=lambda trial: (-worth[trial], trial))[: len(results[rung]) // reduction]
            waiting = [trial for trial in best if trial not in promoted[rung]]
            if waiting:
                promoted[rung].add(waiting[0])
                return waiting[0], rung + 1
        if num_begun == len(worth):
            return None
        num_begun += 1
        return num_begun - 1, 0

    while True:
        while len(running) < workers and (new := job()) is not None:
            running.append(new)
        if not running:
            return ended
        trial, rung = running.pop(pick(len(running)))
        results[rung].append(trial)
        ended.append((trial, rung))


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize(("reduction", "rungs", "trials"), [(2, 3, 20), (3, 2, 40), (4, 1, 17), (3, 3, 81)])
def test_promotions_are_those_of_the_published_algorithm(reduction: int, rungs: int, trials: int, workers: int) -> None:
    record = Trials()
    segments = run(engine(record, halving(reduction, rungs), trials=trials), workers)
    worth = [-abs(record.trials[number].values["x"] - 0.4) for number in range(trials)]
    shares = {round(float(reduction) ** (rung - rungs), 9): rung for rung in range(rungs + 1)}
    promotions = [(segment.trial, shares[round(segment.share, 9)]) for segment in segments]
    expected = published(worth, reduction, rungs, workers)
    assert Counter(rung for _, rung in promotions) == Counter(rung for _, rung in expected)
    assert promotions == expected
    ends = {trial.number for trial in record.trials.values() if trial.end == "completed"}
    assert ends == {trial for trial, rung in expected if rung == rungs}


@given(
    worth=st.lists(st.integers(0, 9), min_size=1, max_size=40),
    reduction=st.integers(2, 4),
    rungs=st.integers(1, 3),
    workers=st.integers(1, 6),
    seed=st.integers(0, 2**32),
)
def test_promotions_are_exact_whatever_ends_first_and_whatever_is_equal(
    worth: list[int], reduction: int, rungs: int, workers: int, seed: int
) -> None:
    expected = published(worth, reduction, rungs, workers, random.Random(seed).randrange)
    chance = random.Random(seed)
    record = Trials()
    source = engine(record, halving(reduction, rungs), trials=len(worth))
    running: list[TrialSegment] = []
    ended: list[tuple[int, int]] = []
    while True:
        while len(running) < workers and isinstance(segment := source.next_segment(), TrialSegment):
            running.append(segment)
        if not running:
            break
        segment = running.pop(chance.randrange(len(running)))
        rung = next(r for r in range(rungs + 1) if segment.share == pytest.approx(reduction ** float(r - rungs)))
        ap = {"ap": float(worth[segment.trial])}
        source.complete(segment, SegmentResult(step=round(90 * segment.share), share=segment.share, measured=ap))
        ended.append((segment.trial, rung))
    assert ended[: len(expected)] == expected
    rest = ended[len(expected) :]
    if any(rung == rungs for _, rung in expected):
        assert rest == []
    else:  # so that a search has a result, the best trial of the highest rung trains to its end
        top = max(rung for _, rung in expected)
        best = min((trial for trial, rung in expected if rung == top), key=lambda trial: (-worth[trial], trial))
        assert rest == [(best, rung) for rung in range(top + 1, rungs + 1)]


def trial(number: int, *measurements: tuple[float, float], end: str | None = None, **figures: float) -> Trial:
    """A trial with its AP at shares of its training."""
    measured = [Measurement(0, share, round(share * 90), {"ap": ap}, 1.0) for share, ap in measurements]
    return Trial(number, Observation(values={}, figures=figures), measured, end=end)


def test_a_promoted_trial_still_counts_among_the_best_of_its_rung() -> None:
    trials = [trial(number, (1 / 3, 1 - number / 10)) for number in range(6)]
    schedule = halving(3.0, 1)
    assert schedule.next_promotion(trials) is trials[0]
    assert schedule.next_promotion(trials, running={0}) is trials[1]
    assert schedule.next_promotion(trials, running={0, 1}) is None


def test_a_failed_trial_leaves_its_rung_and_an_ended_one_stays_in_it() -> None:
    failed = trial(0, (0.5, 0.9), end="failed: out of memory")
    ended = [trial(1, (0.5, 0.8), end="stopped: not among the best of rung 1"), trial(2, (1.0, 0.7), end="completed")]
    waiting = [trial(number, (0.5, 1 / number)) for number in range(3, 7)]
    schedule = halving(2.0, 1)
    assert schedule.next_promotion([failed, *ended, *waiting]) is waiting[0]  # the third of six
    assert schedule.next_promotion([failed, *ended, *waiting[:3]]) is None  # the best two of five have ended
    assert schedule.next_promotion([]) is None


def test_the_highest_rung_is_promoted_first() -> None:
    near = [trial(number, (1 / 4, 0.9 - number / 10)) for number in range(4)]
    far = [trial(number, (1 / 4, 0.3), (1 / 2, 0.4)) for number in range(4, 6)]
    schedule = halving(2.0, 2)
    assert schedule.next_promotion([*near, *far]) is far[0]
    assert schedule.next_promotion([*near, far[0]]) is near[0]
    assert [schedule.rung(entry) for entry in (near[0], far[0], trial(9), trial(9, (1.0, 0.1)))] == [1, 2, 0, 3]


def test_trials_without_the_metric_are_last_and_figures_count_as_asked() -> None:
    schedule = halving(2.0, 1, [Objective(metric="gflops", goal="min")])
    small, large = trial(0, (0.5, 0.1), gflops=3.0), trial(1, (0.5, 0.9), gflops=9.0)
    assert schedule.next_promotion([large, small]) is small
    unknown = trial(2, (0.5, 0.99))
    assert schedule.next_promotion([unknown, large]) is large
    both = halving(2.0, 1, [*AP, Objective(metric="gflops", goal="min")])
    beaten = trial(3, (0.5, 0.05), gflops=4.0)
    assert [both.next_promotion([beaten, other]) for other in (small, large)] == [small, large]


def test_the_best_of_the_highest_rung_trains_on_where_no_trial_has_ended() -> None:
    schedule = halving(3.0, 2)
    near, far = trial(0, (1 / 9, 0.05)), [trial(number, (1 / 9, 0.1), (1 / 3, number / 10)) for number in (1, 2)]
    assert schedule.next_promotion([near, *far]) is None  # the best of three has gone on
    assert schedule.best_waiting([near, *far]) is far[1]
    assert schedule.best_waiting([near]) is near
    assert schedule.best_waiting([trial(0), trial(1, (1 / 9, 0.5), end="failed: out of memory")]) is None
    assert schedule.best_waiting([near, *far, trial(3, (1.0, 0.1))]) is None


def test_rungs_by_compute_end_at_the_largest_and_small_models_may_be_over_before() -> None:
    spec = SchedulerSpec(name="asha", reduction=2.0, rungs=2, measure="compute")
    schedule = Halving(spec, AP, lambda entry: entry.observation.figures["petaflops"], 8.0)
    shares = [[schedule.share(trial(0, petaflops=size), rung) for rung in range(3)] for size in (8.0, 4.0, 1.0)]
    assert shares == [[0.25, 0.5, 1.0], [0.5, 1.0, 1.0], [1.0, 1.0, 1.0]]
