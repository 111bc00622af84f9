"""How long shards take to come from an object store that is slow, against the least time that it allows.

    python benchmarks/fetching.py [--json] [--only delay|bandwidth]

`delay`: 16 small shards; each of them, and each index, comes after a second. With four fetchers a node they are read by
one process; by four that all want the same shards; by four that want four each. One after the other they would take
16 s, four at a time 4 s. `first_sample_seconds` is the time to the first sample. `requests_over_shards` is 1 where none
is fetched twice.

`bandwidth`: shards of 128 MB from a store that gives 200 MB/s in all, with and without a limit of 50 MB/s for each
connection; shares of those 200 MB/s, the best of several rounds, in turns. `cache` is the shard cache with four
fetchers, digests included; `cache_one_shard` a single shard that is needed now. Beside it, without digests: `boto3`,
one stream for each of four threads; `s3transfer`, boto3's own parallel download; `obstore`, in ranges of 16 MiB by four
threads, where it can be imported. Of all, processor seconds for a gigabyte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from slow_s3 import slow_s3
from yolofleet.data.build import build_dataset
from yolofleet.data.build_plan import BuildOptions
from yolofleet.data.cache import ShardCache
from yolofleet.data.cache_folder import CacheSettings
from yolofleet.data.coco import parse_coco
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.manifest import ShardEntry
from yolofleet.data.problems import ProblemLog
from yolofleet.data.synth import write_synthetic_dataset
from yolofleet.storage import open_storage

NUM_SHARDS = 16
NUM_FETCHERS = 4
DELAY_SECONDS = 1.0
LARGE_BYTES = 128 * 10**6
NUM_LARGE = 4
TOTAL_RATE = 200.0
CONNECTION_RATES = {"50_a_connection": 50.0, "no_limit_a_connection": None}
RANGE_BYTES = 16 << 20


def read(cache: Path, shards: list[int], worker: int, num_workers: int, barrier: Barrier, times: Any) -> None:
    """Read the first sample of each shard in one of several processes of a node, and put two times into a queue."""
    os.environ |= {"LOCAL_WORLD_SIZE": str(num_workers), "LOCAL_RANK": str(worker)}
    dataset = ShardDataset("s3://bucket/shards", CacheSettings(path=cache, fetchers=NUM_FETCHERS))
    barrier.wait()
    begun = time.perf_counter()
    dataset.prefetch(shards)
    first = None
    for shard in shards:
        dataset.read(int(dataset.shard_starts[shard]))
        first = first or time.perf_counter() - begun
    times.put((first, time.perf_counter() - begun))


def measure_delay(root: Path, shards_of_workers: list[list[int]]) -> dict[str, float]:
    """Let processes read through an empty cache that they share."""
    with slow_s3(root / "served", delay_seconds=DELAY_SECONDS) as log:
        context = multiprocessing.get_context("spawn")
        barrier, times = context.Barrier(len(shards_of_workers)), context.Queue()
        cache = root / "cache"
        arguments = [
            (cache, shards, worker, len(shards_of_workers), barrier, times)
            for worker, shards in enumerate(shards_of_workers)
        ]
        processes = [context.Process(target=read, args=each) for each in arguments]
        for process in processes:
            process.start()
        firsts, ends = zip(*(times.get(timeout=300) for _ in processes), strict=True)
        for process in processes:
            process.join()
        num_requests = sum(line.endswith(".tar") for line in log.read_text().splitlines())
        shutil.rmtree(cache)
    return {
        "seconds": round(max(ends), 2),
        "over_one_after_the_other": round(max(ends) / (NUM_SHARDS * DELAY_SECONDS), 3),
        "first_sample_seconds": round(max(firsts), 2),
        "requests_over_shards": num_requests / NUM_SHARDS,
    }


def delay(root: Path) -> dict[str, Any]:
    """Measure shards that come late."""
    write_synthetic_dataset(root / "images", 4 * NUM_SHARDS, seed=0, image_size=64)
    problems = ProblemLog()
    source = parse_coco((root / "images/instances.json").read_bytes(), "instances.json", problems)
    out = open_storage(root / "served/bucket/shards")
    build_dataset(source, open_storage(root / "images/images"), out, BuildOptions(shard_samples=4), problems)
    every = list(range(NUM_SHARDS))
    return {
        "one_process": measure_delay(root, [every]),
        "four_processes_same_shards": measure_delay(root, [every] * 4),
        "four_processes_own_shards": measure_delay(root, [every[worker * 4 :][:4] for worker in range(4)]),
    }


def cache_way(entries: list[ShardEntry], out: Path) -> None:
    """Fetch through the shard cache, in the order of the shards."""
    storage, cache = open_storage("s3://bucket"), ShardCache(CacheSettings(path=out, fetchers=NUM_FETCHERS))
    cache.prefetch(storage, entries)
    for entry in entries:
        os.close(cache.open(storage, entry))


def boto3_way(entries: list[ShardEntry], out: Path) -> None:
    """Read each object as one stream."""
    import boto3

    client = boto3.client("s3")

    def fetch(entry: ShardEntry) -> None:
        body = client.get_object(Bucket="bucket", Key=entry.tar_key)["Body"]
        with (out / entry.name).open("wb") as target:
            while block := body.read(1 << 20):
                target.write(block)

    with ThreadPoolExecutor(NUM_FETCHERS) as pool:
        list(pool.map(fetch, entries))


def s3transfer_way(entries: list[ShardEntry], out: Path) -> None:
    """Let boto3's managed download fetch one object after the other, each in parallel ranges."""
    import boto3
    from boto3.s3.transfer import TransferConfig

    client = boto3.client("s3")
    config = TransferConfig(max_concurrency=NUM_FETCHERS)
    for entry in entries:
        client.download_file("bucket", entry.tar_key, str(out / entry.name), Config=config)


