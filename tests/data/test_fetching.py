"""Fetching by several threads and processes at once: each object once, nobody held up, within the bound."""

from __future__ import annotations

import gc
import hashlib
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from data.remote_shards import cached_bytes, fetch, opened, start_reader, wait_until
from faulty_s3 import Fault, FaultyProxy
from yolofleet.data.cache_folder import CacheError, CacheLocks
from yolofleet.data.dataset import ShardDataset
from yolofleet.storage import ObjectChangedError, StorageError, open_storage
from yolofleet.storage import s3 as storage_module

pytestmark = pytest.mark.system


def asked_for(s3: FaultyProxy, ending: str) -> int:
    """Return how often objects were asked for whose name ends so."""
    return sum(request.path.endswith(ending) for request in s3.requests if request.verb == "GET")


def is_cached(cache: Path, dataset: ShardDataset, *shards: int) -> bool:
    return all((cache / f"{dataset.manifest.shards[shard].sha256}.tar").exists() for shard in shards)


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients wait for an answer as long as a test takes."""
    monkeypatch.setattr(storage_module, "READ_TIMEOUT_SECONDS", 100.0)
    monkeypatch.setenv("AWS_TEST", "another client")


def test_processes_of_a_node_fetch_each_object_once(
    s3: FaultyProxy, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    readers = [start_reader(tmp_path, ahead=7) for _ in range(3)]
    digests = {process.communicate(timeout=120)[0].splitlines()[-1] for process in readers}
    local, digest = ShardDataset(shards), hashlib.sha256()
    for number in range(len(local)):
        digest.update(local.read(number).image)
    assert digests == {digest.hexdigest()}
    requests = [request for request in s3.requests if request.path.endswith((".tar", ".index"))]
    counts = Counter(request.path for request in requests)
    assert set(counts.values()) == {1} and len(counts) == 2 * len(local.manifest.shards), requests


def test_a_fetcher_killed_in_the_middle_holds_nobody_up(
    s3: FaultyProxy, shards: Path, tmp_path: Path, endless: None
) -> None:
    gate = s3.gates["shard-000000.tar"] = threading.Event()
    victim = start_reader(tmp_path, ahead=1)
    wait_until(lambda: asked_for(s3, "shard-000000.tar"))
    dataset = opened(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        sample = pool.submit(dataset.read, 0)
        wait_until(lambda: asked_for(s3, ".index"))
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        wait_until(lambda: asked_for(s3, "shard-000000.tar") == 2)  # while the answer to the first is still missing
        gate.set()
        assert sample.result(60).image == ShardDataset(shards).read(0).image


@pytest.mark.parametrize("fetchers", [1, 3])
def test_a_shard_that_never_comes_holds_no_other_up(
    s3: FaultyProxy, shards: Path, tmp_path: Path, endless: None, fetchers: int
) -> None:
    s3.gates["shard-000003.tar"] = threading.Event()
    dataset, local = opened(tmp_path, fetchers=fetchers), ShardDataset(shards)
    dataset.prefetch([3, 0, 1, 2, 4, 5, 6])
    wait_until(lambda: asked_for(s3, "shard-000003.tar"))
    for number in range(len(local)):
        if local.locate(number)[0] != 3:
            assert dataset.read(number).image == local.read(number).image


def test_fetchers_pass_over_what_another_process_fetches(s3: FaultyProxy, tmp_path: Path) -> None:
    dataset = opened(tmp_path, fetchers=1)
    with CacheLocks(tmp_path / "lock").fetching(dataset.manifest.shards[0].sha256, wait=True):
        dataset.prefetch([0, 1, 2])
        wait_until(lambda: is_cached(tmp_path, dataset, 1, 2))
        assert asked_for(s3, "shard-000000.tar") == 0
    wait_until(lambda: is_cached(tmp_path, dataset, 0))


def test_locks_are_of_one_object_each_and_their_threads(tmp_path: Path) -> None:
    one, other = CacheLocks(tmp_path / "lock"), CacheLocks(tmp_path / "lock")
    digests = [hashlib.sha256(bytes([number])).hexdigest() for number in range(200)]
    with one.fetching(digests[0], wait=False) as is_held:
        assert is_held
        for locks in (one, other):
            for digest in digests:
                with locks.fetching(digest, wait=False) as is_free:
                    assert is_free == (digest != digests[0])
    one.want(digests[:2])
    other.want(digests[1:3])
    for wanted in (3, 2, 1, 0):
        for number, digest in enumerate(digests[:4]):
            with one.evicting(digest, although_wanted=False) as may_evict:
                assert may_evict == (number >= wanted or (wanted == 2 and number == 2))
            with one.evicting(digest, although_wanted=True) as may_evict:
                assert may_evict
        if wanted == 3:
            other.want([])
        elif wanted == 2:
            one.want(digests[:1])
        else:
            one.want([])


@pytest.mark.parametrize("room", [1.0, 2.5])
def test_a_tight_cache_never_exceeds_its_bound_and_always_ends(
    s3: FaultyProxy, shards: Path, tmp_path: Path, room: float
) -> None:
    """Two processes with eight fetchers want more than fits, and read on all the same."""
    entries = ShardDataset(shards).manifest.shards
    bound = int(max(entry.bytes for entry in entries) * room) + 20_000
    readers = [start_reader(tmp_path, bound, rounds=2, ahead=ahead) for ahead in (7, 3)]
    most = 0
    found: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        ends = [pool.submit(process.communicate, timeout=300) for process in readers]
        while not all(end.done() for end in ends):
            most = max(most, cached_bytes(tmp_path))
            time.sleep(0.002)
        found = [end.result()[0].splitlines()[-1] for end in ends]
    assert [process.returncode for process in readers] == [0, 0] and len(set(found)) == 1
    assert 0 < most <= bound


def test_no_object_gets_its_name_while_bytes_are_counted(s3: FaultyProxy, shards: Path, tmp_path: Path) -> None:
    """A folder that is listed meanwhile may show neither its name nor that of its part: the cache grew too large."""
    gate = s3.gates["shard-000000.tar"] = threading.Event()
    dataset, entry = opened(tmp_path), ShardDataset(shards).manifest.shards[0]
    part, content = tmp_path / f"{entry.sha256}.part", (shards / entry.tar_key).read_bytes()
    dataset.prefetch([0])
    wait_until(part.exists)
    with CacheLocks(tmp_path / "lock").making_room():
        gate.set()
        wait_until(lambda: part.read_bytes() == content)
        time.sleep(0.3)
        assert part.exists() and not is_cached(tmp_path, dataset, 0)
    wait_until(lambda: is_cached(tmp_path, dataset, 0))


def test_what_is_wanted_is_not_evicted_for_what_is_fetched_ahead(s3: FaultyProxy, shards: Path, tmp_path: Path) -> None:
    """Two workers with room for four shards: the second waits until the first has moved on."""
    entries = ShardDataset(shards).manifest.shards
    bound = 4 * max(entry.bytes for entry in entries) + 20_000
    first, second = (opened(tmp_path, max_bytes=bound, fetchers=number) for number in (4, 1))
    first.prefetch([0, 1, 2])
    wait_until(lambda: is_cached(tmp_path, first, 0, 1, 2))
    second.prefetch([3, 4, 5])
    wait_until(lambda: is_cached(tmp_path, first, 3))
    for _ in range(50):
        assert is_cached(tmp_path, first, 0, 1, 2, 3) and not is_cached(tmp_path, first, 4)
        time.sleep(0.02)
    assert asked_for(s3, "shard-000004.tar") == 0, "nothing is asked for that there is no room for"
    first.prefetch([2])
    wait_until(lambda: is_cached(tmp_path, first, 2, 3, 4, 5))
    assert cached_bytes(tmp_path) <= bound


def test_who_needs_a_shard_takes_the_room_of_what_is_needed_last(s3: FaultyProxy, shards: Path, tmp_path: Path) -> None:
    entries = ShardDataset(shards).manifest.shards
    dataset = opened(tmp_path, max_bytes=sum(entry.bytes for entry in entries[:3]) + 6_000, fetchers=1)
    dataset.prefetch([0, 1, 2])
    wait_until(lambda: is_cached(tmp_path, dataset, 0, 1, 2))
    fetch(dataset.cache, dataset, 5)
    assert is_cached(tmp_path, dataset, 0, 1, 5) and not is_cached(tmp_path, dataset, 2)
    fetch(dataset.cache, dataset, 6)
    assert is_cached(tmp_path, dataset, 0, 1, 6) and not is_cached(tmp_path, dataset, 5), "nobody wants it"


def test_what_is_fetched_ahead_leaves_room_for_who_is_in_need(
    s3: FaultyProxy, shards: Path, tmp_path: Path, endless: None
) -> None:
    entries = ShardDataset(shards).manifest.shards
    for number in range(3):
        s3.gates[f"shard-00000{number}.tar"] = threading.Event()
    dataset = opened(tmp_path, max_bytes=int(2.5 * max(entry.bytes for entry in entries)), fetchers=3)
    dataset.prefetch([0, 1, 2])
    wait_until(lambda: sum(asked_for(s3, f"shard-00000{number}.tar") for number in range(3)))
    fetch(dataset.cache, dataset, 5)


def test_a_dataset_that_is_gone_keeps_nothing(s3: FaultyProxy, shards: Path, tmp_path: Path, endless: None) -> None:
    entries = ShardDataset(shards).manifest.shards
    bound = 2 * max(entry.bytes for entry in entries) + 3_000
    first, second = opened(tmp_path, max_bytes=bound), opened(tmp_path, max_bytes=bound, fetchers=1)
    first.prefetch([0, 1, 2])
    wait_until(lambda: len(list(tmp_path.glob("*.tar"))) == 2)
    del first
    gc.collect()
    second.prefetch([3, 4])
    wait_until(lambda: is_cached(tmp_path, second, 3, 4))


def test_parts_of_dead_processes_give_their_room_back(s3: FaultyProxy, shards: Path, tmp_path: Path) -> None:
    entries = ShardDataset(shards).manifest.shards
    bound = max(entry.bytes for entry in entries) + 20_000
    dataset = opened(tmp_path, max_bytes=bound)
    dataset.cache  # noqa: B018 - it makes the folder
    (tmp_path / f"{entries[0].sha256}.part").write_bytes(bytes(bound))
    fetch(dataset.cache, dataset, 1)
    assert is_cached(tmp_path, dataset, 1) and not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    "plan",
    [[], ["reset", "truncate", "500", "truncate", "reset"], ["truncate"] * 6, ["wrong", "503", "html", "reset"]],
    ids="+".join,
)
@pytest.mark.parametrize("fetchers", [1, 4])
def test_ranges_give_the_same_bytes_as_one_stream(
    s3: FaultyProxy, shards: Path, tmp_path: Path, plan: list[Fault], fetchers: int
) -> None:
    dataset = opened(tmp_path, range_bytes=1000, fetchers=fetchers)
    s3.plan = list(plan)
    fetch(dataset.cache, dataset, 0)
    assert s3.plan == []
    entry = dataset.manifest.shards[0]
    assert (tmp_path / f"{entry.sha256}.tar").read_bytes() == (shards / entry.tar_key).read_bytes()
    spans = {request.range for request in s3.requests if request.path.endswith(".tar")}
    assert {f"bytes={start}-{min(start + 1000, entry.bytes) - 1}" for start in range(1000, entry.bytes, 1000)} <= spans


def test_ranges_are_fetched_at_a_time_and_also_by_fetchers(s3: FaultyProxy, tmp_path: Path, endless: None) -> None:
    dataset = opened(tmp_path, range_bytes=4000, fetchers=3)
    num_ranges = -(-dataset.manifest.shards[0].bytes // 4000)
    assert num_ranges > 4
    with ThreadPoolExecutor(1) as pool:
        first = s3.gates["shard-000000.tar"] = threading.Event()
        end = pool.submit(fetch, dataset.cache, dataset, 0)
        wait_until(lambda: asked_for(s3, "shard-000000.tar") == 1)
        rest = s3.gates["shard-000000.tar"] = threading.Event()
        first.set()
        wait_until(lambda: asked_for(s3, "shard-000000.tar") == 5)  # the reader's second, and one of each fetcher
        rest.set()
        end.result(60)
    assert asked_for(s3, "shard-000000.tar") == num_ranges


def test_an_object_that_is_replaced_meanwhile_is_fetched_anew(
    s3: FaultyProxy, shards: Path, tmp_path: Path, endless: None
) -> None:
    dataset = opened(tmp_path, range_bytes=4000, fetchers=1)
    entry = dataset.manifest.shards[0]
    storage, right = open_storage(dataset.url), (shards / entry.tar_key).read_bytes()
    with ThreadPoolExecutor(1) as pool:
        storage.put(entry.tar_key, bytes(len(right)))
        gate = s3.gates["shard-000000.tar"] = threading.Event()
        end = pool.submit(fetch, dataset.cache, dataset, 0)
        wait_until(lambda: asked_for(s3, "shard-000000.tar") == 1)
        second = s3.gates["shard-000000.tar"] = threading.Event()
        gate.set()  # the first range comes from the wrong object
        wait_until(lambda: asked_for(s3, "shard-000000.tar") >= 2)
        del s3.gates["shard-000000.tar"]
        storage.put(entry.tar_key, right)
        second.set()
        end.result(60)
    assert (tmp_path / f"{entry.sha256}.tar").read_bytes() == right


def test_a_range_is_of_the_version_that_was_asked_for(s3: FaultyProxy) -> None:
    storage = open_storage("s3://data/versions")
    storage.put("object", b"0123456789")
    first = storage.open_range("object", 2, 4)
    assert (first.stream.read(), first.num_bytes, first.object_bytes) == (b"2345", 4, 10)
    last = storage.open_range("object", 8, 4, first.version)
    assert (last.stream.read(), last.num_bytes) == (b"89", 2)
    storage.put("object", b"9876543210")
    with pytest.raises(ObjectChangedError, match="has changed, or is too short"):
        storage.open_range("object", 8, 4, first.version)
    with pytest.raises(ObjectChangedError):
        storage.open_range("object", 10, 4)


def test_a_fetch_that_fails_leaves_nothing_behind(s3: FaultyProxy, tmp_path: Path) -> None:
    """No part, and no thread that might still write to it."""
    dataset = opened(tmp_path, range_bytes=1000, fetchers=4, patience_seconds=0.0)
    s3.for_ever = "truncate"
    with pytest.raises((CacheError, StorageError)):
        fetch(dataset.cache, dataset, 0)
    assert not list(tmp_path.glob("*.part"))
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing itself
            assert ".part" not in str(link.readlink())
    s3.for_ever = None
    fetch(dataset.cache, dataset, 0)
