"""MLflow away from the start: refused, or trained all the same and caught up later, as the job says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from system.shell import Shell, rows, write_job

pytestmark = pytest.mark.system
AWAY = "http://127.0.0.1:9"


def test_a_job_says_whether_it_waits_for_mlflow(shell: Shell, drawn: Path) -> None:
    changes = {"cluster__workers": 1, "epochs": 0.25}
    job = str(write_job(shell.folder, drawn, **changes, tracking={"uri": AWAY}))
    refused = shell.run("train", job, "--launcher", "process")
    assert refused.returncode == 2
    assert "nothing answers at http://127.0.0.1:9" in refused.stderr
    assert "tracking.when_away=spool" in refused.stderr
    assert not (shell.folder / "runs" / "small").exists()  # not claimed by this job


@pytest.mark.slow
def test_what_was_spooled_is_sent_when_mlflow_is_back(shell: Shell, drawn: Path) -> None:
    tracking = {"uri": AWAY, "when_away": "spool", "register_as": "small"}
    job = str(write_job(shell.folder, drawn, cluster__workers=1, epochs=0.25, tracking=tracking))
    done = shell.run("train", job, "--launcher", "process")
    assert done.returncode == 0, done.stderr[-3000:]
    run = shell.folder / "runs" / "small"
    assert f"yolofleet report {run} --sync" in done.stderr
    assert f"yolofleet registry register {run} --name small" in done.stderr
    store = f"sqlite:///{shell.folder}/mlflow.db"
    sent = json.loads(shell.succeed("report", str(run), "--sync", "--tracking-uri", store, "--json"))
    assert sent["mlflow_run_id"]
    from yolofleet.tracking.mlflow_store import open_client

    history = open_client(store).get_metric_history(sent["mlflow_run_id"], "loss/total")
    assert [metric.step for metric in history] == [row["step"] for row in rows(run / "metrics.jsonl") if "loss" in row]
