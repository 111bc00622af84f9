"""Background loops: they repeat, warn once a row of failures, and end with their owner."""

from __future__ import annotations

import logging
import threading

import pytest

from yolofleet.core.background import BackgroundLoop, EndLoop, within


def test_a_loop_repeats_until_it_is_closed() -> None:
    calls = threading.Semaphore(0)
    with BackgroundLoop(calls.release, seconds=0.01, name="test", warning="no"):
        assert all(calls.acquire(timeout=5) for _ in range(3))
    assert all(thread.name != "test" for thread in threading.enumerate())


def test_each_row_of_failures_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    outcomes = iter([None, OSError("first"), OSError("again"), None, OSError("later"), EndLoop()])
    over = threading.Event()

    def action() -> None:
        outcome = next(outcomes)
        if isinstance(outcome, EndLoop):
            over.set()
        if outcome is not None:
            raise outcome

    with (
        caplog.at_level(logging.WARNING),
        BackgroundLoop(action, seconds=0.01, name="test", warning="it cannot be done"),
    ):
        assert over.wait(timeout=5)
    assert [record.getMessage() for record in caplog.records] == [
        "it cannot be done: first",
        "it cannot be done: later",
    ]


def test_the_first_call_can_come_at_once_and_closing_does_not_wait_for_the_pause() -> None:
    called = threading.Event()
    loop = BackgroundLoop(called.set, seconds=3600, name="test", warning="no", at_once=True)
    loop.start()
    assert called.wait(timeout=5)
    loop.close()
    assert not loop._thread.is_alive()


def test_a_call_within_its_time_returns_or_raises_what_it_does() -> None:
    assert within(30, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(30, lambda: 1 / 0)


def test_a_call_that_hangs_is_left_behind() -> None:
    release = threading.Event()
    with pytest.raises(TimeoutError):
        within(0.05, lambda: release.wait(30))
    release.set()
