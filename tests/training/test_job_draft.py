"""The settings of a first job follow from the data and the machine, and `train` takes every one of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolofleet.models.memory import training_memory
from yolofleet.models.wiring import wire
from yolofleet.models.zoo import resolve
from yolofleet.specs.job import JobSpec
from yolofleet.specs.yaml_document import parse_yaml
from yolofleet.training.setup.job_draft import USED_MEMORY_SHARE, DataFacts, JobDraft, Machine, draft_job

GIB = 2**30
LAPTOP = Machine((), 4, 16 * GIB)


def facts(num_train: int = 2000, box: float = 0.2, longer_side: int = 640, num_classes: int = 3) -> DataFacts:
    sizes = np.random.default_rng(0).uniform(0.7, 1.4, (200, 2)) * box
    return DataFacts(num_train, num_classes, np.minimum(sizes, 1.0), longer_side)


def draft(data: DataFacts, machine: Machine, **options: object) -> JobDraft:
    urls = {"train": "shards/train", "val": "shards/val"}
    return draft_job(data, machine, name="x", data=urls, storage="runs", **options)  # type: ignore[arg-type]


def gpus(count: int, gib: int) -> Machine:
    return Machine((gib * GIB,) * count, 16, 64 * GIB)


@settings(max_examples=40)
@given(
    num_train=st.integers(1, 2_000_000),
    box=st.floats(0.001, 1),
    longer_side=st.integers(1, 20_000),
    num_classes=st.integers(1, 2000),
    machine=st.builds(
        Machine,
        st.lists(st.sampled_from([4, 8, 16, 24, 80, 141]), max_size=8).map(lambda found: tuple(n * GIB for n in found)),
        st.integers(1, 256),
        st.integers(1, 2000).map(lambda gib: gib * GIB),
    ),
)
def test_every_draft_is_a_job_that_fits(
    num_train: int, box: float, longer_side: int, num_classes: int, machine: Machine
) -> None:
    made = draft(facts(num_train, box, longer_side, num_classes), machine)
    text = made.text("a heading\nof two lines: {")
    job = JobSpec.parse(parse_yaml(text, source="draft"), source="draft")
    assert job.document() == JobSpec.parse(made.document, source="draft").document()
    assert max(len(line) for line in text.splitlines() if line.startswith("#")) <= 80
    graph = wire(resolve(job.model))
    assert job.data.image_size % graph.max_stride == 0 and job.resolved_hyperparameters().lr0 >= 0.01
    memory = training_memory(
        graph,
        num_classes=num_classes,
        size=(job.data.image_size,) * 2,
        micro_batch_size=job.micro_batch_size,
        precision="fp16" if machine.gpu_bytes else "fp32",
        num_workers=max(1, len(machine.gpu_bytes)),
    )
    room = min(machine.gpu_bytes, default=machine.memory_bytes)
    assert job.micro_batch_size == 1 or memory.total <= USED_MEMORY_SHARE * room
    assert job.cluster.gpus_per_worker == bool(machine.gpu_bytes)


def test_more_images_get_fewer_passes_and_more_steps() -> None:
    counts = [50, 300, 1000, 5000, 20_000, 100_000]
    for machine in (LAPTOP, gpus(1, 24)):
        jobs = [draft(facts(count), machine).document for count in counts]
        epochs = [job["epochs"] for job in jobs]
        assert epochs == sorted(epochs, reverse=True) and epochs[0] > epochs[-1]
    steps = [job["epochs"] * count / job["global_batch_size"] for job, count in zip(jobs, counts, strict=True)]
    assert steps == sorted(steps)


def test_small_boxes_get_a_larger_image_but_none_larger_than_the_images() -> None:
    sides = [
        draft(facts(box=box, longer_side=4000), LAPTOP).document["data"]["image_size"] for box in (0.3, 0.02, 0.001)
    ]
    assert sides[0] == 320 < sides[1] < sides[2] == 640
    assert draft(facts(box=0.001, longer_side=200), LAPTOP).document["data"]["image_size"] == 224
    assert draft(facts(box=0.001, longer_side=4000), gpus(1, 80)).document["data"]["image_size"] == 1280


@pytest.mark.parametrize(
    ("machine", "model", "workers"),
    [
        (LAPTOP, "yolov7-tiny", 1),
        (gpus(1, 3), "yolov7-tiny", 1),
        (gpus(1, 24), "yolov7", 1),
        (gpus(4, 80), "yolov7", 4),
    ],
)
def test_the_model_follows_the_memory(machine: Machine, model: str, workers: int) -> None:
    document = draft(facts(5000), machine).document
    assert (document["model"]["name"], document["cluster"]["workers"]) == (model, workers)
    assert ("precision" in document) == bool(machine.gpu_bytes)


def test_anchors_are_fitted_where_those_of_the_model_reach_too_few_boxes() -> None:
    long = DataFacts(500, 1, np.tile([[0.9, 0.01]], (100, 1)) * np.linspace(0.5, 1, 100)[:, None], 640)
    made = draft(long, LAPTOP)
    assert made.document["anchors"] == "auto" and "fitted ones 100.0%" in made.reasons["anchors"]
    assert draft(facts(), LAPTOP).document["anchors"] == "model"


def test_what_the_user_chose_is_kept() -> None:
    document = draft(facts(), gpus(1, 80), model={"name": "yolov7-w6"}, image_size=640).document
    assert document["model"] == {"name": "yolov7-w6"} and document["data"]["image_size"] == 640
    assert document["recipe"] == "p6"
