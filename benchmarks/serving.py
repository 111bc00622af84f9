"""A served model under fire: many HTTP requests at once, one in twenty of them bad, each answer checked.

    python benchmarks/serving.py [MODEL] [--in-torch] [--requests 1000] [--at-once 16] [--json]

MODEL is `models:/NAME@ALIAS` (MLFLOW_TRACKING_URI names the store) or the folder of a registered version; without it a
small detector with random weights is packaged and served: with its network as ONNX, and so in ONNX Runtime, or with
--in-torch without. The server is MLflow's own, in a process of its own on a free port of the loopback. Every good
request must be answered as the detector answers in this process, every bad one with status 400; then the server's
memory is compared with what it was after the first tenth, and the time of a request with that of the bare forward pass
in torch (same process, same images, same number of threads).
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import io
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from yolofleet.data.letterbox import letterbox
from yolofleet.evaluation.detector import Detector
from yolofleet.evaluation.detector_package import save_detector
from yolofleet.models import build_model

BAD_SHARE = 0.05
NUM_IMAGES = 12
START_TIMEOUT_SECONDS = 300
REQUEST_TIMEOUT_SECONDS = 300
FORWARD_ROUNDS = 20
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One request's end."""

    bad: bool
    right: bool
    seconds: float
    status: int


@contextlib.contextmanager
def served(model: str, log: Path) -> Iterator[tuple[int, psutil.Process]]:
    """Serve a model for the length of a with block; gives the port and the server's process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--env-manager", "local"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where MLflow looks for uvicorn
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "PATH": path}
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    try:
        give_up = time.monotonic() + START_TIMEOUT_SECONDS
        while not answers(port):
            if server.poll() is not None or time.monotonic() > give_up:
                raise SystemExit(f"the server did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.3)
        yield port, psutil.Process(server.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(port: int) -> bool:
    """Tell whether the server is ready."""
    try:
        return post(port, None, "GET", "/ping")[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def post(port: int, body: bytes | None, method: str = "POST", path: str = "/invocations") -> tuple[int, bytes]:
    """Send one request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_TIMEOUT_SECONDS)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def memory_bytes(process: psutil.Process) -> int:
    """Return what a process and its children hold."""
    return sum(part.memory_info().rss for part in [process, *process.children(recursive=True)])


def encoded(pixels: np.ndarray) -> str:
    """Return an image as a request holds it."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def bad_bodies() -> list[bytes]:
    """Requests that must be refused: a text, half an image, a huge one, none, no JSON, a path."""
    huge = Image.new("1", (30_000, 30_000))
    buffer = io.BytesIO()
    huge.save(buffer, "PNG")
    half = base64.b64decode(encoded(np.zeros((50, 50, 3), np.uint8)))[:60]
    contents = [[base64.b64encode(data).decode()] for data in (b"a text, no image" * 9, half, buffer.getvalue())]
    return [json.dumps({"inputs": value}).encode() for value in (*contents, [], ["/etc/passwd"])] + [b"{", b""]


def fire(port: int, detector: Detector, num_requests: int, at_once: int, process: psutil.Process) -> dict[str, Any]:
    """Send the requests, check the answers, return the figures."""
    noise = np.random.default_rng(SEED)
    side = detector.card.image_size
    images = [
        noise.integers(0, 256, (int(noise.integers(side // 2, side)), side, 3), np.uint8) for _ in range(NUM_IMAGES)
    ]
    expected = detector.predict(images, batch_size=1)
    good = [json.dumps({"inputs": [encoded(image)]}).encode() for image in images]
    bad = bad_bodies()
    draw = random.Random(SEED)
    plan = [(draw.random() < BAD_SHARE, draw.randrange(len(bad) * NUM_IMAGES)) for _ in range(num_requests)]
    early: list[int] = []
    done, lock = 0, threading.Lock()

    def one(entry: tuple[bool, int]) -> Answer:
        nonlocal done
        is_bad, choice = entry
        body = bad[choice % len(bad)] if is_bad else good[choice % len(good)]
        start = time.perf_counter()
        try:
            status, content = post(port, body)
        except (OSError, http.client.HTTPException):
            status, content = 0, b""
        seconds = time.perf_counter() - start
        right = status == 400 if is_bad else status == 200 and same(content, expected[choice % len(good)])
        with lock:
            done += 1
            if done == max(1, num_requests // 10):
                early.append(memory_bytes(process))
        return Answer(bad=is_bad, right=right, seconds=seconds, status=status)

    start = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        results = list(pool.map(one, plan))
    wall_seconds = time.perf_counter() - start
    alone = [one((False, number)).seconds for number in range(NUM_IMAGES)]
    forward = forward_seconds(detector, images)
    seconds = sorted(result.seconds for result in results if not result.bad)
    return {
        "requests": num_requests,
        "bad": sum(result.bad for result in results),
        "wrong": sum(not result.right for result in results),
        "at_once": at_once,
        "threads": torch.get_num_threads(),
        "requests_per_second": round(num_requests / wall_seconds, 2),
        "milliseconds": {name: round(share_of(seconds, share) * 1e3, 1) for name, share in PERCENTILES.items()},
        "one_at_a_time_milliseconds": round(statistics.median(alone) * 1e3, 1),
        "forward_milliseconds": round(forward * 1e3, 1),
        "request_over_forward": round(statistics.median(alone) / forward, 2),
        "throughput_over_forward": round(num_requests / wall_seconds * forward, 2),
        "memory_growth": round(memory_bytes(process) / early[0] - 1, 4),
        "memory_megabytes": round(memory_bytes(process) / 1e6, 1),
        "statuses": {
            str(code): sum(result.status == code for result in results) for code in {r.status for r in results}
        },
    }


PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "most": 1.0}


def share_of(ordered: list[float], share: float) -> float:
    """Return the value that this share of an ordered list does not exceed."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def same(content: bytes, expected: list[dict[str, Any]]) -> bool:
    """Tell whether an answer holds what was expected, up to the rounding of another process's arithmetic."""
    (found,) = json.loads(content)["predictions"]
    if len(found) != len(expected):
        return False
    return all(
        one["category_id"] == other["category_id"]
        and abs(one["score"] - other["score"]) < 1e-3
        and np.allclose(one["bbox"], other["bbox"], atol=0.1)
        for one, other in zip(found, expected, strict=True)
    )


