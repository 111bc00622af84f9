"""Transient faults of a storage are collected and reported once, when they are over."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from faulty_s3 import faulty_s3
from yolofleet.storage import StorageError, open_storage
from yolofleet.storage.objects import MOST_OFTEN_SECONDS, Outage, Outages


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_outage_is_reported_once_and_only_when_it_is_over() -> None:
    clock = Clock()
    outages = Outages(clock)
    outages.note_answer()
    assert outages.take() is None
    outages.note_fault("503")
    clock.now = 4.0
    outages.note_fault("no answer")
    assert outages.take() is None
    clock.now = 10.0
    outages.note_answer()
    assert outages.take() == Outage(seconds=10.0, tries=2, reason="no answer")
    assert outages.take() is None


def test_frequent_faults_are_reported_seldom_and_in_full() -> None:
    clock = Clock()
    outages = Outages(clock)
    reports = []
    for _ in range(100):
        outages.note_fault("slow down")
        clock.now += 0.5
        outages.note_answer()
        if (found := outages.take()) is not None:
            reports.append(found)
    clock.now += MOST_OFTEN_SECONDS
    if (last := outages.take()) is not None:
        reports.append(last)
    assert len(reports) <= 50 / MOST_OFTEN_SECONDS + 2
    assert sum(found.tries for found in reports) == 100
    assert sum(found.seconds for found in reports) == 50.0


def test_retried_s3_calls_are_reported_and_refusals_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3

    from yolofleet.storage.s3 import _s3_client

    with faulty_s3() as proxy:
        settings = {"ENDPOINT_URL": proxy.url, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}
        for name, value in (settings | {"REGION": "us-east-1", "DEFAULT_REGION": "us-east-1"}).items():
            monkeypatch.setenv(f"AWS_{name}", value)
        _s3_client.cache_clear()
        boto3.client("s3").create_bucket(Bucket="bucket")
        storage = open_storage("s3://bucket/runs")
        proxy.ending, proxy.plan = "state.json", ["503", "reset"]
        storage.child("a").put("state.json", b"{}")
        outage = storage.outages.take()
        assert outage is not None and outage.tries == 2 and outage.seconds > 0
        assert "s3://bucket/runs/a/state.json" in outage.reason
        (tmp_path / "file").write_bytes(b"{}")
        proxy.plan = ["503", "503"]
        storage.child("a").put("state.json", tmp_path / "file")
        assert proxy.plan == []
        proxy.plan = ["403", "403"]
        with pytest.raises(StorageError, match="refused"):
            storage.get("a/state.json")
        with pytest.raises(StorageError, match="check AWS_ACCESS_KEY_ID"):
            storage.put("a/state.json", tmp_path / "file")
        assert storage.outages.take() is None
        _s3_client.cache_clear()


def test_a_storage_can_be_sent_to_another_process(tmp_path: Path) -> None:
    sent = pickle.loads(pickle.dumps(open_storage(tmp_path)))
    sent.outages.note_fault("away")
    sent.outages.note_answer()
