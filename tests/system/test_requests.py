"""What a run asks of an object store: hardly ever a listing or a look-up, whether it trains or waits."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest

from faulty_s3 import FaultyProxy, faulty_s3
from system.shell import Shell, kill_group, wait_for, write_job
from yolofleet.storage.lock import LockRecord, record_key
from yolofleet.tracking.log_writer import PUT_INTERVAL_SECONDS

pytestmark = pytest.mark.system
PER_SECOND = 0.5
"""LIST and HEAD requests of all processes of a run, whatever it does."""
START_AND_END = 30
"""Those of a run before its first and after its last step: 7 of the lock, the data's shards and the run directory, 13
to open each log and cut it back to the newest checkpoint, 10 of the model's release and the last pass to MLflow."""
PER_CHECKPOINT = 3
"""All checkpoints, all sample logs, and the report's files for MLflow."""
WINDOW_SECONDS = 10.0


def connect(server: FaultyProxy) -> Any:
    """A client of the server."""
    return boto3.client("s3", endpoint_url=server.url, aws_access_key_id="key", aws_secret_access_key="secret")


@pytest.fixture(scope="module")
def server(drawn: Path) -> Iterator[FaultyProxy]:
    """An S3 server that counts requests, with the drawn shards in a bucket."""
    with faulty_s3() as proxy:
        client = connect(proxy)
        client.create_bucket(Bucket="bucket")
        for file in (drawn / "shards").rglob("*"):
            if file.is_file():
                client.upload_file(str(file), "bucket", file.relative_to(drawn / "shards").as_posix())
        yield proxy


def write_s3_job(shell: Shell, server: FaultyProxy, drawn: Path, **changes: Any) -> str:
    """Write a job whose data and runs are on the server; it logs every step and keeps nothing between its ends."""
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
    shell.environment = {"AWS_ENDPOINT_URL": server.url} | keys
    data = {"train": "s3://bucket/train", "val": "s3://bucket/val", "image_size": 64, "cache": {"path": "cache"}}
    fixed = {"data": data, "storage": "s3://bucket/runs", "tracking": {"uri": "sqlite:///mlflow.db"}}
    rare = {"epochs": 16, "checkpoint__every_steps": 64, "evaluation": {"every_epochs": 8}}
    return str(write_job(shell.folder, drawn, **fixed, **(rare | changes)))


def listed(server: FaultyProxy, since: float) -> list[str]:
    """The listings and look-ups since a moment."""
    recent = (request for request in list(server.requests) if request.at >= since)
    return [f"{request.verb} {request.path}" for request in recent if request.verb in ("LIST", "HEAD")]


def num_puts(server: FaultyProxy, run: str, file: str) -> int:
    """How often a file of a run was written, in any of its folders."""
    name = re.compile(rf"/bucket/runs/{run}/(.*/)?{re.escape(file)}")
    return sum(request.verb == "PUT" and name.fullmatch(request.path) is not None for request in list(server.requests))


def test_a_run_lists_next_to_nothing(shell: Shell, drawn: Path, server: FaultyProxy) -> None:
    job = write_s3_job(shell, server, drawn, name="alone", cluster={"workers": 1})
    begin = time.monotonic()
    shell.succeed("train", job, "--launcher", "process")
    found, seconds = listed(server, begin), time.monotonic() - begin
    checkpoints = num_puts(server, "alone", "COMMITTED")
    assert len(found) <= PER_SECOND * seconds + START_AND_END + PER_CHECKPOINT * checkpoints, Counter(found)
    assert num_puts(server, "alone", "metrics.jsonl") <= seconds / PUT_INTERVAL_SECONDS + 2 * checkpoints + 2, (
        "rows are put together"
    )


def test_workers_on_ray_list_next_to_nothing_while_they_train_and_while_they_hang(
    shell: Shell, drawn: Path, server: FaultyProxy
) -> None:
    job = write_s3_job(shell, server, drawn, name="two", epochs=1000, evaluation={"every_epochs": 1000})
    driver = shell.start("train", job)
    try:
        wait_for(lambda: num_puts(server, "two", "metrics.jsonl"), 180, "the first rows")
        begin, before = time.monotonic(), num_puts(server, "two", "COMMITTED")
        time.sleep(WINDOW_SECONDS)
        found, seconds = listed(server, begin), time.monotonic() - begin
        checkpoints = num_puts(server, "two", "COMMITTED") - before + 1  # one may be under way
        assert len(found) <= PER_SECOND * seconds + PER_CHECKPOINT * checkpoints, Counter(found)

        # What watches a run still does so when its workers stop.
        children = psutil.Process(driver.pid).children(recursive=True)
        workers = [child for child in children if "RayTrainWorker" in " ".join(child.cmdline())]
        assert len(workers) == 2
        for worker in workers:
            os.kill(worker.pid, signal.SIGSTOP)
        begin = time.monotonic()
        time.sleep(WINDOW_SECONDS)
        found, seconds = listed(server, begin), time.monotonic() - begin
        assert len(found) <= PER_SECOND * seconds + PER_CHECKPOINT, Counter(found)
        assert driver.poll() is None
    finally:
        kill_group(driver)


def test_who_waits_for_a_lock_lists_nothing(shell: Shell, drawn: Path, server: FaultyProxy) -> None:
    job = write_s3_job(shell, server, drawn, name="held", cluster={"workers": 1})
    record = json.loads(LockRecord.of_this_process(1, 60.0).to_bytes()) | {"place": "elsewhere", "host": "far"}
    connect(server).put_object(Bucket="bucket", Key=f"runs/held/{record_key(1)}", Body=json.dumps(record).encode())
    waiting = shell.start("train", job, "--launcher", "process")
    try:
        wait_for(lambda: "for a sign of life" in shell.output(), what="the wait")
        begin, before = time.monotonic(), len(server.requests)
        time.sleep(WINDOW_SECONDS)
        assert waiting.poll() is None and len(server.requests) > before, "it looks for a sign of life"
        assert len(listed(server, begin)) <= PER_SECOND * (time.monotonic() - begin)
    finally:
        kill_group(waiting)
