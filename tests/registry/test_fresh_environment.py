"""A version loads and predicts in a new virtual environment that holds only what the version lists."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolofleet.evaluation.detector import Detector
from yolofleet.export.exporter import add_network
from yolofleet.export.runtime import load_detector
from yolofleet.registry.evaluation_record import Evidence
from yolofleet.registry.package import collect_content, write_version

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(2400)]

PREDICT = """
import importlib.util, json, sys
assert importlib.util.find_spec("yolofleet") is None
import mlflow, numpy
model = mlflow.pyfunc.load_model(sys.argv[1])
json.dump(model.predict([numpy.load(path) for path in sys.argv[2:]]), sys.stdout)
"""


def test_it_predicts_with_only_its_listed_requirements(
    detector_package: Path, images: list[Any], tmp_path: Path
) -> None:
    python = tmp_path / "environment" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "environment")], check=True)
    in_torch = write_version(collect_content(detector_package), tmp_path / "in_torch", Evidence())
    _install(python, in_torch)
    assert _predicted(python, in_torch, images, tmp_path) == Detector.load(detector_package).predict(images)

    package = shutil.copytree(detector_package, tmp_path / "package")
    add_network(package)
    in_onnx_runtime = write_version(collect_content(package), tmp_path / "in_onnx_runtime", Evidence())
    assert _added(in_onnx_runtime, in_torch) == ["onnxruntime"]
    _install(python, in_onnx_runtime)
    assert _predicted(python, in_onnx_runtime, images, tmp_path) == load_detector(package).predict(images)


def _added(version: Path, other: Path) -> list[str]:
    """Return the packages that a version requires and another does not."""
    here, there = (set((folder / "requirements.txt").read_text().split()) for folder in (version, other))
    return [requirement.partition("==")[0] for requirement in sorted(here - there)]


def _install(python: Path, version: Path) -> None:
    requirements = (version / "requirements.txt").read_text().split()
    torch_first = sorted(requirements, key=lambda requirement: not requirement.startswith("torch=="))
    subprocess.run([python, "-m", "pip", "install", "-q", *torch_first], check=True, timeout=2000)


def _predicted(python: Path, version: Path, images: list[Any], tmp_path: Path) -> Any:
    """Return what a version finds, loaded from an empty folder."""
    paths = [tmp_path / f"{index}.npy" for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        np.save(path, image)
    empty = tmp_path / "empty"
    empty.mkdir(exist_ok=True)
    answer = subprocess.run(
        [python, "-I", "-c", PREDICT, str(version), *map(str, paths)],
        cwd=empty,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)
