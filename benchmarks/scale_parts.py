"""The parts of `scale.py`: each returns what it measured, with the limit that it is held against."""

from __future__ import annotations

import gc
import pickle
import random
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from yolofleet.data.plan import EpochPlan, StoreLimits, plan_epochs

GIBIBYTE = 2**30
MICRO_BATCH = 16
SAMPLES_PER_SHARD = 1000
"""What shards of the default size hold, of images of 130 kB."""
NODES, WORKERS_PER_NODE = 64, 8
IMAGE_BYTES = 150_000
IMAGES_PER_SECOND = 250
"""Of one worker: YOLOv7 at 640 pixels on a data-centre GPU."""
LINK_BYTES_PER_SECOND = 3_000_000_000
"""What a node gets from an object store over 25 Gbit/s."""
STORE_BYTES_PER_SECOND, STORE_REQUESTS_PER_SECOND = 40_000_000_000, 5_500
"""What the store gives to all nodes: a large one of one's own, and what S3 answers for one prefix."""
CACHE_BYTES = 500_000_000_000
ROWS, EVENTS = 100_000, 20_000
"""Rows of metrics of a run of five million steps; events of 1,000 workers on nodes that come and go."""


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    workers: int
    samples: int
    trials: int

    @property
    def shards(self) -> int:
        """Shards of the dataset."""
        return max(1, self.samples // SAMPLES_PER_SHARD)


@dataclass
class Measure:
    """One measured thing.

    Attributes:
        what: What was done.
        limit_seconds: Processor time that it may take.
        limit_bytes: Memory that it may add.
        seconds: Processor time that it took.
        bytes: Memory that it added at the peak.
    """

    what: str
    limit_seconds: float
    limit_bytes: int = GIBIBYTE
    seconds: float = 0.0
    bytes: int = 0

    def document(self) -> dict[str, Any]:
        """Return it as JSON values, with its share of the limit."""
        shares = {"time": self.seconds / self.limit_seconds, "memory": self.bytes / self.limit_bytes}
        kind = max(shares, key=lambda name: shares[name])
        return asdict(self) | {"share": round(shares[kind], 5), "kind": kind}


@contextmanager
def measuring(what: str, limit_seconds: float, *, times: int = 1) -> Iterator[Measure]:
    """Measure a with block that does something ``times`` times; its memory is the new peak above the present."""
    gc.collect()
    measure = Measure(what, limit_seconds)
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began = time.process_time()
    yield measure
    measure.seconds = (time.process_time() - began) / times
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    measure.bytes = peak - resident if peak > before else 0


def _job(scale: Scale) -> dict[str, Any]:
    return {
        "name": "scale", "model": {"name": "yolov7"}, "data": {"train": "s3://data/train", "val": "s3://data/val"},
        "global_batch_size": scale.workers * MICRO_BATCH, "micro_batch_size": MICRO_BATCH, "storage": "s3://runs",
        "cluster": {"workers": scale.workers}, "tracking": {"uri": "http://mlflow:5000"},
    }  # fmt: skip


def submission(scale: Scale, folder: Path) -> list[Measure]:
    """Send a job to a cluster that knows a thousand others. A minute is what somebody waits for a prompt."""
    import ray.job_submission  # noqa: F401 - not part of what is measured
    import yaml

    from cluster.fake_jobs import fake_jobs
    from yolofleet.cluster.bundle import read_bundle
    from yolofleet.cluster.service import JobService

    spec = folder / "job.yaml"
    spec.write_text(yaml.safe_dump(_job(scale)))
    with fake_jobs() as jobs:
        other = {"entrypoint": "true", "runtime_env": {}}
        jobs.requests += [
            other | {"submission_id": f"job-{number}", "metadata": {"name": f"run-{number}"}} for number in range(1000)
        ]
        with measuring("pack a job and send it", 60) as measure:
            _, is_new = JobService(jobs.address).send(read_bundle(spec, []))
    if not is_new or len(jobs.requests) != 1001:
        raise RuntimeError("the job was not sent")
    return [measure]


def _workers(scale: Scale) -> list[Any]:
    from yolofleet.training.supervision.heartbeats import WorkerStatus

    figures = {name: 1.0 for name in ("loss", "loss_box", "samples_per_second", "data_wait_share", "learning_rate")}
    return [
        WorkerStatus("group", rank, scale.workers, 1000 + rank, f"{rank:056x}", f"10.0.{rank // 256}.{rank % 256}",
                     step=7, metrics=figures if rank == 0 else {}, gpu_used_bytes=1, gpu_total_bytes=2)
        for rank in range(scale.workers)
    ]  # fmt: skip


def reports(scale: Scale, folder: Path) -> list[Measure]:
    """Let all workers report themselves once to the actor that lists them; they do each second."""
    import psutil
    import ray

    from yolofleet.training.supervision.heartbeats import HeartbeatBoard

    _start_ray()
    board = ray.remote(num_cpus=0)(HeartbeatBoard).remote()
    process = psutil.Process(ray.get(board.__ray_call__.remote(lambda _: __import__("os").getpid())))
    workers = _workers(scale)
    ray.get(board.begin.remote("group"))
    ray.get([board.report.remote(worker) for worker in workers])
    before, resident = sum(process.cpu_times()[:2]), process.memory_info().rss
    rounds = 3
    for _ in range(rounds):
        ray.get([board.report.remote(worker) for worker in workers])
    measure = Measure("list one report of each worker, in Ray's actor", 1.0)
    measure.seconds = (sum(process.cpu_times()[:2]) - before) / rounds
    measure.bytes = max(0, process.memory_info().rss - resident)
    if len(ray.get(board.workers.remote())[1]) != scale.workers:
        raise RuntimeError("a report is missing")
    ray.shutdown()
    return [measure]


def _start_ray(tries: int = 3) -> None:
    """Start a Ray of our own; on a busy machine it may give up on its own parts, so it is tried again."""
    import ray

    for left in reversed(range(tries)):
        try:
            ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="error", log_to_driver=False)
            return
        except Exception:  # Ray raises plain exceptions here
            ray.shutdown()
            if left == 0:
                raise


