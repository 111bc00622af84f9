"""A small space over a small job."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

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
def written() -> Callable[..., SearchSpec]:
    """Parse the small space with changes: ``change(parameters={...})``."""

    def change(**changes: Any) -> SearchSpec:
        return SearchSpec.parse(copy.deepcopy(SMALL) | changes, source="space.yaml")

    return change
