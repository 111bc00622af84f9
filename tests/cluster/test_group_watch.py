"""The driver's watch against a real Ray: when a group is asked to leave."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.system
@pytest.mark.slow
def test_a_group_is_asked_to_leave_for_growth_and_for_a_node_that_goes(tmp_path: Path) -> None:
    script, out = Path(__file__).with_name("watched_node.py"), tmp_path / "found.json"
    done = subprocess.run([sys.executable, str(script), str(out)], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(out.read_text()) == {
        "places": 3,
        "places_elsewhere": 0,
        "growth": 0,
        "free_beside_two": 1,
        "with_room": "there is room for more workers",
        "places_while_draining": 0,
        "announced_to_go": "a node is about to be taken away",
    }
