"""The fetchers of a process: what they do next, and how many of them there are."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.remote_shards import wait_until
from yolofleet.core.errors import UserError
from yolofleet.data import fetchers as fetchers_module
from yolofleet.data.fetchers import LEAST_GAIN, NUM_RESTS, FetcherCount, Fetchers, Outcome, process_share


def test_they_survive_failures_and_forget_what_is_over() -> None:
    fetched: list[int] = []
    begun, gate = threading.Event(), threading.Event()

    def fetch(shard: int) -> Outcome:
        begun.set()
        gate.wait(10)
        if shard == 1:
            raise UserError("no such shard")
        fetched.append(shard)
        return Outcome.DONE

    fetchers = Fetchers(FetcherCount(1, 1))
    fetchers.ask({str(shard): partial(fetch, shard) for shard in (0, 1, 2)})
    assert begun.wait(10)
    fetchers.ask({str(shard): partial(fetch, shard) for shard in (0, 1, 3)})  # 0 is being fetched; 2 is not wanted
    gate.set()
    wait_until(lambda: len(fetched) == 2)
    assert fetched == [0, 3]


@pytest.mark.parametrize("num_fetchers", [1, 3])
def test_the_first_comes_first_and_no_more_than_allowed_run(num_fetchers: int) -> None:
    begun: list[int] = []
    lock = threading.Lock()
    running, most_running = 0, 0

    def fetch(shard: int) -> Outcome:
        nonlocal running, most_running
        with lock:
            begun.append(shard)
            running += 1
            most_running = max(most_running, running)
        time.sleep(0.005)
        with lock:
            running -= 1
        return Outcome.DONE

    Fetchers(FetcherCount(num_fetchers, num_fetchers)).ask({str(shard): partial(fetch, shard) for shard in range(20)})
    wait_until(lambda: len(begun) == 20 and not running)
    assert most_running <= num_fetchers
    assert all(abs(place - shard) < num_fetchers for place, shard in enumerate(begun))


def test_what_is_busy_is_passed_over_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetchers_module, "PAUSE_SECONDS", dict.fromkeys(Outcome, 0.05))
    attempts: list[int] = []

    def fetch(shard: int) -> Outcome:
        attempts.append(shard)
        return Outcome.BUSY if attempts.count(shard) < 3 and shard == 0 else Outcome.DONE

    Fetchers(FetcherCount(1, 1)).ask({str(shard): partial(fetch, shard) for shard in range(3)})
    wait_until(lambda: len(attempts) == 5)
    assert attempts == [0, 1, 2, 0, 0]


def test_nothing_else_is_tried_while_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetchers_module, "PAUSE_SECONDS", dict.fromkeys(Outcome, 0.05))
    attempts: list[int] = []

    def fetch(shard: int) -> Outcome:
        attempts.append(shard)
        return Outcome.FULL if len(attempts) < 4 else Outcome.DONE

    Fetchers(FetcherCount(1, 1)).ask({str(shard): partial(fetch, shard) for shard in range(3)})
    wait_until(lambda: len(attempts) == 6)
    assert attempts == [0, 0, 0, 0, 1, 2]


@pytest.mark.parametrize(("limit", "most"), [(1, 32), (8, 32), (100, 32), (8, 4)])
def test_more_fetchers_run_as_long_as_they_bring_bandwidth(limit: int, most: int) -> None:
    """A server that gives each connection one unit, and ``limit`` in all."""
    count = FetcherCount(4, most)
    seen = []
    for _ in range(5 * NUM_RESTS):
        count.observe(min(count.value, limit))
        seen.append(count.value)
    assert 4 <= min(seen) and max(seen) <= most
    late = sorted(seen[NUM_RESTS:])
    usual = late[len(late) // 2]
    assert min(usual, limit) >= min(most, limit) / LEAST_GAIN, "the bandwidth is used"
    assert usual <= max(4, 2 * limit), "and connections that bring nothing are given up"


@given(st.integers(1, 64), st.integers(1, 12))
def test_the_workers_of_a_node_share_its_fetchers(fetchers: int, num_workers: int) -> None:
    shares = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_WORLD_SIZE", str(num_workers))
        for number in range(num_workers):
            patch.setenv("LOCAL_RANK", str(number))
            shares.append(process_share(fetchers))
    assert sum(shares) == max(fetchers, num_workers) and max(shares) - min(shares) <= 1


def test_a_process_of_no_group_has_all_fetchers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert process_share(7) == 7 and FetcherCount.of_process(7).value == 7
    assert FetcherCount.of_process(None).value > 1


def test_the_bandwidth_is_measured_while_all_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """With tasks for all, more fetchers bring more; without tasks nothing is concluded."""
    monkeypatch.setattr(fetchers_module, "MEASURED_SECONDS", 0.05)
    count = FetcherCount(1, 4)
    fetchers = Fetchers(count)

    def fetch() -> Outcome:
        time.sleep(0.005)
        fetchers.note_bytes(1000)
        return Outcome.DONE

    fetchers.ask({"one": fetch})
    time.sleep(0.2)
    assert count.value == 1
    for number in range(50):
        fetchers.ask({f"{number}-{task}": fetch for task in range(200)})
        time.sleep(0.05)
        if count.value > 1:
            break
    assert count.value > 1
