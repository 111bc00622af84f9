"""The shard cache: bounded, shared, safe against crashes, and patient with a broken network."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from data.remote_shards import fetch, opened, start_reader
from faulty_s3 import Fault, FaultyProxy
from yolofleet.data.cache import ShardCache
from yolofleet.data.cache_folder import CacheError, CacheSettings
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.stream import TrainingStream
from yolofleet.specs.hyperparameters import Augmentation
from yolofleet.storage import StorageError

pytestmark = pytest.mark.system
NUM_BATCHES = 24


def digests(dataset: ShardDataset, count: int = NUM_BATCHES) -> list[str]:
    stream = TrainingStream(
        dataset,
        seed=9,
        image_size=48,
        global_batch_size=4,
        micro_batch_size=4,
        augmentation=Augmentation(),
        num_threads=2,
    )
    return [batch.digest() for batch in itertools.islice(stream.micro_batches(0, [0]), count)]


@pytest.fixture(scope="module")
def expected(shards: Path) -> list[str]:
    return digests(ShardDataset(shards))


def test_remote_shards_give_the_batches_of_local_ones_and_are_fetched_once(
    s3: FaultyProxy, expected: list[str], tmp_path: Path
) -> None:
    assert digests(opened(tmp_path)) == expected
    assert s3.num_matched == 7, "one stream a shard"
    assert digests(opened(tmp_path)) == expected
    assert s3.num_matched == 7, "a warm cache asks for nothing"


@pytest.mark.parametrize(
    "plan",
    [
        ["500", "500", "503"],
        ["503", "reset", "truncate"],
        ["reset", "reset"],
        ["truncate", "truncate", "truncate"],
        ["wrong", "html"],
        ["html", "500", "wrong", "truncate", "reset", "503"],
        ["stall"],
    ],
    ids="+".join,
)
def test_no_passing_fault_loses_doubles_or_reorders_a_batch(
    s3: FaultyProxy, expected: list[str], tmp_path: Path, plan: list[Fault]
) -> None:
    s3.plan = list(plan)
    assert digests(opened(tmp_path)) == expected
    assert s3.plan == []
    assert not list(tmp_path.glob("*.part"))


def test_faults_on_the_index_are_survived_too(s3: FaultyProxy, expected: list[str], tmp_path: Path) -> None:
    s3.ending, s3.plan = ".index", ["500", "wrong", "truncate"]
    assert digests(opened(tmp_path)) == expected


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("wrong", r"given up after waiting 1\.5 s.*not the object"),
        ("html", r"not the object.*they start with b.<html>"),
        ("500", "given up"),
    ],
)
def test_a_lasting_fault_stops_the_run_with_its_cause(
    s3: FaultyProxy, tmp_path: Path, fault: Fault, message: str
) -> None:
    s3.for_ever = fault
    started = time.monotonic()
    with pytest.raises((CacheError, StorageError), match=message):
        digests(opened(tmp_path, patience_seconds=1.5))
    assert time.monotonic() - started < 60
    assert not list(tmp_path.glob("*.tar"))


def test_a_refusal_is_raised_at_once(s3: FaultyProxy, tmp_path: Path) -> None:
    s3.for_ever = "403"
    with pytest.raises(StorageError, match="AccessDenied"):
        digests(opened(tmp_path))


def test_the_cache_stays_within_its_bound(s3: FaultyProxy, shards: Path, expected: list[str], tmp_path: Path) -> None:
    sizes = sorted(path.stat().st_size for path in (shards / "shards").glob("*.tar"))
    bound = sizes[-1] + sizes[-2] + 20_000
    dataset = opened(tmp_path, max_bytes=bound)
    assert digests(dataset) == expected
    assert sum(path.stat().st_size for path in tmp_path.iterdir() if path.is_file()) <= bound


def test_a_cache_smaller_than_a_shard_is_refused_with_the_cure(s3: FaultyProxy, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"cache\.max_bytes is 10,000, but one shard alone has"):
        digests(opened(tmp_path, max_bytes=10_000))


def full_disk(monkeypatch: pytest.MonkeyPatch, folder: Path, faults: list[int]) -> None:
    """Let reservations under ``folder`` fail with these error numbers first.

    Only there: a stream of an earlier test may still be fetching in the background.
    """
    reserve = os.posix_fallocate

    def sometimes_full(descriptor: int, offset: int, length: int) -> None:
        if faults and Path(f"/proc/self/fd/{descriptor}").readlink().is_relative_to(folder):
            raise OSError(faults.pop(), "No space left on device")
        reserve(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", sometimes_full)


def test_a_full_disk_is_waited_for(
    s3: FaultyProxy, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = [errno.ENOSPC, errno.ENOSPC]
    full_disk(monkeypatch, tmp_path, faults)
    assert digests(opened(tmp_path)) == expected
    faults.extend([errno.ENOSPC] * 1000)
    with pytest.raises(CacheError, match=r"given up after waiting 1 s: the disk of the cache .* is full"):
        digests(opened(tmp_path / "other", patience_seconds=1.0))


def test_a_full_disk_gets_room_from_old_shards(
    s3: FaultyProxy, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = opened(tmp_path, patience_seconds=0.5)
    cache = ShardCache(CacheSettings(path=tmp_path, patience_seconds=0.5))
    _, second, third = dataset.manifest.shards[:3]
    fetch(cache, dataset, 0)
    fetch(cache, dataset, 1)
    full_disk(monkeypatch, tmp_path, [errno.ENOSPC])
    fetch(cache, dataset, 2)
    assert {path.stem for path in tmp_path.glob("*.tar")} == {second.sha256, third.sha256}


def test_a_disk_that_fills_while_a_shard_is_written_is_waited_for(
    s3: FaultyProxy, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that cannot reserve tells only when it is written to: no half shard stays, no batch is lost."""
    full_disk(monkeypatch, tmp_path, [errno.EOPNOTSUPP] * 1000)
    replace, failures = Path.replace, [errno.ENOSPC, errno.EDQUOT]

    def sometimes_full(path: Path, target: Path) -> Path:
        if path.suffix == ".part" and failures:
            raise OSError(failures.pop(), "No space left on device")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", sometimes_full)
    assert digests(opened(tmp_path)) == expected
    assert not failures and not list(tmp_path.glob("*.part"))


