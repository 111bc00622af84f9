"""How many trials run at a time, and what a segment's process sends back."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from yolofleet.core.errors import UserError
from yolofleet.search.controller import concurrency, read_result
from yolofleet.specs.cluster import ClusterSpec
from yolofleet.specs.search import SearchSpec

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
