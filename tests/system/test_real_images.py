"""Real images are learned, through the whole path: shards, Ray Train, the weight average, the registry, evaluate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from system.shell import Shell

NO_AUGMENTATION = ("mosaic", "mixup", "paste_in", "scale", "translate", "hsv_h", "hsv_s", "hsv_v", "fliplr")
pytestmark = [pytest.mark.slow, pytest.mark.system, pytest.mark.timeout(3600)]


def test_sixteen_coco_images_are_learned(shell: Shell, test_data: Path) -> None:
    coco = test_data / "coco128"
    shell.succeed("data", "shard", str(coco / "instances_val.json"), str(coco / "images"), "shards")
    job = {
        "name": "coco16",
        "model": {"name": "yolov7-tiny"},
        "data": {"train": "shards", "val": "shards", "image_size": 320},
        "recipe": "tiny",
        "hyperparameters": {
            "lr0": 0.04,
            "lrf": 0.1,
            "warmup_epochs": 20.0,
            "warmup_min_steps": 20,
            **dict.fromkeys(NO_AUGMENTATION, 0.0),
            "ema_decay": 0.98,
            "ema_ramp_steps": 50,
        },
        "epochs": 400,
        "global_batch_size": 16,
        "micro_batch_size": 8,
        "evaluation": {"every_epochs": 50},
        "checkpoint": {"every_steps": 50, "keep": 1},
        "cluster": {"workers": 2},
        "tracking": {"uri": "sqlite:///mlflow.db", "register_as": "coco16"},
        "storage": "runs",
    }
    (shell.folder / "job.yaml").write_text(yaml.safe_dump(job))
    shell.succeed("train", "job.yaml", timeout_seconds=3500)
    model = ["models:/coco16@candidate", "shards", "--tracking-uri", "sqlite:///mlflow.db", "--json"]
    figures = json.loads(shell.succeed("evaluate", *model))["figures"]
    print(f"\nAP50 {figures['AP50']:.4f}, AP {figures['AP']:.4f}")
    assert figures["AP50"] >= 0.85