def watch(scale: Scale, folder: Path) -> list[Measure]:
    """Look at all workers' reports as the driver does each second: who is silent, how far, what is published."""
    from yolofleet.specs.job import JobSpec
    from yolofleet.training.metrics.publisher import worker_readings
    from yolofleet.training.supervision.heartbeats import newest_progress, silent_workers

    job = JobSpec.parse(_job(scale), source="job")
    wire = pickle.dumps(_workers(scale))  # as Ray brings it
    rounds = 10
    with measuring("look at every worker's report, in the driver", 1.0, times=rounds) as measure:
        for _ in range(rounds):
            workers = pickle.loads(wire)
            if newest_progress(1.0, workers) is None or len(silent_workers(1.0, workers, 600.0)) > 0:
                raise RuntimeError("a worker is not heard")
            if len([*worker_readings(job, 1.0, workers)]) < 3 * scale.workers:
                raise RuntimeError("a worker is not published")
    return [measure]


def manifest(scale: Scale, folder: Path) -> list[Measure]:
    """Write the manifest of all shards, as a build does once. Ten minutes and 8 GiB: shards take days."""
    from yolofleet.core.file_names import MANIFEST_NAME
    from yolofleet.data.manifest import Manifest, ShardEntry
    from yolofleet.data.records import ObjectClass

    with measuring("write the manifest", 600) as measure:
        shards = tuple(
            ShardEntry(f"{number:08d}", 2**27, f"{number:064x}", SAMPLES_PER_SHARD, f"{number + 7:064x}")
            for number in range(scale.shards)
        )
        made = Manifest((ObjectClass(1, "thing"),), (scale.samples,), scale.samples, 0, scale.samples, 0, shards, "0")
        (folder / MANIFEST_NAME).write_bytes(made.to_bytes())
    measure.limit_bytes = 8 * GIBIBYTE
    return [measure]


def dataset(scale: Scale, folder: Path) -> list[Measure]:
    """Open the dataset as each worker does at each start. A minute, and 2 GiB of a node's memory for each worker."""
    from yolofleet.data.dataset import ShardDataset

    with measuring("open the dataset, in each worker", 60) as opening:
        data = ShardDataset(folder)
        if len(data) != scale.samples or int(data.shard_sizes.sum()) != scale.samples:
            raise RuntimeError("samples are missing")
    opening.limit_bytes = 2 * GIBIBYTE
    with measuring("its digest, once for each start of a run", 60) as digest:
        data.manifest.digest  # noqa: B018 - computed each time
    digest.limit_bytes = 2 * GIBIBYTE
    with measuring("hand it to a loader process", 10) as handing:
        pickle.loads(pickle.dumps(data))
    handing.limit_bytes = 2 * GIBIBYTE
    return [opening, digest, handing]


