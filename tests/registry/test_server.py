"""Against a real MLflow server: it dies and comes back, takes registrations over HTTP, and serves what it has."""

from __future__ import annotations

import base64
import io
import json
import math
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from registry.servers import end_group, free_port, mlflow_server, process
from yolofleet.core.local_files import CACHE_VARIABLE
from yolofleet.evaluation.detector import Detector
from yolofleet.registry.register import register_run
from yolofleet.registry.version_files import detector_folder
from yolofleet.storage import open_storage
from yolofleet.tracking.mirror import Mirror
from yolofleet.tracking.mlflow_store import check_reachable, open_client
from yolofleet.tracking.run_directory import RunDirectory

pytestmark = [pytest.mark.system, pytest.mark.slow]


def post(url: str, document: Any) -> tuple[int, Any]:
    request = urllib.request.Request(url, json.dumps(document).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_run_through_outage_registration_and_serving(
    detector_package: Path, images: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    store = tmp_path / "server"
    store.mkdir()
    run = RunDirectory(open_storage(tmp_path / "runs" / "demo"))
    run.write_job("name: demo\nseed: 1\n")
    run.append_event("start")
    run.save_model(detector_package)
    run.storage.put("report/image.png", b"png")
    mirror = Mirror(run, uri, "shapes", poll_seconds=0.2)
    mirror.start()  # before there is a server

    def report(first: int, last: int) -> None:
        for step in range(first, last):
            begin = time.monotonic()
            run.append_metrics({"step": step, "loss": 1 / step, "norm": math.nan if step == 7 else math.inf})
            assert time.monotonic() - begin < 30, "a run waits for no server: its client's own retries take minutes"
            time.sleep(0.01)

    report(1, 20)
    with mlflow_server(store, port) as server:
        check_reachable(uri)
        report(20, 60)
        give_up = time.monotonic() + 60
        while mirror.run_id is None and time.monotonic() < give_up:
            time.sleep(0.1)
        end_group(server)
        report(60, 100)
    with mlflow_server(store, port):
        report(100, 120)
        run.append_event("end")
        run.flush()
        assert mirror.close(timeout_seconds=120)
        assert mirror.run_id is not None
        client = open_client(uri)
        assert [metric.step for metric in client.get_metric_history(mirror.run_id, "loss/total")] == list(range(1, 120))
        assert math.isnan(client.get_metric_history(mirror.run_id, "norm")[6].value)
        assert client.get_run(mirror.run_id).info.status == "FINISHED"
        assert [item.path for item in client.list_artifacts(mirror.run_id, "report")] == ["report/image.png"]

        version = register_run(run, "shapes", uri, experiment="shapes")
        assert version.run_id == mirror.run_id
        monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
        folder = detector_folder("models:/shapes@candidate", uri)
        assert folder.is_relative_to(tmp_path / "cache")
        expected = Detector.load(detector_package).predict(images)
        assert Detector.load(folder).predict(images) == expected

        serve_port = free_port()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/shapes@candidate"]
        command += ["--host", "127.0.0.1", "--port", str(serve_port), "--env-manager", "local"]
        serve_url = f"http://127.0.0.1:{serve_port}"
        with process(command, store / "serve.log", f"{serve_url}/ping"):
            texts = []
            for image in images:
                buffer = io.BytesIO()
                Image.fromarray(image).save(buffer, "PNG")
                texts.append(base64.b64encode(buffer.getvalue()).decode())
            assert post(f"{serve_url}/invocations", {"inputs": texts}) == (200, {"predictions": expected})
            for bad in (["/etc/passwd"], [str(store / "server.log")], ["aGVsbG8="], [1], [None]):
                status, answer = post(f"{serve_url}/invocations", {"inputs": bad})
                assert status == 400 and json.loads(answer)["message"].count("image"), bad
                assert "stack_trace" not in answer and len(answer) < 500, bad
            assert post(f"{serve_url}/invocations", {"inputs": texts[:1]}) == (200, {"predictions": expected[:1]})
