"""The records in ``tests/golden/before``, unpacked, and what the commands printed of them when they were made."""

from __future__ import annotations

import json
import sqlite3
import tarfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from system.shell import Shell, rows

ARCHIVE = Path(__file__).parents[1] / "golden/before/records.tar.xz"
MADE_IN = "/srv/yolofleet-records"
"""Where the records were made; MLflow keeps absolute paths of its artifacts."""
ARTIFACT_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
CONFIDENCE = 0.018
"""So little was learned that nothing is found at 0.25."""
FIGURE_TOLERANCE = 1e-3
"""As `registry verify` allows: other processors round differently."""


def unpack(folder: Path) -> Shell:
    """Put all records into a folder, and return a shell there; the MLflow store is beside the runs."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    with sqlite3.connect(folder / "runs/_mlflow/mlflow.db") as connection:
        connection.executescript((folder / "mlflow.sql").read_text())
        for table, column in ARTIFACT_COLUMNS:
            connection.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (MADE_IN, str(folder)))
    return Shell(folder, {"MLFLOW_TRACKING_URI": "sqlite:///runs/_mlflow/mlflow.db"})


def expected(shell: Shell, name: str) -> Any:
    return json.loads((shell.folder / "expected" / name).read_text())


def printed(shell: Shell, *arguments: str, **options: Any) -> Any:
    """What a command prints as JSON."""
    return json.loads(shell.succeed(*arguments, "--json", **options))


def assert_holds(now: Any, before: Any, *, tolerance: float = 1e-9, where: str = "") -> None:
    """Everything that was said before is said now, with the same value; more may be said. URLs have moved."""
    if isinstance(before, dict):
        assert isinstance(now, dict), where
        for key, value in before.items():
            assert key in now, f"{where}.{key} is missing"
            assert_holds(now[key], value, tolerance=tolerance, where=f"{where}.{key}")
    elif isinstance(before, list):
        assert isinstance(now, list) and len(now) == len(before), f"{where}: {now} instead of {before}"
        for number, (left, right) in enumerate(zip(now, before, strict=True)):
            assert_holds(left, right, tolerance=tolerance, where=f"{where}[{number}]")
    elif isinstance(before, float):
        assert now == pytest.approx(before, rel=tolerance, abs=tolerance), where
    elif not (isinstance(before, str) and MADE_IN in before):
        assert now == before, f"{where}: {now!r} instead of {before!r}"


def account(report: dict[str, Any]) -> dict[str, Any]:
    """The part of a report that tells what a run went through, whatever its name."""
    (found,) = (value for value in report.values() if isinstance(value, dict) and "steps_redone" in value)
    return dict(found)


def losses(metrics: Path) -> dict[int, float]:
    found = [(row["step"], row["loss"]) for row in rows(metrics) if "loss" in row]
    assert len(found) == len(dict(found)), "a step is there twice"
    return dict(found)


def flat(file: Path) -> torch.Tensor:
    tensors = safetensors.torch.load_file(file)
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def assert_same_detections(now: dict[str, Any], then: dict[str, Any]) -> None:
    """The same objects, to a tenth of a pixel and a thousandth of a score; one at the threshold may come or go."""
    assert now["categories"] == then["categories"]
    assert [image["id"] for image in now["images"]] == [image["id"] for image in then["images"]]
    assert len(then["annotations"]) > 0
    for ours, theirs in ((now, then), (then, now)):
        found = [entry for entry in theirs["annotations"] if entry["score"] > CONFIDENCE * 1.02]
        assert found and all(any(is_same(entry, other) for other in ours["annotations"]) for entry in found)


def is_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    same_object = one["category_id"] == other["category_id"] and one.get("image_id") == other.get("image_id")
    apart = max(abs(left - right) for left, right in zip(one["bbox"], other["bbox"], strict=True))
    return same_object and apart < 0.1 and abs(one["score"] - other["score"]) < FIGURE_TOLERANCE
