"""The script for the day that a GPU is there runs to its end on a CPU, and says that it measured no GPU."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from system.pages import ROOT

pytestmark = [pytest.mark.system, pytest.mark.slow]


def run(*arguments: str) -> str:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--small", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=550, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_small_run_does_every_part() -> None:
    found = json.loads(run("--json"))
    assert found["measured"] == "not measured on a GPU"
    assert found["checks"]["losses"] < 1e-4 and found["checks"]["step yolov7-tiny fp32"] < 1e-3
    step = found["step yolov7-tiny"]
    assert step["images_per_second"] > 0 and 0 < step["loss_share"] < 1
    assert {"forward", "loss", "backward", "optimiser", "average"} < step["stages_ms"].keys()
    assert found["baseline yolov7-tiny"]["times_baseline"] > 0
    assert 0 <= found["data"]["data_wait_share"] <= 1
    assert found["suppression"] and found["inference yolov7-tiny"]["torch b1"] > 0
    assert "goals" not in found, "goals are a GPU's"


def test_the_first_line_says_that_no_gpu_was_measured_and_no_time_is_no_figure() -> None:
    first, *others = run("--minutes", "0").splitlines()
    assert first == "not measured on a GPU"
    assert sum("no time left" in line for line in others) >= 5
