"""Milestones of a run; counted without a walk, they are those that the walk meets."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolofleet.specs.job import JobSpec
from yolofleet.training.loop.milestones import Milestones

counts = st.integers(1, 50)
periods = st.fractions(Fraction(1, 4), 60, max_denominator=48)
runs = st.builds(Milestones, st.integers(1, 400), counts, counts, periods, st.frozensets(st.integers(1, 400)))


@given(runs)
def test_milestones(milestones: Milestones) -> None:
    steps = range(1, milestones.num_steps + 1)
    evaluated = [step for step in steps if milestones.evaluates(step)]
    period = milestones.evaluation_every_steps
    assert evaluated[-1] == milestones.num_steps
    assert len(evaluated) <= milestones.num_steps / min(period, milestones.num_steps) + 2 + len(milestones.earlier_ends)
    assert all(milestones.saves(step) for step in evaluated)
    assert milestones.logs(milestones.num_steps)
    gaps = [b - a for a, b in zip([0, *evaluated], evaluated, strict=False)]
    assert max(gaps) <= period + 1
    assert all(milestones.evaluates(math.ceil(n * period)) for n in range(1, math.floor(len(steps) / period) + 1))


@given(runs, st.integers(0, 400), st.integers(0, 400))
def test_counts_are_those_of_the_walk(milestones: Milestones, one: int, other: int) -> None:
    after, until = min(one, other), max(one, other)
    steps = range(after + 1, until + 1)
    assert milestones.num_evaluations(after, until) == sum(map(milestones.evaluates, steps))
    assert milestones.num_saves(after, until) == sum(map(milestones.saves, steps))
    if one < milestones.num_steps:
        walked = next(step for step in range(one + 1, milestones.num_steps + 1) if milestones.evaluates(step))
        assert milestones.next_evaluation(one + 1) == walked


@pytest.mark.parametrize("every", [0.1, 0.3, 1.0, 2.5])
def test_an_epoch_ends_at_the_step_that_completes_it_however_its_length_is_rounded(every: float) -> None:
    job = JobSpec.parse(
        {
            "name": "long",
            "storage": "runs",
            "data": {"train": "data/train", "val": "data/val", "image_size": 64},
            "model": {"name": "yolov7-tiny"},
            "global_batch_size": 24,
            "micro_batch_size": 8,
            "epochs": 1_000_000,
            "evaluation": {"every_epochs": every},
        },
        source="job",
    )
    milestones = Milestones.of_job(job, 1001)
    tenths = round(every * 10)
    for number in (*range(1, 200), 10**5 - 1, 10**5, 399_999):
        due = -(-number * tenths * 1001 // 240)
        assert milestones.evaluates(due) and not milestones.evaluates(due - 1)
    evaluations = milestones.num_evaluations(0, milestones.num_steps)
    assert evaluations == 10_000_000 // tenths + (10_000_000 % tenths > 0)
