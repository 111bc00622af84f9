"""The driver's watch against a real Ray: when a group is asked to leave."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.system, pytest.mark.slow]


def seen_by(script: str, folder: Path) -> dict[str, Any]:
    """Run a script with a Ray of its own, and return what it has seen."""
    out, tests = folder / "found.json", Path(__file__).parents[1]
    path = os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")])
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), str(out)],
        env=os.environ | token | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_a_group_is_asked_to_leave_for_growth_and_for_a_node_that_aws_announces_to_take(tmp_path: Path) -> None:
    assert seen_by("watched_node.py", tmp_path) == {
        "places": 3,
        "places_elsewhere": 0,
        "growth": 0,
        "free_beside_two": 1,
        "with_room": "there is room for more workers",
        "places_while_draining": 0,
        "announced_to_go": "a node is about to be taken away",
    }


def test_an_elastic_job_gets_its_first_node_and_all_it_may_have_of_rays_own_autoscaler(tmp_path: Path) -> None:
    assert seen_by("autoscaled_cluster.py", tmp_path) == {
        "before": [],
        "has_room": False,
        "waited_for": ["on-demand"],
        "asked": "there is room for more workers",
        "grown_to": ["on-demand", "spot"],
    }