def obstore_way(entries: list[ShardEntry], out: Path) -> None:
    """Fetch ranges of 16 MiB with obstore."""
    from obstore import get_range
    from obstore.store import S3Store

    store = S3Store(
        "bucket",
        endpoint=os.environ["AWS_ENDPOINT_URL"],
        client_options={"allow_http": True},
        virtual_hosted_style_request=False,
    )

    def fetch(part: tuple[ShardEntry, int]) -> None:
        entry, start = part
        data = get_range(store, entry.tar_key, start=start, end=min(entry.bytes, start + RANGE_BYTES))
        descriptor = os.open(out / entry.name, os.O_WRONLY | os.O_CREAT)
        os.pwrite(descriptor, data, start)
        os.close(descriptor)

    parts = [(entry, start) for entry in entries for start in range(0, entry.bytes, RANGE_BYTES)]
    with ThreadPoolExecutor(NUM_FETCHERS) as pool:
        list(pool.map(fetch, parts))


def bandwidth(root: Path, num_rounds: int) -> dict[str, Any]:
    """Measure large shards."""
    folder = root / "served/bucket/shards"
    folder.mkdir(parents=True)
    entries = []
    for number in range(NUM_LARGE):
        name, data, index = f"shard-{number}", os.urandom(LARGE_BYTES), os.urandom(1000)
        (folder / f"{name}.tar").write_bytes(data)
        (folder / f"{name}.index").write_bytes(index)
        digests = [hashlib.sha256(part).hexdigest() for part in (data, index)]
        entries.append(ShardEntry(name, LARGE_BYTES, digests[0], 1000, digests[1]))
    ways: dict[str, tuple[Callable[[list[ShardEntry], Path], None], list[ShardEntry]]] = {
        "cache": (cache_way, entries),
        "cache_one_shard": (cache_way, entries[:1]),
        "boto3": (boto3_way, entries),
        "s3transfer": (s3transfer_way, entries),
    }
    try:
        import obstore  # noqa: F401
    except ImportError:
        pass
    else:
        ways["obstore"] = (obstore_way, entries)
    result: dict[str, Any] = {}
    for kind, connection_rate in CONNECTION_RATES.items():
        shares: dict[str, list[float]] = {way: [] for way in ways}
        costs: dict[str, list[float]] = {way: [] for way in ways}
        with slow_s3(root / "served", connection_rate=connection_rate, total_rate=TOTAL_RATE):
            for _ in range(num_rounds):
                for way, (fetch, wanted) in ways.items():
                    out = root / "out"
                    out.mkdir(mode=0o700)
                    begun, used = time.perf_counter(), time.process_time()
                    fetch(wanted, out)
                    megabytes = sum(entry.bytes for entry in wanted) / 1e6
                    shares[way].append(megabytes / (time.perf_counter() - begun) / TOTAL_RATE)
                    costs[way].append((time.process_time() - used) / megabytes * 1000)
                    shutil.rmtree(out)
        result[kind] = {
            "share_of_bandwidth": {way: round(max(found), 3) for way, found in shares.items()},
            "processor_seconds_a_gigabyte": {way: round(min(found), 2) for way, found in costs.items()},
        }
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["delay", "bandwidth"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print only JSON")
    arguments = parser.parse_args()
    os.environ |= {"AWS_DEFAULT_REGION": "us-east-1"}
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        if arguments.only != "bandwidth":
            result["delay"] = delay(Path(name) / "delay")
        if arguments.only != "delay":
            result["bandwidth"] = bandwidth(Path(name) / "bandwidth", arguments.rounds)
    if arguments.json:
        print(json.dumps(result))
        return
    for part, cases in result.items():
        for case, values in cases.items():
            for key, value in values.items():
                print(f"{part:<10} {case:<28} {key:<30} {value}")


if __name__ == "__main__":
    main()
