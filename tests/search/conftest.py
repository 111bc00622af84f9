"""A small search space over a small job, and small drawn data for it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from yolofleet.cli.main import main
from yolofleet.specs.search import SearchSpec

SMALL: dict[str, Any] = {
    "name": "small",
    "job": {
        "name": "base",
        "model": {"name": "yolov7-tiny", "transition_width": 0.25, "hidden_width": 0.25},
        "data": {"train": "train", "val": "val", "image_size": 64},
        "recipe": "tiny",
        "epochs": 2,
        "global_batch_size": 8,
        "micro_batch_size": 4,
    },
    "parameters": {
        "model.transition_width": {"uniform": [0.25, 1.0]},
        "hyperparameters.lr0": {"log_uniform": [0.001, 0.1]},
    },
    "budget": {"trials": 4},
}


@pytest.fixture
def make_spec() -> Callable[..., SearchSpec]:
    """Parse the small space with changes: ``change(parameters={...})``."""

    def change(**changes: Any) -> SearchSpec:
        return SearchSpec.parse(copy.deepcopy(SMALL) | changes, source="space.yaml")

    return change


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small drawn training and validation shards."""
    folder = tmp_path_factory.mktemp("drawn")
    assert main(["data", "synth", str(folder / "images"), "--images", "40", "--seed", "3", "--image-size", "64"]) == 0
    for part in ("train", "val"):
        annotations = folder / f"images/instances_{part}.json"
        assert main(["data", "shard", str(annotations), str(folder / "images/images"), str(folder / part)]) == 0
    return folder


@pytest.fixture
def make_spec_over_data(
    make_spec: Callable[..., SearchSpec], shards: Path, tmp_path: Path
) -> Callable[..., SearchSpec]:
    """Parse the small space over the drawn data, its runs in the test's folder."""

    def change(**changes: Any) -> SearchSpec:
        job = copy.deepcopy(SMALL["job"])
        job |= {
            "data": {"train": str(shards / "train"), "val": str(shards / "val"), "image_size": 64},
            "hyperparameters": {"warmup_min_steps": 2, "warmup_epochs": 0.5, "ema_ramp_steps": 10},
            "storage": str(tmp_path / "runs"),
            "log_every_steps": 1,
            "evaluation": {"every_epochs": 0.5, "batch_size": 8},
        }
        return make_spec(**({"job": job} | changes))

    return change
