"""``yolofleet models benchmark``: what is timed, how, and what the page shows of it."""

from __future__ import annotations

import json
import re
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from yolofleet.cli import models_benchmark
from yolofleet.cli.main import main
from yolofleet.evaluation.detector import FEWEST_PASSES, pass_milliseconds
from yolofleet.evaluation.detector_package import save_detector
from yolofleet.evaluation.latency import BenchmarkedModel, Environment, Timing, measure
from yolofleet.evaluation.latency_page import benchmark_lines, render_benchmark
from yolofleet.models import build_model
from yolofleet.specs.model import ModelChoice
from yolofleet.tracking.run_directory import RunDirectory

NARROW = ModelChoice(name="yolov7-tiny", transition_width=0.125, hidden_width=0.125)
CPU = torch.device("cpu")


class Clock(nn.Module):
    """A network that takes the next of some given times, by a clock of the test's own."""

    def __init__(self, seconds: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.now, self.seconds, self.shapes = 0.0, seconds, []
        clock = types.SimpleNamespace(perf_counter=lambda: self.now)
        monkeypatch.setattr("yolofleet.evaluation.detector.time", clock)

    def forward(self, images: Tensor) -> None:
        self.shapes.append((tuple(images.shape), images.dtype))
        self.now += self.seconds[len(self.shapes) - 1]


def test_percentiles_are_those_of_the_passes_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [9.0, 9.0, 9.0, *(0.001 * number for number in range(1, 101))]
    network = Clock(seconds, monkeypatch)
    found = measure(network, 64, CPU, format="torch", precision="fp16", batch=4, repetitions=100)
    assert found.passes == 100 and set(network.shapes) == {((4, 3, 64, 64), torch.float16)}
    expected = np.percentile(np.arange(1, 101), (50, 90, 99))
    assert list(found.percentiles.values()) == pytest.approx(expected.tolist(), abs=1e-3)
    assert found.images_per_second == pytest.approx(4 / 0.0505, rel=1e-3)


def test_time_ends_a_measurement_but_not_before_three_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.zeros(1, 3, 32, 32)
    slow = Clock([10.0] * 100, monkeypatch)
    assert len(pass_milliseconds(slow, images, warm_up=3, repetitions=90, most_seconds=1)) == FEWEST_PASSES == 3
    quick = Clock([0.5] * 100, monkeypatch)
    assert len(pass_milliseconds(quick, images, warm_up=1, repetitions=90, most_seconds=4)) == 8


def test_on_a_gpu_events_are_recorded_around_each_pass_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for CUDA: the order of the calls, and that the time is the events'."""
    calls: list[str] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            calls.append("record")

        def synchronize(self) -> None:
            calls.append("synchronize")

        def elapsed_time(self, end: Event) -> float:
            return float(len(calls))

    class Chosen:
        def __init__(self, device: torch.device) -> None:
            assert str(device) == "cuda:1"

        def __enter__(self) -> None: ...

        def __exit__(self, *exception: object) -> None: ...

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", Chosen)
    images: Any = types.SimpleNamespace(device=torch.device("cuda:1"))
    network: Any = lambda images: calls.append("network")  # noqa: E731
    assert pass_milliseconds(network, images, warm_up=1, repetitions=2) == [8.0, 12.0]
    assert calls == ["record", "network", "record", "synchronize"] * 3


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run that has ended, and was evaluated by the published protocol."""
    directory = RunDirectory.open(tmp_path / "runs", "mine")
    package = save_detector(tmp_path / "package", build_model(NARROW, 2, deployed=True), [(1, "a"), (2, "b")], 64)
    directory.write_job("name: mine\n")
    directory.save_model(package)
    facts = {"protocol": "published", "precision": "fp32"}
    directory.record_facts(figures={"AP": 0.4321}, evaluation=facts, data_url={"val": "my/val"})
    return directory


@pytest.mark.parametrize("formats", [["torch"], pytest.param(["torch", "onnx"], marks=pytest.mark.slow)])
def test_a_run_is_timed_in_each_format_with_each_batch(
    formats: list[str], run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    page = tmp_path / "page.html"
    options = ["--batch", "1,2", "--format", ",".join(formats), "--repetitions", "3", "--device", "cpu"]
    options += ["--html", str(page)]
    assert main(["models", "benchmark", run.url, *options, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (model,) = document["models"]
    forms = [(timing["format"], timing["batch"], timing["passes"]) for timing in model["timings"]]
    assert forms == [(form, batch, 3) for form in formats for batch in (1, 2)]
    assert all(0 < t["percentiles"]["p50"] <= t["percentiles"]["p99"] for t in model["timings"])
    assert (model["ap"], model["evaluated"]) == (pytest.approx(43.21), "my/val, published protocol")
    assert {"torch", "onnxruntime", "yolofleet"} <= document["environment"]["versions"].keys()
    assert document["environment"]["device"] == "cpu" and document["environment"]["name"]
    text = page.read_text()
    assert text.count("mine at ") == len(formats) and torch.__version__ in text
    assert ("mine, onnx" in text) == ("onnx" in formats)
    assert main(["models", "benchmark", run.url, "--image-size", "96", "--repetitions", "1", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("mine"))
    assert line.split()[1:6] == ["96", "torch", "fp32", "1", "1"] and line.split()[-1] == "-"
    assert any(text.startswith("Models without AP were not evaluated at this image size") for text in lines)


def test_the_paper_s_ap_is_marked_and_only_at_its_image_size() -> None:
    assert models_benchmark._published("yolov7", 640) == (51.2, None)
    assert models_benchmark._published("yolov7", 320) == (None, None)
    timing = Timing(
        format="torch",
        precision="fp16",
        batch=1,
        passes=9,
        percentiles={"p50": 4.0, "p90": 5.0, "p99": 6.0},
        images_per_second=250.0,
    )
    environment = Environment(device="cuda:0", name="GPU", threads=1, versions={"torch": "2"})
    model = BenchmarkedModel(model="yolov7", size=640, timings=(timing,), ap=51.2)
    lines = list(benchmark_lines(environment, [model]))
    assert lines[0] == "cuda:0: GPU; torch 2" and max(map(len, lines)) <= 95
    assert re.search(r"yolov7 +640 +torch +fp16 +1 +9 +4.00 +5.00 +6.00 +250.0 +51.2\*", "\n".join(lines))
    assert "AP marked * is from the paper" in "\n".join(lines)
    page = render_benchmark(environment, [model])
    assert "latency here, AP of the paper" in page and "measured here</button>" not in page


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--batch", "1,x"], "--batch '1,x': write numbers of images"),
        (["--batch", "0"], "--batch '0'"),
        (["--format", "tensorrt"], "--format 'tensorrt' is not one of torch, onnx"),
        (["--image-size", "100"], "image size 100 is not a multiple of 32"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    options: list[str], words: str, run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "benchmark", run.url, "--device", "cpu", *options]) == 2
    assert words in capsys.readouterr().err


def test_an_unknown_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "benchmark", "yolov77", "--device", "cpu"]) == 2
    assert "yolov77 is not a model" in capsys.readouterr().err
