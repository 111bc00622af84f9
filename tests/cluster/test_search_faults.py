"""A node is lost in the middle of a search: its trial goes on elsewhere from its run directory, and nothing waits for
ever.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cluster.local_cluster import LocalCluster
from system.shell import Shell, rows, wait_for, write_job

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(1800)]
PATIENCE_SECONDS = 600.0
NUM_TRIALS = 3


def test_a_lost_node_costs_no_trial(shell: Shell, drawn: Path, cluster: LocalCluster) -> None:
    nodes = [cluster.add_node(name) for name in ("first", "second")]
    job = write_job(shell.folder, drawn, name="base", cluster__workers=1, epochs=3, record_samples=False)
    space = {
        "name": "lossy",
        "job": job.name,
        "parameters": {"hyperparameters.lr0": {"log_uniform": [0.001, 0.01]}},
        "algorithm": {"name": "quasi_random"},
        "budget": {"trials": NUM_TRIALS},
    }
    (shell.folder / "space.yaml").write_text(yaml.safe_dump(space))
    with_cluster = Shell(shell.folder, cluster.environment)
    process = with_cluster.start("tune", "space.yaml", "--yes")
    folder = shell.folder / "runs/lossy"
    wait_for(
        lambda: any(rows(run / "metrics.jsonl") for run in (folder / "trials").glob("*")),
        PATIENCE_SECONDS,
        "a trial that trains",
    )
    nodes[0].kill()
    assert process.wait(timeout=PATIENCE_SECONDS) == 0, with_cluster.output()[-3000:]
    record = rows(folder / "trials.jsonl")
    ends = {row["trial"]: row["reason"] for row in record if row["kind"] == "ended"}
    assert ends == dict.fromkeys(range(NUM_TRIALS), "completed")
    assert sorted(row["trial"] for row in record if row["kind"] == "measured") == list(range(NUM_TRIALS))