@torch.inference_mode()
def forward_seconds(detector: Detector, images: list[np.ndarray]) -> float:
    """Return the median time of the network alone on the images, letterboxed beforehand."""
    size = detector.card.image_size
    inputs = []
    for image in images:
        boxed, _ = letterbox(image, (size, size), stride=detector.model.max_stride, auto=True)
        inputs.append(torch.from_numpy(boxed).permute(2, 0, 1)[None].float() / 255)
    taken = []
    for turn in range(FORWARD_ROUNDS):
        start = time.perf_counter()
        detector.model(inputs[turn % len(inputs)])
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def small_version(folder: Path, *, in_torch: bool) -> Path:
    """Package a small detector with random weights that finds a few things in every image."""
    from yolofleet.export.exporter import add_network
    from yolofleet.registry.evaluation_record import Evidence
    from yolofleet.registry.package import collect_content, write_version

    torch.manual_seed(SEED)
    model = build_model("yolov7-tiny", num_classes=3, deployed=True)
    with torch.no_grad():
        for conv in model.head.lead:
            conv.weight *= 8
            conv.bias.zero_()
    classes = [(1, "circle"), (2, "square"), (3, "triangle")]
    package = save_detector(folder / "detector", model, classes, 256, confidence=0.5, max_detections=20)
    if not in_torch:
        add_network(package)
    return write_version(collect_content(package), folder / "version", Evidence())


def detector_of(model: str) -> Detector:
    """Load the detector that is served."""
    if model.startswith("models:/"):
        from yolofleet.registry.version_files import detector_folder

        return Detector.load(detector_folder(model))
    return Detector.load(Path(model, "data", "detector"))


def measured(model: str | None, num_requests: int, at_once: int, *, in_torch: bool) -> dict[str, Any]:
    """Serve, fire, return the figures."""
    with tempfile.TemporaryDirectory(prefix="yolofleet-serving-") as folder:
        name = model or str(small_version(Path(folder), in_torch=in_torch))
        with served(name, Path(folder, "server.log")) as (port, process):
            return fire(port, detector_of(name), num_requests, at_once, process)


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", metavar="MODEL", help="models:/NAME@ALIAS or the folder of a version")
    parser.add_argument("--in-torch", action="store_true", help="without MODEL: serve it without ONNX Runtime")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--json", action="store_true", help="print only JSON")
    options = parser.parse_args()
    result = measured(options.model, options.requests, options.at_once, in_torch=options.in_torch)
    if options.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key.replace('_', ' '):28} {value}")
    sys.exit(1 if result["wrong"] else 0)


if __name__ == "__main__":
    main()
