"""A small detector package and an MLflow store for the registry's tests."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from yolofleet.tracking.mlflow_store import open_client

SIDE = 64
NUM_KNOWN = 12
CLASSES = [(3, "circle"), (7, "square"), (9, "tree")]


@pytest.fixture(scope="session")
def detector_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployed detector with random weights: what it finds means nothing, but it always finds the same."""
    import torch

    from yolofleet.evaluation.detector_package import save_detector
    from yolofleet.models import build_model
    from yolofleet.specs.model import ModelChoice

    torch.manual_seed(0)
    choice = ModelChoice(name="yolov7-tiny", transition_width=0.125, hidden_width=0.125)
    model = build_model(choice, num_classes=len(CLASSES), deployed=True)
    folder = tmp_path_factory.mktemp("package") / "detector"
    return save_detector(folder, model, CLASSES, 64, confidence=0.001, max_detections=20)


@pytest.fixture(scope="session")
def trained_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployed detector with its training form beside it; its weights are random, too."""
    import torch

    from yolofleet.evaluation.detector_package import save_detector
    from yolofleet.models import build_model, deploy
    from yolofleet.registry.proof import save_training_form
    from yolofleet.specs.model import ModelChoice

    torch.manual_seed(1)
    choice = ModelChoice(name="yolov7-tiny", transition_width=0.125, hidden_width=0.125)
    model = build_model(choice, num_classes=len(CLASSES)).eval()
    folder = tmp_path_factory.mktemp("trained") / "detector"
    save_detector(folder, deploy(model), CLASSES, SIDE, confidence=0.001, max_detections=20)
    save_training_form(folder, model)
    return folder


@pytest.fixture(scope="session")
def onnx_package(trained_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same detector with its network as ONNX; the exporter takes seconds."""
    pytest.importorskip("onnxruntime")
    from yolofleet.export.exporter import add_network

    folder = shutil.copytree(trained_package, tmp_path_factory.mktemp("onnx") / "detector")
    add_network(folder)
    return folder


@pytest.fixture(scope="session")
def known_data(trained_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose objects are what `trained_package` finds, so that it has an AP that other weights do not have."""
    from PIL import Image

    from yolofleet.data.build import build_dataset
    from yolofleet.data.build_plan import BuildOptions
    from yolofleet.data.coco import parse_coco
    from yolofleet.data.problems import ProblemLog
    from yolofleet.evaluation.detector import Detector
    from yolofleet.storage import open_storage

    folder = tmp_path_factory.mktemp("known")
    (folder / "images").mkdir()
    random = np.random.default_rng(5)
    arrays = [random.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for _ in range(NUM_KNOWN)]
    for number, array in enumerate(arrays):
        Image.fromarray(array).save(folder / "images" / f"{number}.png")
    found = Detector.load(trained_package).predict(arrays, iou=0.3, max_detections=6)
    objects = [(number, record) for number, records in enumerate(found) for record in records]
    document = {
        "images": [
            {"id": number + 1, "file_name": f"{number}.png", "width": SIDE, "height": SIDE}
            for number in range(NUM_KNOWN)
        ],
        "categories": [{"id": number, "name": name} for number, name in CLASSES],
        "annotations": [
            {"id": place, "image_id": number + 1, "category_id": record["category_id"], "bbox": record["bbox"]}
            for place, (number, record) in enumerate(objects, start=1)
        ],
    }
    (folder / "instances.json").write_text(json.dumps(document))
    problems = ProblemLog()
    source = parse_coco((folder / "instances.json").read_bytes(), "instances.json", problems)
    build_dataset(source, open_storage(folder / "images"), open_storage(folder / "shards"), BuildOptions(), problems)
    return folder / "shards"


@pytest.fixture
def own_package(detector_package: Path, tmp_path: Path) -> Path:
    """A copy of the package that a test may change."""
    return Path(shutil.copytree(detector_package, tmp_path / "own-package"))


@pytest.fixture(scope="session")
def images() -> list[NDArray[np.uint8]]:
    """Three images of different sizes."""
    random = np.random.default_rng(1)
    return [random.integers(0, 256, (height, width, 3), np.uint8) for height, width in ((60, 80), (64, 64), (90, 40))]


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new MLflow database: making its tables takes seconds, copying it does not."""
    folder = tmp_path_factory.mktemp("store")
    open_client(f"sqlite:///{folder}/mlflow.db")
    return folder / "mlflow.db"


@pytest.fixture(scope="session")
def registered_store(
    trained_package: Path, known_data: Path, empty_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A store with one evaluated version."""
    folder = tmp_path_factory.mktemp("registered")
    shutil.copy(empty_store, folder / "mlflow.db")
    from yolofleet.data.dataset import ShardDataset
    from yolofleet.registry.evaluation_record import evaluate_package
    from yolofleet.registry.register import register_detector

    evidence = evaluate_package(trained_package, str(known_data), "cpu")
    manifest = ShardDataset(known_data).manifest.to_bytes()
    parts = ("train", "val")
    facts = {
        **evidence.facts,
        "data": dict.fromkeys(parts, hashlib.sha256(manifest).hexdigest()),
        "data_url": dict.fromkeys(parts, str(known_data)),
    }
    evidence = replace(evidence, facts=facts, manifests=dict.fromkeys(parts, manifest))
    register_detector(trained_package, "shapes", f"sqlite:///{folder}/mlflow.db", evidence)
    return folder


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
