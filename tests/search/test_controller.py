"""How many trials run at a time, and what a segment's process sends back."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest

from yolofleet.core.errors import UserError
from yolofleet.search.controller import FINISHED, EngineSearch, concurrency, read_result
from yolofleet.search.engine import Engine, Pause, SegmentResult, TrialSegment
from yolofleet.specs.cluster import ClusterSpec
from yolofleet.specs.job import JobSpec
from yolofleet.specs.search import SearchSpec
from yolofleet.training.supervision.admission import Admission

MakeSpec = Callable[..., SearchSpec]


@pytest.mark.parametrize(
    ("workers", "slots", "asked", "expected"),
    [(1, 4, None, 4), (1, 4, 2, 2), (2, 5, None, 2), ((1, 4), 3, None, 1), (4, 4, None, 1)],
)
def test_every_trial_has_all_its_workers(
    make_spec: MakeSpec, workers: int | tuple[int, int], slots: int, asked: int | None, expected: int
) -> None:
    spec = make_spec(**({} if asked is None else {"concurrency": asked}))
    assert concurrency(spec, ClusterSpec(workers=workers), slots) == expected


def test_more_trials_than_fit_are_refused(make_spec: MakeSpec) -> None:
    with pytest.raises(UserError, match=r"concurrency 3: this machine has room for 2 trials at a time, of 2 workers"):
        concurrency(make_spec(concurrency=3), ClusterSpec(workers=2), 4, where="this machine")


def test_a_leg_whose_process_was_lost_too_often_has_failed() -> None:
    assert "lost too often" in str(read_result(None).failure)
    assert read_result('{"step": 4, "share": 0.5, "measured": {"val_AP": 0.1}, "gpu_seconds": 2.0}').step == 4


class Slots:
    """An admission with room for so many trials, that counts what it is asked to keep."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.kept: list[int] = []

    def begin_trial(self, running: int) -> bool:
        return running < self.most

    def end_trial(self, running: int) -> None:
        self.kept.append(running)


class Segments:
    """An engine of three trials, one segment each."""

    def __init__(self) -> None:
        self.left = list(range(3))
        self.running = 0

    def next_segment(self) -> TrialSegment | Pause:
        if not self.left:
            return Pause.WAIT if self.running else Pause.DONE
        self.running += 1
        return TrialSegment(self.left.pop(0), 0, {}, "run", 1.0)

    def complete(self, segment: TrialSegment, result: SegmentResult) -> None:
        self.running -= 1


def test_a_search_begins_no_more_trials_than_it_has_slots_and_gives_each_back_at_its_end(make_spec: MakeSpec) -> None:
    job = JobSpec.parse(make_spec().document()["job"], source="job")
    search = EngineSearch(cast(Engine, Segments()), lambda segment: job, [], lambda *ended: None)
    slots = Slots(2)
    search.admission = cast(Admission, slots)
    assert [search.suggest(name) is not None for name in "abc"] == [True, True, False], "the third has to wait"
    slots.most = 1
    search.on_trial_complete("a", None)
    assert slots.kept == [1] and search.suggest("c") is None, "others wait: what has ended is not replaced"
    search.on_trial_complete("b", None)
    assert search.suggest("c") is not None
    slots.most = 2
    assert search.suggest("d") is None and slots.kept == [1, 0, 1], "it keeps nothing for a segment that there is not"
    search.on_trial_complete("c", None)
    assert search.suggest("d") == FINISHED and search.done
