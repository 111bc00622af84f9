"""``make demo``, from drawing a dataset to a registered detector that finds what it was shown."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from system.pages import ROOT

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(1800)]
FEWEST_AP50 = 0.6
"""Far below what it reaches (0.77), far above what no training would."""


def test_the_demo_ends_with_a_registered_detector(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "requirements", "jobs", "platform"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    (tmp_path / ".venv" / ".installed").touch()
    done = subprocess.run(["make", "demo"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=1700)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    figures = re.search(r"AP50\s+(\d\.\d+)", done.stdout)
    assert figures and float(figures[1]) >= FEWEST_AP50, done.stdout
    [following] = re.findall(r"^ +(\S+ predict .+)$", done.stdout.replace("\\\n", " "), re.MULTILINE)
    found = subprocess.run(["bash", "-c", following], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 0 and any((tmp_path / "predictions").iterdir()), found.stderr
