"""The jobs in jobs/ fit the GPUs that they name, by the forecast that a user can ask for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from yolofleet.cli.main import main
from yolofleet.specs.job import JobSpec
from yolofleet.training.setup.builders import trained_table
from yolofleet.training.setup.job_draft import USED_MEMORY_SHARE

JOBS = sorted((Path(__file__).parents[2] / "jobs").glob("coco-*.yaml"))
LARGEST = {"yolov7-tiny": 32}
"""Micro-batch that is wanted, where it is not 16."""
MODELS = ("yolov7-d6", "yolov7-e6", "yolov7-e6e", "yolov7-tiny", "yolov7-w6", "yolov7-x", "yolov7")
"""In the order of the file names."""


def total_gib(job: JobSpec, micro_batch_size: int, capsys: pytest.CaptureFixture[str]) -> float:
    """Return the forecast of `yolofleet models show` for a worker."""
    options = [f"--micro-batch-size={micro_batch_size}", "--precision=fp16", f"--workers={job.cluster.most_workers}"]
    size = f"--image-size={job.data.image_size}"
    assert main(["models", "show", str(job.model.name), *options, size, "--json"]) == 0
    strategies = json.loads(capsys.readouterr().out)["memory"]["strategies"]
    total: float = next(entry["total"] for entry in strategies if entry["strategy"] == job.strategy)
    return total / 2**30


def test_there_is_one_for_each_published_model() -> None:
    assert tuple(JobSpec.load(path).model.name for path in JOBS) == MODELS
    assert [path.stem for path in JOBS] == [f"coco-{name}" for name in MODELS]


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_it_fits_the_gpu_that_it_names_and_says_what_is_forecast(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = JobSpec.load(path)
    named = re.search(r"^# Memory: ([\d.]+) GiB a worker by forecast, for GPUs of (\d+) GB", path.read_text(), re.M)
    assert named is not None
    room = USED_MEMORY_SHARE * int(named[2]) * 1e9 / 2**30
    forecast = total_gib(job, job.micro_batch_size, capsys)
    assert named[1] == f"{forecast:.1f}"
    assert forecast <= room
    if job.micro_batch_size < LARGEST.get(str(job.model.name), 16):
        assert total_gib(job, 2 * job.micro_batch_size, capsys) > room, "twice the micro-batch would fit, too"
        assert job.micro_batch_size * job.batch_norm_workers == 16


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_it_is_the_published_run_and_can_be_planned(
    path: Path, small_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = JobSpec.load(path)
    levels = len(trained_table(job).head.inputs)
    assert (job.recipe, job.data.image_size) == (
        ("p6", 1280) if levels == 4 else ("tiny" if job.model.name == "yolov7-tiny" else "p5", 640)
    )
    assert (job.global_batch_size, job.epochs, job.hyperparameters) == (128, 300, {})
    data = [f"data.{part}={small_data / part}" for part in ("train", "val")]
    assert main(["cluster", "plan", str(path), *data, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["workers"] == job.cluster.most_workers
