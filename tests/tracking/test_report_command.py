"""`yolofleet report` shows the state of a run and brings MLflow up to date."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
import typer

from yolofleet.cli.report import report
from yolofleet.core.errors import UserError
from yolofleet.storage import open_storage
from yolofleet.tracking.mlflow_store import open_client
from yolofleet.tracking.run_directory import RELEASE_KEY, RunDirectory

app = typer.Typer()
app.command()(report)


def run_report(*arguments: str) -> None:
    app(args=list(arguments), standalone_mode=False)


def make_run(folder: Path, job: str = "name: demo\n") -> RunDirectory:
    with RunDirectory(open_storage(folder)) as run:
        run.write_job(job)
        run.append_event("start")
        time.sleep(0.01)  # times are in milliseconds, and a run without any has no goodput
        run.append_metrics({"step": 10, "loss": 0.5})
        run.append_metrics({"step": 10, "val_AP": 0.25})
        run.append_event("failed", reason="disk")
        run.append_event("start")
        run.append_metrics({"step": 20, "loss": 0.25})
    return run


def test_the_report_says_what_a_run_has_cost_and_will_have_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunDirectory(open_storage(tmp_path / "demo")) as run:
        run.write_job("name: demo\n")
        run.append_event("start", workers=1, price_per_hour=3.6e5, num_steps=100)
        for step in (1, 2):
            run.append_metrics({"step": step, "loss": 0.5})
            time.sleep(0.01)
    run_report(str(tmp_path / "demo"))
    assert re.search(r"cost \d+\.\d\d so far, \d+\.\d\d at its end", capsys.readouterr().out)


def test_the_report_shows_the_state_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "demo")
    run_report(str(tmp_path / "demo"), "--json")
    summary = json.loads(capsys.readouterr().out)
    assert summary["last_event"].pop("time")
    account = summary.pop("survival")
    assert (account["starts"], account["steps_redone"]) == (2, 0)
    assert account["history"][0].endswith("failed: disk")
    assert summary == {
        "name": "demo",
        "url": str(tmp_path / "demo"),
        "status": "RUNNING",
        "starts": 2,
        "last_event": {"kind": "start"},
        "step": 20,
        "has_model": False,
        "version": None,
        "skipped": "none",
        "metrics": {"loss": 0.25, "val_AP": 0.25},
        "page": str(tmp_path / "demo/report/index.html"),
    }
    assert "is of another version of yolofleet" in " ".join((tmp_path / "demo/report/index.html").read_text().split())
    run_report(str(tmp_path / "demo"))
    text = capsys.readouterr().out
    assert text.startswith("demo: running, step 20\n") and "\n  history\n" in text and "{" not in text
    assert re.search(r"validation +AP 0.25\n", text) and re.search(r"training +loss 0.25\n", text)
    assert re.search(r"time +0 s in 2 starts, 100.0% of it", text)


def test_a_registered_run_is_promoted_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "demo")
    fields = {"step": 20, "num_images": 1, "figures": {}, "report": "", "images": "", "mlflow": None}
    run.storage.put(RELEASE_KEY, json.dumps(fields | {"run": run.url, "model": "models:/shapes/3"}).encode())
    run_report(run.url)
    assert re.search(
        r"version +models:/shapes/3\n[^$]*next +yolofleet registry promote shapes/3\n", capsys.readouterr().out
    )
    run.storage.put(RELEASE_KEY, b"[]")
    with pytest.raises(UserError, match=r"release\.json: not the record of a release"):
        run_report(run.url)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="directory of neither a run"):
        run_report(str(tmp_path))


def test_a_port_is_for_a_page_that_is_served(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--port: is for --serve"):
        run_report(str(tmp_path), "--port", "8080")


def test_the_store_must_be_known_and_reachable(tmp_path: Path) -> None:
    make_run(tmp_path / "demo", "name: demo\ntracking: {uri: 'http://127.0.0.1:9'}\n")
    with pytest.raises(UserError, match="nothing answers"):
        run_report(str(tmp_path / "demo"), "--sync")


@pytest.mark.system
def test_sync_uses_the_store_and_experiment_of_the_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "runs" / "demo", "name: demo\ntracking: {experiment: shapes}\n")
    run_report(str(tmp_path / "runs" / "demo"), "--sync", "--json")
    run_id = json.loads(capsys.readouterr().out)["mlflow_run_id"]
    client = open_client(f"sqlite:///{tmp_path}/runs/_mlflow/mlflow.db")
    assert client.get_run(run_id).data.metrics == {"loss/total": 0.25, "val/AP": 0.25}
    assert client.get_experiment_by_name("shapes") is not None
    run_report(str(tmp_path / "runs" / "demo"), "--rebuild", "--json")
    assert json.loads(capsys.readouterr().out)["mlflow_run_id"] != run_id
