"""A cluster of this machine's own for each test, and the drawn data to train on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.local_cluster import LocalCluster
from system.conftest import drawn, shell  # noqa: F401 - fixtures


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    """A head without room for workers."""
    made = LocalCluster(tmp_path)
    yield made
    made.close()
