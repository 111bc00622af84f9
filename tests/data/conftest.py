"""A small drawn dataset, as images and as shards, shared by the tests of the data path."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from faulty_s3 import FaultyProxy, faulty_s3
from yolofleet.data.build import build_dataset
from yolofleet.data.build_plan import BuildOptions
from yolofleet.data.coco import parse_coco
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.fetchers import FetcherCount, Fetchers
from yolofleet.data.problems import ProblemLog
from yolofleet.data.synth import write_synthetic_dataset
from yolofleet.storage import open_storage
from yolofleet.storage import s3 as storage_module

NUM_IMAGES = 45


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    write_synthetic_dataset(folder, NUM_IMAGES, seed=3, image_size=96)
    return folder


def build_shards(annotations: Path, images: Path, out: Path, **options: object) -> ProblemLog:
    """Build a dataset, in the order of the source unless the options say otherwise, and return its problems."""
    problems = ProblemLog()
    source = parse_coco(annotations.read_bytes(), annotations.name, problems)
    options.setdefault("shuffle", False)
    most_skipped = float(options.pop("most_skipped", 0.5))  # type: ignore[arg-type]
    build_dataset(
        source,
        open_storage(images),
        open_storage(out),
        BuildOptions(**options),  # type: ignore[arg-type]
        problems,
        most_skipped=most_skipped,
        num_threads=2,
    )
    return problems


Build = Callable[..., ProblemLog]


@pytest.fixture(scope="session")
def build() -> Build:
    """``build(annotations, images, out, **options)``: build a dataset and return its problems."""
    return build_shards


@pytest.fixture(scope="session")
def shards(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn images in shards of seven."""
    out = tmp_path_factory.mktemp("shards")
    build_shards(drawn / "instances.json", drawn / "images", out, shard_samples=7)
    return out


@pytest.fixture
def dataset(shards: Path) -> ShardDataset:
    return ShardDataset(shards)


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyProxy]:
    """An S3 server behind a proxy; the environment names it to the end: streams still fetch in the background."""
    with faulty_s3() as proxy, pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": proxy.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        patch.setattr(storage_module, "READ_TIMEOUT_SECONDS", 1.0)
        yield proxy


@contextmanager
def fetchers_end() -> Iterator[None]:
    """End all fetchers that begin here: one whose attempt failed tries again later, on the server of another test."""
    begun: weakref.WeakSet[Fetchers] = weakref.WeakSet()
    begin, earlier = Fetchers.__init__, {*threading.enumerate()}

    def noted(self: Fetchers, count: FetcherCount) -> None:
        begin(self, count)
        begun.add(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fetchers, "__init__", noted)
        yield
    for fetchers in list(begun):
        fetchers.close()
    for thread in {*threading.enumerate()} - earlier:
        if thread.name == "fetcher":
            thread.join(timeout=60)
            assert not thread.is_alive(), "a fetcher goes on after its test"


@pytest.fixture
def s3(server: FaultyProxy, shards: Path) -> Iterator[FaultyProxy]:
    """The drawn dataset at s3://data/drawn, behind a proxy without faults yet."""
    import boto3

    server.plan, server.for_ever, server.ending = [], None, ".tar"
    client = boto3.client("s3")
    if not client.list_buckets()["Buckets"]:
        client.create_bucket(Bucket="data")
        out = open_storage("s3://data/drawn")
        for path in sorted(shards.rglob("*")):
            if path.is_file():
                out.put(path.relative_to(shards).as_posix(), path)
    server.num_matched = 0
    server.requests.clear()
    with fetchers_end():
        yield server
        server.plan, server.for_ever = [], None
        for gate in server.gates.values():
            gate.set()
        server.gates.clear()
