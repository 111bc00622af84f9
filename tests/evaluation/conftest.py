"""A small drawn dataset in shards, and a small detector package with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from yolofleet.data.build import build_dataset
from yolofleet.data.build_plan import BuildOptions
from yolofleet.data.coco import parse_coco
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.problems import ProblemLog
from yolofleet.data.synth import write_synthetic_dataset
from yolofleet.evaluation.detector_package import save_detector
from yolofleet.models import build_model
from yolofleet.specs.model import ModelChoice
from yolofleet.storage import open_storage


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images/, instances.json and shards/ of 20 drawn images."""
    folder = tmp_path_factory.mktemp("drawn")
    write_synthetic_dataset(folder, 20, seed=3, image_size=96)
    problems = ProblemLog()
    source = parse_coco((folder / "instances.json").read_bytes(), "instances.json", problems)
    build_dataset(source, open_storage(folder / "images"), open_storage(folder / "dataset"), BuildOptions(), problems)
    return folder


@pytest.fixture(scope="session")
def dataset(drawn: Path) -> ShardDataset:
    return ShardDataset(drawn / "dataset")


@pytest.fixture(scope="session")
def package(dataset: ShardDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of the dataset's classes with random weights."""
    torch.manual_seed(0)
    choice = ModelChoice(name="yolov7-tiny", transition_width=0.125, hidden_width=0.125)
    model = build_model(choice, num_classes=len(dataset.classes), deployed=True)
    folder = tmp_path_factory.mktemp("package") / "detector"
    return save_detector(folder, model, dataset.classes, 96, confidence=0.001, max_detections=20)
