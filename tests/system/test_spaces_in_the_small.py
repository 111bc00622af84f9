"""Every space of the repository, run in the small from its first candidate to its report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from system.shell import Shell, rows

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(1800)]

SPACES = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.yaml"))
SMALL = {
    "data.image_size": 128,
    "data.cache": "null",
    "data.loader_threads": 1,
    "global_batch_size": 8,
    "micro_batch_size": 4,
    "epochs": 0.5,
    "evaluation.every_epochs": 0.125,
    "checkpoint.every_steps": 2,
    "precision": "fp32",
    "hyperparameters.warmup_min_steps": 2,
    "hyperparameters.ema_ramp_steps": 2,
    "cluster.workers": 1,
    "cluster.gpus_per_worker": 0,
    "cluster.cpus_per_worker": 1,
    "storage": "runs",
    "tracking.uri": "null",
}
NARROW = {"model.transition_width": 0.125, "model.hidden_width": 0.125}
OF_ONE = {
    "compound-scaling": ["parameters.model.depth.uniform=[0.33,0.6]", "parameters.data.image_size.integer=[128,256]"],
    "learning-rate": ["budget.trials=4", "scheduler.rungs=2"],
    "hyperparameters-p5": ["algorithm.startup_trials=2"],
}
"""What else must be smaller."""


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_a_space_runs_to_its_report(path: Path, shell: Shell, drawn: Path) -> None:
    space = yaml.safe_load(path.read_text())
    is_table = path.stem.startswith("table")
    settings = SMALL | {"data.train": drawn / "shards/train", "data.val": drawn / "shards/val"}
    overrides = [f"job.{key}={value}" for key, value in settings.items()]
    if path.stem == "table3-compound-scaling":  # it varies the widths itself, so its base is made narrow
        narrow = "name: narrow\nbase: yolov7-x-light\ntransition_width: 0.125\nhidden_width: 0.125\n"
        (shell.folder / "narrow.yaml").write_text(narrow)
        overrides += ["job.model.name=null", f"job.model.spec={shell.folder}/narrow.yaml"]
    elif "parameters" in space and not any(key.startswith("model.") for key in space["parameters"]):
        widths = dict(list(NARROW.items())[:1]) if path.stem.startswith("table5") else NARROW
        overrides += [f"job.{key}={value}" for key, value in widths.items()]
    if not is_table:
        overrides += ["budget.trials=4", *OF_ONE.get(path.stem, [])]
    shell.succeed("tune", str(path), "--yes", *overrides, timeout_seconds=1700)

    folder = shell.folder / "runs" / space["name"]
    ended = [row for row in rows(folder / "trials.jsonl") if row["kind"] == "ended"]
    assert len(ended) >= (space["budget"]["trials"] if is_table else 4)
    assert {row["reason"].partition(":")[0] for row in ended} <= {"completed", "stopped"}
    report = (folder / "report/index.html").read_text()
    assert space["name"] in report
    if is_table:
        assert all(row["label"] in report for row in space["paper"]["rows"])
    best = yaml.safe_load((folder / "best.yaml").read_text())
    results = json.loads((folder / "report/results.json").read_text())
    assert best["name"] and results["best"]["number"] in {row["trial"] for row in ended}
