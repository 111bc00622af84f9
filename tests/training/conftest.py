"""A small drawn dataset, and a job that trains on it in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yolofleet.data.build import build_dataset
from yolofleet.data.build_plan import BuildOptions
from yolofleet.data.coco import parse_coco
from yolofleet.data.problems import ProblemLog
from yolofleet.data.synth import write_synthetic_dataset
from yolofleet.specs.job import JobSpec
from yolofleet.storage import open_storage


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shards ``train`` and ``val``."""
    folder = tmp_path_factory.mktemp("small")
    write_synthetic_dataset(folder, 40, seed=3, image_size=96)
    for part in ("train", "val"):
        problems = ProblemLog()
        source = parse_coco((folder / f"instances_{part}.json").read_bytes(), f"instances_{part}.json", problems)
        out = open_storage(folder / part)
        build_dataset(source, open_storage(folder / "images"), out, BuildOptions(), problems)
    return folder


@pytest.fixture
def small_job(small_data: Path, tmp_path: Path) -> Callable[..., JobSpec]:
    """Make a job over the small data; keywords are fields that differ."""

    def make(**changes: Any) -> JobSpec:
        document: dict[str, Any] = {
            "name": "small",
            "model": {"name": "yolov7-tiny", "transition_width": 0.25, "hidden_width": 0.25},
            "data": {"train": str(small_data / "train"), "val": str(small_data / "val"), "image_size": 64},
            "recipe": "tiny",
            "hyperparameters": {"warmup_min_steps": 4, "warmup_epochs": 0.5, "ema_ramp_steps": 10},
            "epochs": 2,
            "global_batch_size": 8,
            "micro_batch_size": 4,
            "log_every_steps": 1,
            "record_samples": True,
            "storage": str(tmp_path / "runs"),
            "checkpoint": {"every_steps": 2, "keep": 2},
        }
        return JobSpec.parse(document | changes, source="job")

    return make
