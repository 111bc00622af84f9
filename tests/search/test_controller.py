"""How many trials run at a time, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from yolofleet.core.errors import UserError
from yolofleet.search.controller import concurrency, result_of
from yolofleet.specs.cluster import ClusterSpec
from yolofleet.specs.search import SearchSpec

Written = Callable[..., SearchSpec]


@pytest.mark.parametrize(
    ("workers", "places", "asked", "expected"),
    [(1, 4, None, 4), (1, 4, 2, 2), (2, 5, None, 2), ((1, 4), 3, None, 1), (4, 4, None, 1)],
)
def test_every_trial_has_all_its_workers(
    written: Written, workers: int | tuple[int, int], places: int, asked: int | None, expected: int
) -> None:
    spec = written(**({} if asked is None else {"concurrency": asked}))
    assert concurrency(spec, ClusterSpec(workers=workers), places) == expected


def test_more_trials_than_fit_are_refused(written: Written) -> None:
    with pytest.raises(UserError, match=r"concurrency 3: this machine has room for 2 trials at a time, of 2 workers"):
        concurrency(written(concurrency=3), ClusterSpec(workers=2), 4, described="this machine")


def test_a_leg_whose_process_was_lost_too_often_has_failed() -> None:
    assert "lost too often" in str(result_of(None, "actor died").failure)
    assert result_of('{"step": 4, "share": 0.5, "measured": {"val_AP": 0.1}, "gpu_seconds": 2.0}', None).step == 4