def test_a_cache_that_may_not_be_written_is_refused_at_once(s3: FaultyProxy, tmp_path: Path) -> None:
    in_the_way = tmp_path / "cache"
    in_the_way.write_text("a file where the folder should be")
    with pytest.raises(CacheError, match=r"cache\.path .*cannot be made"):
        digests(opened(in_the_way))


def test_a_cache_folder_without_permission_is_refused_at_once(
    s3: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where even root may not write: the refusal is that of the kernel's own words."""

    def forbidden(descriptor: int, offset: int, length: int) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "posix_fallocate", forbidden)
    started = time.monotonic()
    with pytest.raises(CacheError, match="Permission denied"):
        digests(opened(tmp_path))
    assert time.monotonic() - started < 15, "no waiting for what does not pass"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_killed_fetchers_hold_nothing_up(
    s3: FaultyProxy, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their threads die of an unforeseen error, again and again; the reader of a shard fetches it."""
    dataset, dead = opened(tmp_path), []

    def dies(storage: object, entry: object) -> None:
        dead.append(threading.current_thread())
        raise SystemExit

    monkeypatch.setattr(dataset.cache, "_fetch_ahead", dies)
    assert digests(dataset) == expected
    for thread in dead:
        thread.join(timeout=10)  # the last one may be dying still
    assert dead and not any(thread.is_alive() for thread in dead)


def test_a_file_system_that_cannot_reserve_is_used_all_the_same(
    s3: FaultyProxy, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk(monkeypatch, tmp_path, [errno.EOPNOTSUPP] * 1000)
    assert digests(opened(tmp_path)) == expected


def test_processes_share_a_tight_cache_and_survive_a_kill(s3: FaultyProxy, shards: Path, tmp_path: Path) -> None:
    """Two processes read through a cache for four shards while a third is killed in the middle of its work."""
    sizes = sorted(path.stat().st_size for path in (shards / "shards").glob("*.tar"))
    bound = sizes[-1] * 4 + 20_000
    victim, *others = [start_reader(tmp_path, bound, rounds=rounds) for rounds in (10_000, 3, 3)]
    assert victim.stdout is not None
    for _ in range(60):
        assert victim.stdout.readline() == "sample\n"
    victim.send_signal(signal.SIGKILL)
    found = {process.communicate(timeout=120)[0].splitlines()[-1] for process in others}
    victim.wait()
    assert len(found) == 1 and len(found.pop()) == 64 and [process.returncode for process in others] == [0, 0]
    assert sum(path.stat().st_size for path in tmp_path.iterdir() if path.is_file()) <= bound


def test_a_left_over_part_of_a_dead_process_is_cleaned(s3: FaultyProxy, tmp_path: Path) -> None:
    dataset = opened(tmp_path)
    entry = dataset.manifest.shards[0]
    (tmp_path / f"{entry.sha256}.part").write_bytes(b"half")
    fetch(ShardCache(CacheSettings(path=tmp_path)), dataset, 0)
    assert (tmp_path / f"{entry.sha256}.tar").stat().st_size == entry.bytes
    assert not list(tmp_path.glob("*.part"))


def test_a_node_names_its_own_folder_and_the_most_that_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = CacheSettings(path=Path("/mnt/cache"), max_bytes=1000)
    assert settings.on_this_node() == settings
    monkeypatch.setenv("YOLOFLEET_SHARD_CACHE", "/cache/shards")
    assert settings.on_this_node() == CacheSettings(path=Path("/cache/shards"), max_bytes=1000)
    for text, most in (("10", 10), ("5000", 1000)):
        monkeypatch.setenv("YOLOFLEET_SHARD_CACHE_BYTES", text)
        assert settings.on_this_node().max_bytes == most, "a node can only allow less"
    monkeypatch.setenv("YOLOFLEET_SHARD_CACHE_BYTES", "10GB")
    with pytest.raises(CacheError, match="YOLOFLEET_SHARD_CACHE_BYTES is '10GB'; set it to a number of bytes"):
        settings.on_this_node()
