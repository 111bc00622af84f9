from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time

import pytest

from yolofleet.data.stream import ordered_map


@pytest.mark.parametrize("num_threads", [0, 1, 3])
@pytest.mark.parametrize("ahead", [0, 1, 7])
def test_results_come_in_order(num_threads: int, ahead: int) -> None:
    def work(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    results = ordered_map(work, range(20), num_threads=num_threads, ahead=ahead, name="test")
    assert list(results) == [item * item for item in range(20)]


@pytest.mark.parametrize("num_threads", [0, 2])
def test_an_error_is_raised_instead_of_its_result(num_threads: int) -> None:
    results = ordered_map(lambda item: 10 // (3 - item), range(9), num_threads=num_threads, ahead=4, name="test")
    assert [next(results) for _ in range(3)] == [3, 5, 10]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_it_works_only_so_far_ahead_and_ends_its_threads() -> None:
    read = itertools.count()
    seen: list[int] = []

    def items() -> itertools.count[int]:
        for number in read:
            seen.append(number)
            yield number

    results = ordered_map(lambda item: item, items(), num_threads=2, ahead=5, name="test-ahead")
    assert next(results) == 0 and len(seen) == 6
    results.close()  # type: ignore[attr-defined]
    time.sleep(0.1)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("test-ahead")]


def test_a_thread_that_waits_does_not_keep_the_program_alive() -> None:
    code = """
import time
from yolofleet.data.stream import ordered_map
results = ordered_map(lambda seconds: time.sleep(seconds), [0, 60, 60], num_threads=2, ahead=2, name="x")
next(results)
"""
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50)
    assert time.monotonic() - started < 50
