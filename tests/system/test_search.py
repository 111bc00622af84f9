"""Whole searches on Ray: killed again and again, and without anything left behind."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from system.shell import Shell, kill_group, rows, write_job
from yolofleet.search.space import Space, even_point
from yolofleet.specs.search import load_search

pytestmark = [pytest.mark.system, pytest.mark.slow]


def write_space(folder: Path, drawn: Path, **changes: Any) -> Path:
    """Write a small space over a small job of one worker."""
    job = write_job(folder, drawn, name="base", cluster__workers=1, epochs=0.5)
    space = {
        "name": "small-search",
        "job": job.name,
        "parameters": {
            "model.transition_width": {"uniform": [0.125, 0.5]},
            "hyperparameters.lr0": {"log_uniform": [0.001, 0.05]},
        },
        "algorithm": {"name": "quasi_random"},
        "budget": {"trials": 4},
    }
    file = folder / "space.yaml"
    file.write_text(yaml.safe_dump(space | changes))
    return file


def test_a_driver_killed_five_times_trains_every_trial_once(shell: Shell, drawn: Path) -> None:
    file = write_space(shell.folder, drawn)
    record = shell.folder / "runs/small-search/trials.jsonl"
    chance = random.Random(7)
    for _ in range(5):
        process = shell.start("tune", str(file), "--yes")
        before = len(rows(record))
        end = time.monotonic() + 240
        while len(rows(record)) == before and process.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        time.sleep(chance.uniform(0, 4))
        if process.poll() is not None:
            break
        kill_group(process)
    shell.succeed("tune", str(file), "--yes", timeout_seconds=400)
    space = Space(load_search(file))
    expected = [space.parameters.at(even_point(0, number, 2)) for number in range(4)]
    written = rows(record)
    assert [row["values"] for row in written if row["kind"] == "suggested"] == expected
    for kind in ("measured", "ended"):
        assert sorted(row["trial"] for row in written if row["kind"] == kind) == [0, 1, 2, 3]
    runs = sorted(path.name for path in (shell.folder / "runs/small-search/trials").iterdir())
    assert runs == ["0000", "0001", "0002", "0003"]
    best = shell.folder / "runs/small-search/best.yaml"
    result = json.loads(shell.succeed("report", "runs/small-search", "--json"))
    assert result["best"]["number"] in range(4)
    shell.succeed("train", str(best), "--launcher", "process")


SCRIPT = """
import json, sys
from yolofleet.core.ray_runtime import tune_connection
with tune_connection():
    import ray
    from yolofleet.cli.main import main
    code = main(["tune", sys.argv[1], "--yes"])
    groups = [group["state"] for group in ray.util.placement_group_table().values()]
    print(json.dumps({"code": code, "left": [state for state in groups if state != "REMOVED"]}))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_search_leaves_no_placement_group(shell: Shell, drawn: Path, workers: int) -> None:
    scheduler = {"name": "asha", "reduction": 2, "rungs": 1}
    settings = {"cluster.workers": workers, "evaluation.every_epochs": 0.25}
    file = write_space(shell.folder, drawn, scheduler=scheduler, set=settings, budget={"trials": 3})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(file)],
        cwd=shell.folder,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"code": 0, "left": []}
    ends = [row["reason"] for row in rows(shell.folder / "runs/small-search/trials.jsonl") if row["kind"] == "ended"]
    assert len(ends) == 3
    assert {end.partition(":")[0] for end in ends} == {"completed", "stopped"}  # which ones depends on who was first
