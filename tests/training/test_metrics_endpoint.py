"""A run on Ray itself: its figures are on the metrics endpoint while it trains, and withdrawn after it."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from yolofleet.specs.job import JobSpec
from yolofleet.training.metrics.publisher import METRICS

pytestmark = [pytest.mark.slow, pytest.mark.system, pytest.mark.timeout(900)]
SAMPLE = re.compile(r"^ray_(yolofleet_\w+)\{(.*)\} (\S+)$")
DRIVER = """
import json, sys, time
import ray
from yolofleet.specs.job import JobSpec
from yolofleet.training.supervision.launch import run_on_ray
from yolofleet.training.setup.preflight import check_job

ray.init(address="local", num_cpus=2, include_dashboard=True, dashboard_host="127.0.0.1", logging_level="error")
node = ray.nodes()[0]
print(json.dumps([node["NodeManagerAddress"], node["MetricsExportPort"]]), flush=True)
job = JobSpec.parse(json.loads(sys.argv[1]), source="job")
check_job(job)
run_on_ray(job)
print(json.dumps("trained"), flush=True)
sys.stdin.readline()
"""


def scraped(url: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """The endpoint's samples of a run, by name: their tags and values."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for name, tags, value in (match.groups() for line in lines if (match := SAMPLE.match(line))):
        found.setdefault(name, []).append((dict(re.findall(r'(\w+)="([^"]*)"', tags)), float(value)))
    return found


def test_a_run_is_on_rays_metrics_endpoint(small_job: Callable[..., JobSpec], tmp_path: Path) -> None:
    cluster = {"workers": 2, "gpus_per_worker": 0, "cpus_per_worker": 1, "price_per_hour": 1.5}
    # Long enough for several of Ray's reports, which are ten seconds apart.
    job = small_job(name="watched", epochs=80, cluster=cluster)
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64
    }  # fmt: skip
    command = [sys.executable, "-c", DRIVER, json.dumps(job.document())]
    with (tmp_path / "errors").open("w+") as errors:
        driver = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            assert driver.stdout is not None
            line = driver.stdout.readline()
            assert line, (tmp_path / "errors").read_text()
            host, port = json.loads(line)
            lines: list[str] = []
            ending = threading.Thread(target=lambda: lines.append(driver.stdout.readline()))  # type: ignore[union-attr]
            ending.start()
            seen: dict[str, list[tuple[dict[str, str], float]]] = {}
            url = f"http://{host}:{port}/metrics"
            while ending.is_alive():
                try:
                    seen |= {
                        name: numbers
                        for name, samples in scraped(url).items()
                        if (numbers := [entry for entry in samples if not math.isnan(entry[1])])
                    }
                except OSError:
                    assert driver.poll() is None, (tmp_path / "errors").read_text()
                time.sleep(2)
            assert lines == ['"trained"\n'], (tmp_path / "errors").read_text()
            after = scraped(url)
            end = time.monotonic() + 60
            while any(not math.isnan(value) for samples in after.values() for _, value in samples):
                assert time.monotonic() < end, after
                time.sleep(1)
                after = scraped(url)
        finally:
            driver.kill()
            driver.communicate()
    without_gpu = {name for name in METRICS if "gpu" not in name or name == "yolofleet_gpu_hours"}  # those are 0
    assert set(seen) >= without_gpu - {"yolofleet_checkpoint_step", "yolofleet_checkpoint_seconds"}
    assert set(seen) <= without_gpu
    assert all(tags["run"] == "watched" for samples in seen.values() for tags, _ in samples)
    assert {tags["rank"] for tags, _ in seen["yolofleet_worker_silence_seconds"]} == {"0", "1"}
    assert {tags["term"] for tags, _ in seen["yolofleet_loss"]} == {"all", "box", "objectness", "classification"}
    assert seen["yolofleet_step"][0][1] > 0 and seen["yolofleet_images_per_second"][0][1] > 0
