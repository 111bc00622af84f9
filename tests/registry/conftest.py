"""A small detector package and an MLflow store for the registry's tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from yolofleet.tracking.mlflow_store import open_client

CLASSES = [(3, "circle"), (7, "square"), (9, "tree")]


@pytest.fixture(scope="session")
def detector_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployed detector with random weights: what it finds means nothing, but it always finds the same."""
    import torch

    from yolofleet.evaluation.detector import save_detector
    from yolofleet.models import build_model
    from yolofleet.specs.model import ModelChoice

    torch.manual_seed(0)
    choice = ModelChoice(name="yolov7-tiny", transition_width=0.125, hidden_width=0.125)
    model = build_model(choice, num_classes=len(CLASSES), deployed=True)
    folder = tmp_path_factory.mktemp("package") / "detector"
    return save_detector(folder, model, CLASSES, 64, confidence=0.001, max_detections=20)


@pytest.fixture
def own_package(detector_package: Path, tmp_path: Path) -> Path:
    """A copy of the package that a test may change."""
    return Path(shutil.copytree(detector_package, tmp_path / "own-package"))


@pytest.fixture(scope="session")
def pictures() -> list[NDArray[np.uint8]]:
    """Three pictures of different sizes."""
    random = np.random.default_rng(1)
    return [random.integers(0, 256, (height, width, 3), np.uint8) for height, width in ((60, 80), (64, 64), (90, 40))]


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new MLflow database: making its tables takes seconds, copying it does not."""
    folder = tmp_path_factory.mktemp("store")
    open_client(f"sqlite:///{folder}/mlflow.db")
    return folder / "mlflow.db"


@pytest.fixture
def tracking_uri(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An MLflow store of the test's own; nothing may appear in the current folder."""
    store = tmp_path / "store"
    store.mkdir()
    shutil.copy(empty_store, store / "mlflow.db")
    current = tmp_path / "current"
    current.mkdir()
    monkeypatch.chdir(current)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield f"sqlite:///{store}/mlflow.db"
    assert os.listdir(current) == []
