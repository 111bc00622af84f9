"""Predictions for a whole dataset on Ray: killed in the middle, repeated, complete."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from system.shell import Shell, wait_for
from yolofleet.evaluation.detector_package import save_detector
from yolofleet.models import build_model
from yolofleet.specs.model import ModelChoice

pytestmark = [pytest.mark.system, pytest.mark.slow]
CLASSES = [(1, "circle"), (2, "square"), (3, "triangle")]


def test_killed_and_repeated_nothing_is_missing_and_nothing_twice(drawn: Path, shell: Shell) -> None:
    torch.manual_seed(0)
    choice = ModelChoice(name="yolov7-tiny", transition_width=0.25, hidden_width=0.25)
    model = build_model(choice, num_classes=3, deployed=True)
    with torch.no_grad():
        for conv in model.head.lead:
            conv.bias.zero_()
    save_detector(shell.folder / "detector", model, CLASSES, 128, confidence=0.2, max_detections=5)
    data = str(drawn / "shards/train")
    command = ["predict", "detector", data, "--workers", "2", "--part-size", "1", "--out", "found", "--device", "cpu"]
    num_images = json.loads((drawn / "shards/train/manifest.json").read_text())["num_samples"]
    parts = shell.folder / "found" / "parts"

    first = shell.start(*command)
    wait_for(lambda: parts.is_dir() and len(list(parts.glob("0*.json"))) >= 3, what="the first parts")
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    kept = {path: path.stat().st_mtime_ns for path in parts.glob("0*.json")}
    assert 3 <= len(kept) < num_images, "it was killed in the middle"
    assert not (shell.folder / "found" / "results.json").exists()

    done = shell.run(*command)
    assert done.returncode == 0, done.stderr
    assert f"of {num_images} parts" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    document = json.loads((shell.folder / "found" / "detections.json").read_text())
    images = [image["id"] for image in document["images"]]
    assert len(images) == len(set(images)) == num_images
    assert {entry["image_id"] for entry in document["annotations"]} <= set(images)

    again = shell.run(*command, "--json")
    assert json.loads(again.stdout)["annotations"] == len(document["annotations"]) > 0
    judged = shell.succeed("evaluate", "found/results.json", data, "--json")
    assert json.loads(judged)["num_detections"] == len(document["annotations"])
    other = shell.run(*command, "--confidence", "0.5")
    assert other.returncode == 2 and "differ in confidence" in other.stderr
