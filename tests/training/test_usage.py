"""GPU hours come from run directories alone: of runs, of searches with their trials, and only of lately."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from yolofleet.core.errors import UserError
from yolofleet.specs.cluster import QuotaSpec
from yolofleet.storage.local import FileStorage
from yolofleet.storage.objects import ObjectNotFoundError, StorageError
from yolofleet.tracking.json_lines import encode_row
from yolofleet.training.supervision.queue import ClusterView, TicketQueue
from yolofleet.training.supervision.turns import Node, Ticket
from yolofleet.training.supervision.usage import NOT_READ, Ledger, spent_hours

HOUR = 3600.0


def write_log(folder: Path, *rows: dict[str, Any], changed: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "events.jsonl"
    path.write_bytes(b"".join(encode_row(row) for row in rows))
    os.utime(path, (changed, changed))


def at(second: float, kind: str, **fields: Any) -> dict[str, Any]:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(second))
    return {"time": stamp, "kind": kind, **fields}


TWO = {"workers": 2, "gpus_per_worker": 1.0}


def test_runs_and_searches_count_for_who_sent_them(tmp_path: Path) -> None:
    now = float(int(time.time()))
    begin = now - 10 * HOUR
    for name, changed in (("run", begin), ("old", begin - 2 * HOUR)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "job.yaml").write_text("name: x\n")
        os.utime(tmp_path / name / "job.yaml", (changed, changed))
    rows = [at(begin, "queued", user="ada", project="birds"), at(begin, "start", **TWO), at(begin + HOUR, "end")]
    write_log(tmp_path / "run", *rows, changed=now)
    write_log(tmp_path / "old", *rows, changed=begin - HOUR)
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "search.yaml").write_text("name: search\n")
    write_log(tmp_path / "search", at(begin, "queued", user="eve", project=None), changed=begin)
    trial = [at(begin, "start", workers=1, gpus_per_worker=1.0)]
    write_log(tmp_path / "search" / "trials" / "1", *trial, changed=begin + 3 * HOUR)
    found = spent_hours([str(tmp_path)], begin - 1)
    assert found == pytest.approx({("user", "ada"): 2.0, ("project", "birds"): 2.0, ("user", "eve"): 3.0})
    lately = spent_hours([str(tmp_path)], begin + HOUR / 2)
    assert lately["user", "ada"] == pytest.approx(1.0) and lately["user", "eve"] == pytest.approx(2.5)


def test_a_record_that_is_damaged_or_gone_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = float(int(time.time()))
    rows = [at(now - HOUR, "queued", user="ada", project=None), at(now - HOUR, "start", **TWO), at(now, "end")]
    for name in ("whole", "torn", "damaged", "gone", "empty"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "job.yaml").write_text("name: x\n")
        if name != "empty":
            write_log(tmp_path / name, *rows, changed=now)
    (tmp_path / "torn" / "events.jsonl").write_bytes((tmp_path / "whole" / "events.jsonl").read_bytes()[:-9])
    write_log(tmp_path / "damaged", {"kind": "start"}, rows[-1], changed=now)
    os.utime(tmp_path / "torn" / "job.yaml", (now, now))
    os.utime(tmp_path / "torn" / "events.jsonl", (now, now))
    get_from = FileStorage.get_from

    def removed_meanwhile(storage: FileStorage, key: str, start: int, most_bytes: int | None = None) -> bytes:
        if storage.url.endswith("/gone"):
            raise ObjectNotFoundError(key)
        return get_from(storage, key, start, most_bytes)

    monkeypatch.setattr(FileStorage, "get_from", removed_meanwhile)
    assert spent_hours([str(tmp_path)], now - 2 * HOUR) == pytest.approx({("user", "ada"): 4.0}), "whole, and torn"
    assert "damaged do not count" in caplog.text


QUOTAS = QuotaSpec.parse({"users": {"ada": {"gpu_hours": 10}}, "storages": ["runs"], "window_days": 7}, source="quotas")


def test_who_has_a_quota_of_hours_waits_until_they_are_known() -> None:
    answers: list[Any] = [StorageError("gave no answer"), {("user", "ada"): 10.0}, {("user", "ada"): 9.5}]
    asked: list[float] = []

    def read(storages: Sequence[str], since: float) -> Mapping[tuple[str, str], float]:
        asked.append(since)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    ledger = Ledger(read, lambda: 1e9)
    ledger._wanted = (QUOTAS.storages, QUOTAS.window_days)  # no thread: the test reads
    wanted = {"CPU": 1.0, "GPU": 1.0}
    nodes = [Node("here", {"CPU": 4.0, "GPU": 4.0}, {"CPU": 4.0, "GPU": 4.0})]
    queue = TicketQueue(lambda: ClusterView(nodes, {}), lambda: QUOTAS, iter(range(0, 900, 5)).__next__, ledger.look)

    def turn() -> tuple[int, str]:
        found = queue.ask(Ticket("run", "run", "ada", wanted=wanted, waits=True)).turn
        return found.slots, str(found.reason)

    turn()  # the queue listens first
    assert turn() == (0, f"it needs 1 slot of 1 CPU and 1 GPU: {NOT_READ}")
    ledger.refresh()
    assert "cannot be read: gave no answer" in turn()[1]
    ledger.refresh()
    assert "user ada has used 10.0 of 10 GPU hours that its quota allows in 7 days" in turn()[1]
    ledger.refresh()
    assert turn() == (1, "None")
    assert asked == [1e9 - 7 * 86_400] * 3


def test_a_storage_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: x\n")
    with pytest.raises(UserError, match="is the directory of one run"):
        spent_hours([str(tmp_path)], 0.0)
