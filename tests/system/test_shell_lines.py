"""What the pages show of other programs: each line is run by a test, or its section says what it needs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from system.pages import PAGES, ROOT, ShellLine, shell_lines

ELSEWHERE = {
    "CONTRIBUTING.md: ": ".ci/run",
    "README.md: Try it: make demo": "tests/system/test_demo.py",
    "README.md: Try it: make test": ".ci/run",
    "cluster-jobs.md: ": "tests/cluster/test_submit.py",
    "cluster-training.md: Without Ray: torchrun": "tests/system/test_other_programs.py",
    "coming-from.md: Coming from other trainers: yolofleet ": "tests/system/test_init.py",
    "extending.md: ": "tests/system/test_extending.py",
    "infrastructure.md: One machine, plain processes: ": "tests/infra/test_local_services.py",
    "operations.md: All runs: metrics: cat /tmp/ray/": "tests/training/test_metrics_endpoint.py",
    "operations.md: All runs: metrics: curl --silent http://NODE": "tests/training/test_metrics_endpoint.py",
    "registry.md: Use: MLFLOW_TRACKING_URI=": "tests/system/test_other_programs.py",
    "registry.md: Use: curl": "tests/system/test_other_programs.py",
    "tracking.md: Look at runs in MLflow: mlflow server": "tests/system/test_other_programs.py",
    "weights.md: ": "tests/system/test_weights_page.py",
}
"""How page, section and command begin: what runs it."""


def run_elsewhere(line: ShellLine) -> str | None:
    """The file that runs a line with what it needs around it; None for what runs in any folder."""
    return next((file for beginning, file in ELSEWHERE.items() if line.place.startswith(beginning)), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_line_is_run_or_says_what_it_needs(page: Path) -> None:
    for line in shell_lines(page):
        if not line.text.startswith("yolofleet "):
            assert line.needs or run_elsewhere(line), line


def test_what_runs_elsewhere_is_still_there() -> None:
    places = [line.place for page in PAGES for line in shell_lines(page)]
    for beginning, file in ELSEWHERE.items():
        assert any(place.startswith(beginning) for place in places), beginning
        assert (ROOT / file).is_file(), file


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_of_this_project_that_a_line_names_exists(page: Path) -> None:
    for line in shell_lines(page):
        for name in re.findall(r"\b(?:infra|jobs|search_spaces|benchmarks|tests)/[\w./*-]+", line.text):
            is_made = "/secrets/" in name  # by the command before it
            assert is_made or any(ROOT.glob(name)), line
