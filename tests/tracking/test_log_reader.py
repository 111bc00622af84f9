"""A reader of growing logs gets every row once, lists nothing, and leaves quiet logs alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolofleet.core.retry import LONGEST_QUIET_PAUSE_SECONDS, QUIET_SHARE
from yolofleet.storage import StorageError
from yolofleet.tracking import json_lines
from yolofleet.tracking.json_lines import LogReader
from yolofleet.tracking.log_writer import ObjectLogWriter

from .conftest import MemoryStorage


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def write(storage: MemoryStorage, name: str, *steps: int) -> None:
    writer = ObjectLogWriter(storage, name)
    for step in steps:
        writer.append({"step": step})
    writer.close()


@given(batches=st.lists(st.integers(0, 9), max_size=8), part_bytes=st.integers(20, 200), late=st.integers(0, 8))
def test_every_row_is_read_once_over_any_parts_without_a_listing(
    batches: list[int], part_bytes: int, late: int
) -> None:
    storage, read = MemoryStorage(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lines, "PART_BYTES", part_bytes)
        writer = ObjectLogWriter(storage, "metrics", part_bytes=part_bytes)
        reader = LogReader(storage, ["metrics", "metrics.driver"])
        storage.requests.clear()
        num_rows = 0
        for number, count in enumerate(batches):
            for _ in range(count):
                writer.append({"step": num_rows})
                num_rows += 1
            writer.flush()
            if number >= late:
                read += [row["step"] for row in reader.new_rows()]
        read += [row["step"] for row in reader.new_rows()]
        assert read == list(range(num_rows))
        assert {request.split()[0] for request in storage.requests} == {"GET"}
        storage.requests.clear()
        assert reader.new_rows() == []
        assert len(storage.requests) <= 3, "one for each log, and one for the part after a full one"


def test_a_quiet_log_is_asked_less_and_less_and_a_busy_one_at_every_look(object_storage: Any) -> None:
    clock = Clock()
    reader = LogReader(object_storage, ["metrics"], clock)
    looks: list[float] = []
    for second in range(3600):
        object_storage.requests.clear()
        reader.new_rows(only_due=True)
        looks += [second] * bool(object_storage.requests)
        clock.now += 1
    pauses = [(before, after - before) for before, after in itertools.pairwise(looks)]
    assert all(pause <= min(before * QUIET_SHARE, LONGEST_QUIET_PAUSE_SECONDS) + 1 for before, pause in pauses)
    assert len(looks) < 3600 / LONGEST_QUIET_PAUSE_SECONDS + 40
    write(object_storage, "metrics", 1)
    assert reader.new_rows(), "whoever wants everything gets it"
    for step in range(2, 12):
        write(object_storage, "metrics", step)
        clock.now += 1
        assert [row["step"] for row in reader.new_rows(only_due=True)] == [step]


def test_a_storage_that_fails_between_two_logs_costs_no_row(object_storage: Any, monkeypatch: Any) -> None:
    write(object_storage, "metrics", 1, 2)
    write(object_storage, "metrics.driver", 3)
    reader = LogReader(object_storage, ["metrics", "metrics.driver"])
    get = object_storage.get

    def away(key: str) -> bytes:
        if "driver" in key:
            raise StorageError("503", transient=True)
        return bytes(get(key))

    with monkeypatch.context() as patch:
        patch.setattr(object_storage, "get", away)
        with pytest.raises(StorageError):
            reader.new_rows()
    assert [row["step"] for row in reader.new_rows()] == [1, 2, 3]


def test_a_log_that_was_cut_back_by_parts_is_read_from_its_start(object_storage: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(json_lines, "PART_BYTES", 30)
    writer = ObjectLogWriter(object_storage, "metrics", part_bytes=30)
    for step in range(20):
        writer.append({"step": step})
    writer.flush()
    reader = LogReader(object_storage, ["metrics"])
    assert len(reader.new_rows()) == 20
    writer.truncate(lambda row: row["step"] < 5)
    writer.append({"step": 5})
    writer.close()
    assert [row["step"] for row in reader.new_rows()] == [0, 1, 2, 3, 4, 5]
    assert reader.new_rows() == []
