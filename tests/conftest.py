"""Fixtures for every test: where the real data is, and nothing that reaches outside the machine."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # ten processes for each server, used by nothing

# How long an example takes says nothing about whether it is right, and a busy machine takes longer.
hypothesis.settings.register_profile(
    "yolofleet", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("yolofleet")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real images and bad input (coco128, bccd, hostile)."""
    folder = os.environ.get("YOLOFLEET_TEST_DATA")
    if not folder:
        pytest.skip("YOLOFLEET_TEST_DATA is not set: it names the folder with coco128/, bccd/ and hostile/")
    path = Path(folder).absolute()
    if not path.is_dir():
        pytest.fail(f"YOLOFLEET_TEST_DATA={folder} is not a folder")
    return path


@pytest.fixture(scope="session")
def reference(test_data: Path) -> Path:
    """The folder of definitions of other programs (KubeRay), beside the test data."""
    path = test_data.parent / "reference"
    if not path.is_dir():
        pytest.skip(f"no reference folder beside the test data ({path})")
    return path
