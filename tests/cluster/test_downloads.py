"""What the nodes of a cluster download, counted by an S3 server: each its own part, and no shard twice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from cluster.local_cluster import LocalCluster
from faulty_s3 import FaultyProxy, faulty_s3
from system.shell import Shell, write_job
from yolofleet.data.manifest import Manifest
from yolofleet.storage import open_storage

pytestmark = pytest.mark.system
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
NUM_SHARDS, SHARD_SAMPLES = 96, 4
URL = "s3://data/train"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    with faulty_s3() as proxy:
        for name, value in (KEYS | {"AWS_ENDPOINT_URL": proxy.url}).items():
            monkeypatch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="data")
        yield proxy


def downloads(proxy: FaultyProxy) -> Counter[str]:
    """How often each shard was downloaded from its begin on; the driver reads annotations alone, which begin later."""
    return Counter(
        request.path
        for request in proxy.requests
        if request.path.endswith(".tar")
        and request.verb == "GET"
        and (request.range or "bytes=0-").startswith("bytes=0-")
    )


@pytest.fixture
def shards(shell: Shell, s3: FaultyProxy) -> int:
    """A dataset on the server; returns its bytes."""
    shell.succeed("data", "synth", "images", "--images", str(NUM_SHARDS * SHARD_SAMPLES), "--image-size", "64")
    options = ("--shard-samples", str(SHARD_SAMPLES))
    shell.succeed("data", "shard", "images/instances.json", "images/images", URL, *options)
    entries = Manifest.read(open_storage(URL)).shards
    assert len(entries) == NUM_SHARDS
    return sum(entry.bytes for entry in entries)


def job_of(shell: Shell, drawn: Path, **changes: Any) -> str:
    fields: dict[str, Any] = {
        "data": {"train": URL, "val": str(drawn / "shards/val"), "image_size": 64, "deal": "fixed"},
        "global_batch_size": 16,
        "micro_batch_size": 4,
        "epochs": 2,
        "evaluation": {"every_epochs": 1000.0},
        "checkpoint": {"every_steps": 1000},
    }
    return str(write_job(shell.folder, drawn, **(fields | changes)))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_nodes_download_the_dataset_once(
    shell: Shell, drawn: Path, s3: FaultyProxy, shards: int, cluster: LocalCluster, tmp_path: Path
) -> None:
    shell.environment = cluster.environment
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        cluster.add_node(name, environment={"TMPDIR": str(tmp_path / name)})  # so each has a cache of its own
    s3.requests.clear()
    shell.succeed("train", job_of(shell, drawn), timeout_seconds=900)
    counted = downloads(s3)
    assert len(counted) == NUM_SHARDS and sum(counted.values()) <= NUM_SHARDS + 1, "the border cuts one shard"
    caches = [{path.name for path in (tmp_path / name).rglob("*.tar")} for name in ("first", "second")]
    assert len(caches[0] | caches[1]) == NUM_SHARDS and len(caches[0] & caches[1]) <= 1
    assert all(len(cache) <= NUM_SHARDS / 2 + 1 for cache in caches)


@pytest.mark.parametrize(
    ("deal", "cache_share"),
    [
        ("fixed", 0.5),
        pytest.param("epoch", 0.5, marks=pytest.mark.slow),
        *(pytest.param(deal, share, marks=pytest.mark.slow) for deal in ("fixed", "epoch") for share in (2.0, 0.9)),
        *(pytest.param(deal, 0.1, marks=pytest.mark.slow) for deal in ("fixed", "epoch")),
    ],
)
def test_a_node_downloads_what_was_planned(
    shell: Shell, drawn: Path, s3: FaultyProxy, shards: int, deal: str, cache_share: float
) -> None:
    """Also where the cache is smaller than the node's part."""
    cache = {"path": "cache", "max_bytes": int(cache_share * shards)}
    job = job_of(shell, drawn, data__cache=cache, data__deal=deal, cluster={"workers": 1}, micro_batch_size=8)
    planned = json.loads(shell.succeed("cluster", "plan", job, "--epochs", "2", "--json"))
    s3.requests.clear()
    shell.succeed("train", job, "--launcher", "process")
    counted = sum(downloads(s3).values())
    assert sum(planned["requests"]) / 2 == pytest.approx(counted, rel=0.15)
