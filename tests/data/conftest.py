"""A small drawn dataset, as images and as shards, shared by the tests of the data path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from yolofleet.data.build import build_dataset
from yolofleet.data.build_plan import BuildOptions
from yolofleet.data.coco import parse_coco
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.problems import ProblemLog
from yolofleet.data.synth import write_synthetic_dataset
from yolofleet.storage import open_storage

NUM_IMAGES = 45


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    write_synthetic_dataset(folder, NUM_IMAGES, seed=3, image_size=96)
    return folder


def build_shards(annotations: Path, images: Path, out: Path, **options: object) -> ProblemLog:
    """Build a dataset, in the order of the source unless the options say otherwise, and return its problems."""
    problems = ProblemLog()
    source = parse_coco(annotations.read_bytes(), annotations.name, problems)
    options.setdefault("shuffle", False)
    most_skipped = float(options.pop("most_skipped", 0.5))  # type: ignore[arg-type]
    build_dataset(
        source,
        open_storage(images),
        open_storage(out),
        BuildOptions(**options),  # type: ignore[arg-type]
        problems,
        most_skipped=most_skipped,
        num_threads=2,
    )
    return problems


Build = Callable[..., ProblemLog]


@pytest.fixture(scope="session")
def build() -> Build:
    """``build(annotations, images, out, **options)``: build a dataset and return its problems."""
    return build_shards


@pytest.fixture(scope="session")
def shards(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn images in shards of seven."""
    out = tmp_path_factory.mktemp("shards")
    build_shards(drawn / "instances.json", drawn / "images", out, shard_samples=7)
    return out


@pytest.fixture
def dataset(shards: Path) -> ShardDataset:
    return ShardDataset(shards)
