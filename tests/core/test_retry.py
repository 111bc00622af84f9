"""Retries: what is tried again, for how long, with which pauses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolofleet.core import retry as retry_module
from yolofleet.core.retry import FIRST_PAUSE_SECONDS, JITTER, LONGEST_PAUSE_SECONDS, retry


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        monkeypatch.setattr(retry_module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(retry_module.time, "sleep", self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@given(failures=st.integers(0, 12), patience=st.floats(0, 200))
def test_it_tries_until_it_succeeds_or_the_patience_is_over(failures: int, patience: float) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        clock = Clock(monkeypatch)
        calls: list[float] = []
        told: list[float] = []

        def action() -> str:
            calls.append(clock.now)
            if len(calls) <= failures:
                raise OSError(f"attempt {len(calls)}")
            return "done"

        try:
            result = retry(
                action,
                patience_seconds=patience,
                is_transient=lambda error: isinstance(error, OSError),
                on_retry=lambda error, pause: told.append(pause),
            )
        except OSError as error:
            result = str(error)
        assert calls[0] == 0
        wanted = [min(FIRST_PAUSE_SECONDS * 2**i, LONGEST_PAUSE_SECONDS) for i in range(len(told))]
        assert told == pytest.approx(wanted)
        for pause, planned in zip(clock.pauses, told, strict=True):
            assert (1 - JITTER) * planned <= pause <= (1 + JITTER) * planned
        if result == "done":
            assert len(calls) == failures + 1
        else:
            assert result == f"attempt {len(calls)}" and len(calls) <= failures
            following = min(FIRST_PAUSE_SECONDS * 2 ** len(told), LONGEST_PAUSE_SECONDS)
            assert clock.now + following > patience, "it gave up although there was time for one more attempt"
        assert all(begin <= patience * (1 + JITTER) + JITTER * LONGEST_PAUSE_SECONDS for begin in calls)


def test_an_attempt_may_take_longer_than_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, began = Clock(monkeypatch), list[float]()

    def fetch_slowly() -> str:
        began.append(clock.now)
        clock.now += 30
        if len(began) < 2:
            raise OSError("reset")
        return "done"

    def call(**options: bool) -> str:
        return retry(fetch_slowly, patience_seconds=20, is_transient=lambda error: True, **options)

    with pytest.raises(OSError, match="reset"):
        call()
    began.clear()
    assert call(is_from_first_failure=True) == "done" and len(began) == 2


def test_other_failures_are_raised_at_once() -> None:
    calls = []

    def action() -> None:
        calls.append(1)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        retry(action, patience_seconds=60, is_transient=lambda error: isinstance(error, OSError))
    assert len(calls) == 1


def test_pauses_double_from_a_fifth_of_a_second_to_ten_seconds() -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        clock = Clock(monkeypatch)
        planned: list[float] = []

        def action() -> None:
            raise OSError("no")

        with pytest.raises(OSError, match="no"):
            retry(action, patience_seconds=60, is_transient=lambda error: True, on_retry=lambda _, s: planned.append(s))
        assert planned[:8] == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0])
        assert all(0.8 * wanted <= pause <= 1.2 * wanted for pause, wanted in zip(clock.pauses, planned, strict=True))
