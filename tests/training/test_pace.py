"""Where the time of a step goes adds up, evaluations have none of it, and a slow worker is named once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from yolofleet.training.loop import pace as module
from yolofleet.training.loop.pace import (
    EVALUATION,
    OTHER,
    SLOW_READINGS,
    STAGES,
    Pace,
    find_excess,
    find_peak,
    known_teraflops,
)
from yolofleet.training.loop.worker_group import WorkerGroup


class Clock:
    """Host time that only a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


class Others(WorkerGroup):
    """The first of two workers; ``add`` stands for what the other sends."""

    add: Callable[[torch.Tensor], None]

    def sum(self, tensor: torch.Tensor) -> None:
        self.add(tensor)

    def concatenate_texts(self, text: str) -> str:
        return text + "other\n"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def spend(pace: Pace, clock: Clock, stages: list[tuple[str, float]]) -> None:
    for stage, seconds in stages:
        pace.enter(stage)
        clock.now += seconds
    pace.enter(OTHER)


@given(st.lists(st.tuples(st.sampled_from([*STAGES, OTHER, EVALUATION]), st.floats(0.001, 10)), min_size=1))
def test_shares_are_those_of_the_time_that_was_no_evaluation(stages: list[tuple[str, float]]) -> None:
    clock, patch = Clock(), pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr(module, "time", clock)
        pace = Pace(WorkerGroup(), flops_per_pixel=1e3, peak_flops=1e9)
        spend(pace, clock, stages)
        pace.count_step(8, (10, 20))
        pace.begin()
        row, slow = pace.take()
    total = sum(seconds for stage, seconds in stages if stage != EVALUATION)
    for stage in STAGES:
        spent = sum(seconds for name, seconds in stages if name == stage)
        assert row[f"{stage}_share"] == pytest.approx(spent / total if total else 0)
    if total:
        assert row["samples_per_second"] == pytest.approx(8 / total)
        assert row["model_flops_utilization"] == pytest.approx(3 * 1e3 * 8 * 200 / total / 1e9)
    assert slow is None and "slowest_rank" not in row, "one worker is never slow"


def test_every_reading_starts_anew(clock: Clock) -> None:
    pace = Pace(WorkerGroup())
    spend(pace, clock, [("forward", 3.0), (OTHER, 1.0)])
    pace.begin()
    assert pace.take()[0]["forward_share"] == 0.75
    spend(pace, clock, [("loss", 1.0)])
    pace.begin()
    row = pace.take()[0]
    assert (row["forward_share"], row["loss_share"], row["samples_per_second"]) == (0, 1, 0)


def test_a_slow_worker_is_named_once_with_its_host_and_stage(clock: Clock) -> None:
    group = Others(rank=0, world_size=2)
    pace = Pace(group, num_owned=2)
    waits, forward = STAGES.index("data_wait"), STAGES.index("forward")

    def other(table: torch.Tensor) -> None:
        """Both need 4 s in all; the first waits a half of them for the other, which waits 2 s for data."""
        table[1, waits], table[1, forward], table[1, -2], table[1, -1] = 2.0, 2.0, 4.0, 2

    object.__setattr__(group, "add", other)
    found = []
    for _ in range(SLOW_READINGS + 2):
        spend(pace, clock, [("forward", 2.0), ("exchange", 2.0)])
        pace.begin()
        row, slow = pace.take()
        found.append(slow)
    assert row["slowest_rank"] == 1 and row["slowest_rank_excess"] == pytest.approx(1.0)
    assert row["data_wait_share"] == pytest.approx(0.25) and row["exchange_share"] == pytest.approx(0.25)
    assert [index for index, slow in enumerate(found) if slow] == [SLOW_READINGS - 1]
    assert found[SLOW_READINGS - 1] == {"rank": 1, "host": "other", "excess_percent": 100, "stage": "data wait"}


def test_the_stage_of_a_slow_worker_is_what_a_micro_batch_waits_for(clock: Clock) -> None:
    """Of its two micro-batches each takes as long to pass forward as the other worker's one, and waits for data."""
    group = Others(rank=0, world_size=2)
    pace = Pace(group, num_owned=1)
    waits, forward = STAGES.index("data_wait"), STAGES.index("forward")

    def other(table: torch.Tensor) -> None:
        table[1, waits], table[1, forward], table[1, -2], table[1, -1] = 1.5, 4.0, 5.5, 2

    object.__setattr__(group, "add", other)
    for _ in range(SLOW_READINGS):
        spend(pace, clock, [("forward", 2.0), ("exchange", 3.5)])
        pace.begin()
        slow = pace.take()[1]
    assert slow == {"rank": 1, "host": "other", "excess_percent": 38, "stage": "data wait"}


def test_a_worker_with_more_micro_batches_is_not_slow(clock: Clock) -> None:
    group = Others(rank=0, world_size=2)
    pace = Pace(group, num_owned=1)

    def other(table: torch.Tensor) -> None:
        table[1, STAGES.index("forward")], table[1, -2], table[1, -1] = 4.0, 4.0, 2

    object.__setattr__(group, "add", other)
    spend(pace, clock, [("forward", 2.0), ("exchange", 2.0)])
    pace.begin()
    assert pace.take()[0]["slowest_rank_excess"] == pytest.approx(0)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=32))
def test_excess_is_above_the_usual_worker(seconds: list[float]) -> None:
    excess = find_excess(seconds)
    assert sum(more > 1e-9 for more in excess) <= len(seconds) // 2
    assert max(range(len(seconds)), key=seconds.__getitem__) in [
        rank for rank, more in enumerate(excess) if more == max(excess)
    ]


@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10G", None),
        ("NVIDIA L40", None),
    ],
)
def test_peaks_are_those_of_the_data_sheets(name: str, half: float | None) -> None:
    assert known_teraflops(name, torch.bfloat16) == known_teraflops(name, torch.float16) == half
    assert known_teraflops(name, torch.float64) is None


def test_the_peak_of_a_cpu_is_measured() -> None:
    peak = find_peak(torch.device("cpu"), torch.float32)
    assert peak.source == "measured" and peak.flops > 1e8
