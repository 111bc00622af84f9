"""What it costs to train from object storage: an epoch's micro-batches from S3, against the same from files.

    python benchmarks/object_storage.py [FOLDER_OF_JPEGS] [--json]

The shards of the images lie in a folder and on an S3 server on this machine (rclone). One epoch of training
micro-batches is taken from files, from S3 with an empty shard cache (`cold`) and from S3 with a full one (`warm`), in
turns, each with a dataset opened anew; wall time, the best of several rounds. `cold_over_file` contains the wait for
the first shard, which nothing can hide; `cold_over_file_after_first` begins after the first micro-batch, where fetching
the next shards hides behind decoding. The digests of all micro-batches are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from data_path import MICRO_BATCH, SETTINGS, SIDE, made_up_annotations
from yolofleet.data.build import build_dataset
from yolofleet.data.build_plan import BuildOptions
from yolofleet.data.cache_folder import CacheSettings
from yolofleet.data.coco import parse_coco
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.problems import ProblemLog
from yolofleet.data.stream import TrainingStream
from yolofleet.storage import open_storage

KEYS = ("bench-key", "bench-secret")
SHARD_BYTES = 2 << 20


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[None]:
    """Serve a folder's folders as buckets, and point this process's environment to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).parent / "rclone"), "serve", "s3", "--addr", f"127.0.0.1:{port}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([*command, "--auth-key", ",".join(KEYS), str(folder)], **quiet)  # type: ignore[call-overload]
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": KEYS[0],
        "AWS_SECRET_ACCESS_KEY": KEYS[1],
        "AWS_REGION": "us-east-1",
    }
    try:
        deadline = time.monotonic() + 30
        while socket.socket().connect_ex(("127.0.0.1", port)):
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit("the S3 server did not start")
            time.sleep(0.1)
        yield
    finally:
        server.kill()
        server.wait()


def epoch(dataset: ShardDataset) -> tuple[float, float, list[str]]:
    """Seconds of the first and of all further micro-batches of an epoch, and their digests."""
    stream = TrainingStream(
        dataset,
        seed=0,
        image_size=SIDE,
        global_batch_size=MICRO_BATCH,
        micro_batch_size=MICRO_BATCH,
        augmentation=SETTINGS,
        num_threads=1,
    )
    begun = time.perf_counter()
    batches = itertools.islice(stream.micro_batches(0, [0]), len(dataset) // MICRO_BATCH)
    taken = [next(batches)]
    first = time.perf_counter()
    taken += batches
    return first - begun, time.perf_counter() - first, [batch.digest() for batch in taken]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = os.environ.get("YOLOFLEET_TEST_DATA")
    parser.add_argument("folder", type=Path, nargs="?", default=Path(given) / "coco128/images" if given else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print only JSON")
    arguments = parser.parse_args()
    if arguments.folder is None or not arguments.folder.is_dir():
        parser.error("name a folder of JPEGs, or set YOLOFLEET_TEST_DATA")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        problems = ProblemLog()
        document = json.dumps(made_up_annotations(arguments.folder)).encode()
        source = parse_coco(document, str(arguments.folder), problems)
        local = root / "served" / "bucket" / "shards"
        options = BuildOptions(shard_bytes=SHARD_BYTES)
        build_dataset(source, open_storage(arguments.folder), open_storage(local), options, problems)
        seconds: dict[str, list[tuple[float, float]]] = {"file": [], "cold": [], "warm": []}
        with s3_server(root / "served"):
            for _ in range(arguments.rounds):
                cache = CacheSettings(path=root / "cache")
                shutil.rmtree(cache.path, ignore_errors=True)
                digests = set()
                for kind in seconds:
                    dataset = ShardDataset(local) if kind == "file" else ShardDataset("s3://bucket/shards", cache)
                    first, further, seen = epoch(dataset)
                    seconds[kind].append((first, further))
                    digests.add(tuple(seen))
                if len(digests) != 1:
                    sys.exit("the micro-batches differ")
        num_shards = len(ShardDataset(local).manifest.shards)
    whole = {kind: min(first + further for first, further in times) for kind, times in seconds.items()}
    behind = {kind: min(further for _, further in times) for kind, times in seconds.items()}
    result = {
        "warm_over_file": round(whole["warm"] / whole["file"], 3),
        "cold_over_file": round(whole["cold"] / whole["file"], 3),
        "cold_over_file_after_first": round(behind["cold"] / behind["file"], 3),
        "first_micro_batch_seconds": {
            kind: round(min(first for first, _ in times), 3) for kind, times in seconds.items()
        },
        "shards": num_shards,
    }
    if arguments.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key:<28} {value}")


if __name__ == "__main__":
    main()