def order(scale: Scale, folder: Path) -> list[Measure]:
    """Find samples by their lane and position. A start may take 10 s; one GPU takes at most 1,000 images a second."""
    import numpy as np

    from yolofleet.data.order import SampleOrder

    sizes = np.full(scale.shards, scale.samples // scale.shards, dtype=np.int64)
    with measuring("begin a lane's order", 10) as begin:
        source = SampleOrder(sizes, seed=1, num_lanes=scale.workers)
        source.locate(0, source.lane_length(0) * 2 + 5)
    numbers = random.Random(1)
    lane = scale.workers // 2
    places = [numbers.randrange(3 * source.lane_length(lane)) for _ in range(2000)]
    with measuring("find a sample anywhere in a lane", 0.1, times=len(places)) as anywhere:
        for position in places:
            source.locate(lane, position)
    own = range(source.lane_length(lane) * 2, source.lane_length(lane) * 2 + 2000 * MICRO_BATCH)
    with measuring("find the next sample of one rank", 0.001, times=len(own)) as following:
        for position in own:
            source.locate(lane, position)
    return [begin, anywhere, following]


def data_plane(scale: Scale, folder: Path) -> list[Measure]:
    """Let nodes stream a dataset from a model of an object store: bytes, waits and requests of the first epoch.

    A share is that of what the link, the store or the cache gives in the time that training takes without waiting.
    """
    found = []
    for num_shards in (10**4, 10**6):
        planned, seconds = _planned(num_shards, NODES)
        name = f"{NODES} nodes, {num_shards:,} shards"
        node_bytes = max(node.downloaded_bytes[0] for node in planned.nodes)
        total_bytes = sum(node.downloaded_bytes[0] for node in planned.nodes)
        requests = sum(node.requests[0] for node in planned.nodes)
        found += [
            Measure(f"{name}: wait for the first batch", 60.0, seconds=planned.start_seconds),
            Measure(f"{name}: waits for data in an epoch", 0.1 * seconds, seconds=planned.stall_seconds[0]),
            Measure(f"{name}: a node's link", seconds, seconds=node_bytes / LINK_BYTES_PER_SECOND),
            Measure(f"{name}: the store's bandwidth", seconds, seconds=total_bytes / STORE_BYTES_PER_SECOND),
            Measure(f"{name}: the store's requests", seconds, seconds=requests / STORE_REQUESTS_PER_SECOND),
            Measure(f"{name}: shards that a node reads at a time", seconds, CACHE_BYTES, 0.0, planned.working_bytes),
        ]
    return found


def bytes_over_dataset(nodes: Sequence[int] = (1, 2, 4, 8, 64), num_shards: int = 10**4) -> dict[str, float]:
    """Return the bytes that all nodes together download in the first epoch, as multiples of the dataset."""
    size = num_shards * SAMPLES_PER_SHARD * IMAGE_BYTES
    plans = {count: _planned(num_shards, count)[0] for count in nodes}
    return {
        f"bytes_over_dataset_{count}_nodes": sum(node.downloaded_bytes[0] for node in planned.nodes) / size
        for count, planned in plans.items()
    }


def _planned(num_shards: int, num_nodes: int) -> tuple[EpochPlan, float]:
    """Return the plan of an epoch on nodes with a lane for each worker, and the seconds that it takes without waits."""
    num_lanes = num_nodes * WORKERS_PER_NODE
    step_seconds = MICRO_BATCH / IMAGES_PER_SECOND
    planned = plan_epochs(
        np.full(num_shards, SAMPLES_PER_SHARD),
        np.full(num_shards, SAMPLES_PER_SHARD * IMAGE_BYTES),
        node_of_lane=[[lane * num_nodes // num_lanes for lane in range(num_lanes)]],
        micro_batch_size=MICRO_BATCH,
        cache_bytes=CACHE_BYTES,
        bytes_per_second=LINK_BYTES_PER_SECOND,
        steps_per_second=1 / step_seconds,
        store=StoreLimits(STORE_BYTES_PER_SECOND, STORE_REQUESTS_PER_SECOND),
        deal="fixed",
        num_epochs=1,
    )
    return planned, num_shards * SAMPLES_PER_SHARD / (num_lanes * MICRO_BATCH) * step_seconds


def rows(scale: Scale, folder: Path) -> list[Measure]:
    """Keep a run's rows and events. The loop may wait a millisecond for a row; a restart half a minute to read all."""
    from yolofleet.tracking.goodput import summarize_run
    from yolofleet.tracking.run_directory import RunDirectory

    row = {name: 0.123456789 for name in ("loss", "loss_box", "loss_objectness", "loss_classification", "momentum")}
    with RunDirectory.open(folder / "runs", "scale") as run:
        with measuring("append a row of metrics", 0.001, times=ROWS) as append:
            for step in range(ROWS):
                run.append_metrics({"step": step, **row})
        for number in range(EVENTS // 2):
            run.append_event("failure", failure="worker", reason="rank 7 died", reached=number, again=True)
            run.append_event("regained", step=number, steps_redone=1, seconds_lost=0.001)
    with measuring("read all rows at a restart", 30) as reading, RunDirectory.open(folder / "runs", "scale") as run:
        if len(run.metrics()) != ROWS:
            raise RuntimeError("rows are missing")
    run = RunDirectory.open(folder / "runs", "scale")
    with measuring("read all events and account for them", 30) as account:
        if summarize_run(run.events()).failures != {"worker": EVENTS // 2}:
            raise RuntimeError("events are missing")
    return [append, reading, account]


class _Sink:
    """An MLflow client that takes everything."""

    def __init__(self) -> None:
        self.num_metrics = 0

    def log_batch(self, run_id: str, metrics: Any = (), **_: Any) -> None:
        self.num_metrics += len(metrics)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **options: None


def mirroring(scale: Scale, folder: Path) -> list[Measure]:
    """Send the run to MLflow: all of it after an outage within ten minutes, one row more within the mirror's 5 s."""
    from yolofleet.tracking.mirror import MirroredRun
    from yolofleet.tracking.run_directory import RunDirectory

    with RunDirectory.open(folder / "runs", "scale") as run:
        sink, mirrored = _Sink(), MirroredRun(run, "http://nowhere", "scale")
        mirrored._client, mirrored.run_id = sink, "run"  # type: ignore[assignment]  # the process's edge
        with measuring("send everything to MLflow after an outage", 600) as everything:
            mirrored.sync()
        sent = sink.num_metrics
        run.append_metrics({"step": ROWS, "loss": 0.5})
        run.append_event("checkpoint", step=ROWS, seconds=0.1)
        with measuring("send one row and one event more", 5) as more:
            mirrored.sync()
        if sent < 5 * ROWS or sink.num_metrics != sent + 1:
            raise RuntimeError("rows were not sent")
    return [everything, more]


def search(scale: Scale, folder: Path) -> list[Measure]:
    """Plan trials of a long search. With a worker each for an hour, a segment must be planned in 3600 s / workers."""
    from response_surface import CONSTRAINTS, OBJECTIVES, PARAMETERS, measured_ap, screen
    from yolofleet.search.engine import COMPLETED, Engine, SegmentResult, TrialSegment
    from yolofleet.search.history import Observation
    from yolofleet.search.searcher import Searcher, SearchProblem
    from yolofleet.search.space import random_point
    from yolofleet.search.trials import Measurement, Trials
    from yolofleet.specs.search_parts import AlgorithmSpec, BudgetSpec

    def planner(record: Trials, algorithm: str) -> Engine:
        searcher = Searcher(
            SearchProblem(
                PARAMETERS,
                objectives=OBJECTIVES,
                constraints=CONSTRAINTS,
                algorithm=AlgorithmSpec(name=algorithm),
                screen=screen,
                known=frozenset({"gflops"}),
                seed=1,
            )
        )
        return Engine(record, searcher, BudgetSpec(trials=10 * scale.trials))

    kept: list[dict[str, Any]] = []
    earlier = Trials(store_row=kept.append)
    for number in range(scale.trials):
        values = PARAMETERS.at(random_point(1, number, len(PARAMETERS)))
        trial = earlier.suggest(Observation(values, screen(values).figures)).number
        measured = {"val_AP": measured_ap(values, 1.0, 1, number)}
        earlier.measure(trial, Measurement(0, 1.0, 9, measured, 3600.0))
        earlier.end(trial, COMPLETED)
    found = []
    with measuring(f"read the record of {scale.trials} trials again", 60) as reading:
        trials = Trials()
        trials.replay(kept)
    found.append(reading)
    for algorithm in ("random", "gaussian_process"):
        engine = planner(trials, algorithm)
        count = 5
        with measuring(f"plan a trial after them ({algorithm})", 3600 / scale.workers, times=count) as planning:
            for number in range(count):
                segment = engine.next_segment()
                if not isinstance(segment, TrialSegment):
                    raise RuntimeError("the search ended early")
                engine.complete(
                    segment, SegmentResult(9, 1.0, {"val_AP": measured_ap(segment.values, 1.0, 1, number)}, 3600.0)
                )
        found.append(planning)
    return found


PARTS: dict[str, Callable[[Scale, Path], list[Measure]]] = {
    "submission": submission,
    "reports": reports,
    "watch": watch,
    "manifest": manifest,
    "dataset": dataset,
    "order": order,
    "data_plane": data_plane,
    "rows": rows,
    "mirroring": mirroring,
    "search": search,
}
"""In their order: the dataset is the one whose manifest was written, the mirror's run the one whose rows were."""
