"""The promise of one order, on the path that training takes: the job's stream, the workers' shares, the sample logs.

Images and boxes are compared by their digests as the network gets them, at several image sizes, with samples drawn by
weight and with broken images among them, over any number of workers and threads and any stops in between.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from system.shell import sample_rows
from yolofleet.data.build import build_dataset
from yolofleet.data.build_plan import BuildOptions
from yolofleet.data.coco import parse_coco
from yolofleet.data.problems import ProblemLog
from yolofleet.data.synth import write_synthetic_dataset
from yolofleet.specs.job import JobSpec
from yolofleet.storage import open_storage
from yolofleet.training.loop.sample_log import FOLDER, SampleLog, remove_rows_from
from yolofleet.training.loop.schedule import Schedule
from yolofleet.training.loop.worker_group import assign_micro_batches
from yolofleet.training.setup.builders import open_dataset, training_stream

STEPS, MICRO_BATCHES = 8, 8


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> JobSpec:
    """A job over 30 images in six shards, three of them broken: eight steps are more than four epochs."""
    folder = tmp_path_factory.mktemp("order")
    write_synthetic_dataset(folder, 30, seed=7, image_size=64)
    source = parse_coco((folder / "instances.json").read_bytes(), "instances.json", ProblemLog())
    build_dataset(
        source,
        open_storage(folder / "images"),
        open_storage(folder / "shards"),
        BuildOptions(shard_samples=5),
        ProblemLog(),
    )
    document = {
        "name": "order",
        "model": {"name": "yolov7-tiny"},
        "data": {"train": str(folder / "shards"), "val": str(folder / "shards"), "image_size": 64},
        "hyperparameters": {"multi_scale": 0.5, "image_weights": 0.5},
        "global_batch_size": 2 * MICRO_BATCHES,
        "micro_batch_size": 2,
    }
    made = JobSpec.parse(document, source="job")
    dataset = open_dataset(made.data, made.data.train)
    for number in (3, 11, 12):
        shard, row = dataset.locate(number)
        with (folder / "shards" / dataset.manifest.shards[shard].tar_key).open("r+b") as file:
            file.seek(int(dataset.index(shard).rows[row]["image_offset"]))
            file.write(b"broken")
    return made


def work(job: JobSpec, run: Path, start: int, end: int, num_workers: int, num_threads: int) -> None:
    """Let every worker of a group take its share of some steps, one worker after the other."""
    data = job.data.model_copy(update={"loader_threads": num_threads})
    spec = job.model_copy(update={"data": data})
    for rank in range(num_workers):
        dataset = open_dataset(spec.data, spec.data.train)
        schedule = Schedule(spec.resolved_hyperparameters(), STEPS, len(dataset) / spec.global_batch_size)
        stream = training_stream(spec, dataset, schedule)
        owned = list(assign_micro_batches(MICRO_BATCHES, rank, num_workers))
        log = SampleLog(open_storage(run), rank, record_digests=True)
        for batch in itertools.islice(stream.micro_batches(start, owned), (end - start) * len(owned)):
            log.observe(batch)
        log.close()


def seen(run: Path) -> list[tuple[Any, ...]]:
    """Everything that the logs tell, sorted: digests and keys of every micro-batch, and what was skipped."""
    return sorted(
        (row["step"], row["micro_batch"], row.get("skipped", ""), row.get("digest", ""), tuple(row.get("keys", ())))
        for row in sample_rows(run)
    )


@pytest.fixture(scope="module")
def undisturbed(job: JobSpec, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    run = tmp_path_factory.mktemp("undisturbed")
    work(job, run, 0, STEPS, num_workers=1, num_threads=0)
    return seen(run)


def test_the_undisturbed_run_is_what_the_property_needs(undisturbed: list[tuple[Any, ...]]) -> None:
    assert sum(bool(row[3]) for row in undisturbed) == STEPS * MICRO_BATCHES
    assert len({row[2] for row in undisturbed}) > 2, "broken images were met"


def _property(max_examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    part = st.tuples(st.integers(1, STEPS), st.integers(1, 8), st.integers(0, 4), st.integers(0, 2))
    return lambda test: settings(
        max_examples=max_examples, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )(given(parts=st.lists(part, min_size=1, max_size=4))(test))


def check(job: JobSpec, undisturbed: list[tuple[Any, ...]], parts: list[tuple[int, int, int, int]]) -> None:
    """Each part: until which step it gets, with how many workers and threads, and by how many steps it is cut back."""
    with tempfile.TemporaryDirectory() as folder:
        run, step = Path(folder), 0
        for until, num_workers, num_threads, lost in [*parts, (STEPS, 3, 1, 0)]:
            remove_rows_from(open_storage(run).child(FOLDER), step)  # as every start does, from its checkpoint's step
            if until > step:
                work(job, run, step, until, num_workers, num_threads)
                step = max(step, until - lost)  # what came after the last checkpoint is done again
        assert seen(run) == undisturbed


@_property(max_examples=3)
def test_any_workers_threads_and_stops_give_one_order(
    job: JobSpec, undisturbed: list[tuple[Any, ...]], parts: list[tuple[int, int, int, int]]
) -> None:
    check(job, undisturbed, parts)


@pytest.mark.slow
@_property(max_examples=60)
def test_very_many_workers_threads_and_stops_give_one_order(
    job: JobSpec, undisturbed: list[tuple[Any, ...]], parts: list[tuple[int, int, int, int]]
) -> None:
    check(job, undisturbed, parts)
