"""Targets: documents in YAML that make a job, a search, a model, the gates of a promotion, and overrides of them."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

from yolofleet.core.errors import UserError
from yolofleet.core.terminal import CONTROL, printable
from yolofleet.models.zoo import load_table
from yolofleet.search.space import Space, even_point
from yolofleet.specs.base import apply_overrides
from yolofleet.specs.job import JobSpec
from yolofleet.specs.kubernetes import KubernetesSpec
from yolofleet.specs.promotion import PromotionPolicy
from yolofleet.specs.search import SearchSpec
from yolofleet.specs.yaml_document import parse_yaml, read_yaml, write_yaml

FOLDER = tempfile.TemporaryDirectory(prefix="fuzz-specs-")
FILE = Path(FOLDER.name) / "spec.yaml"
JOB: dict[str, Any] = {"name": "a", "model": {"name": "yolov7-tiny"}, "data": {"train": "t", "val": "v"}}


def _written(data: bytes) -> Path:
    FILE.write_bytes(data)
    return FILE


def fuzz_spec_yaml(data: bytes) -> None:
    """Read any YAML file; what comes of it is written and read back as the same."""
    with contextlib.suppress(UserError):
        document = read_yaml(_written(data))
        assert parse_yaml(write_yaml(document), source="again") == document
        JobSpec.parse(document, source="job")


def fuzz_job(data: bytes) -> None:
    """Read a job, and compute what decides its identity."""
    with contextlib.suppress(UserError):
        job = JobSpec.load(_written(data)).with_absolute_paths()
        job.digest()
        job.num_steps(1000)
        job.resolved_hyperparameters()
        assert JobSpec.parse(parse_yaml(write_yaml(job.document()), source="again"), source="again") == job


def fuzz_search(data: bytes) -> None:
    """Read a search over a small job, and compute candidates of it."""
    with contextlib.suppress(UserError):
        document = read_yaml(_written(data))
        if isinstance(document, dict):
            document.setdefault("job", JOB)
        space = Space(SearchSpec.parse(document, source="search"))
        for number in range(3):
            values = space.parameters.at(even_point(0, number, len(space.parameters)))
            space.parameters.coordinates(values)
            space.job(values)
        if space.spec.algorithm.name == "grid":
            space.parameters.grid()


def fuzz_model(data: bytes) -> None:
    """Read a table of blocks, or one that is derived from another."""
    with contextlib.suppress(UserError):
        load_table(_written(data))


def fuzz_promotion(data: bytes) -> None:
    """Read the gates of a promotion, and the settings of Kubernetes."""
    for spec in (PromotionPolicy, KubernetesSpec):
        with contextlib.suppress(UserError):
            spec.load(_written(data))


def fuzz_overrides(data: bytes) -> None:
    """Override a job and a search, one override a line; and print them."""
    lines = data.decode(errors="surrogateescape").split("\n")
    assert CONTROL.search(printable(" ".join(lines))) is None
    with contextlib.suppress(UserError):
        JobSpec.parse(apply_overrides(JOB, lines), source="job")
    with contextlib.suppress(UserError):
        SearchSpec.load(_written(write_yaml({"name": "s", "job": JOB, "budget": {"trials": 2}}).encode()), lines)
