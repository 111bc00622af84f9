"""A version loads and predicts in a new virtual environment that holds only what the version lists."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolofleet.evaluation.detector import Detector
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
    detector_package: Path, pictures: list[Any], tmp_path: Path
) -> None:
    version = write_version(collect_content(detector_package), tmp_path / "version", evidence={})
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    requirements = (version / "requirements.txt").read_text().split()
    torch_first = sorted(requirements, key=lambda requirement: not requirement.startswith("torch=="))
    subprocess.run([python, "-m", "pip", "install", "-q", *torch_first], check=True, timeout=2000)
    paths = [tmp_path / f"{index}.npy" for index in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        np.save(path, picture)
    empty = tmp_path / "empty"
    empty.mkdir()
    answer = subprocess.run(
        [python, "-I", "-c", PREDICT, str(version), *map(str, paths)],
        cwd=empty,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == Detector.load(detector_package).predict(pictures)
