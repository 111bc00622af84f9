"""A folder with everything that the pages name: a trained run, shards, images, published weights, a search."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from data.tool_exports import write_exports
from system.pages import ROOT
from system.shell import Shell, write_job
from yolofleet.models import build_model
from yolofleet.models.weights import official_parameter_names

TRACKING_URI = "sqlite:///runs/_mlflow/mlflow.db"
SPACE = """
name: my-search
job: job.yaml
parameters: {hyperparameters.lr0: {log_uniform: [0.001, 0.01]}}
budget: {trials: 1}
"""


def fill(folder: Path, drawn: Path) -> Shell:
    """Fill a folder; what the pages keep on S3 lies in ``store/``."""
    shell = Shell(folder, {"MLFLOW_TRACKING_URI": TRACKING_URI})
    job = write_job(
        folder,
        drawn,
        name="quickstart",
        cluster__workers=1,
        epochs=1,
        tracking={"register_as": "shapes"},
    )
    shell.succeed("train", str(job), "--launcher", "process")
    (folder / "runs" / "NAME").symlink_to(folder / "runs" / "quickstart")
    shutil.copytree(folder / "runs" / "quickstart" / "model", folder / "my-detector")
    for part in ("train", "val"):
        shutil.copy(drawn / f"images/instances_{part}.json", folder)
    shutil.copy(drawn / "images/instances_train.json", folder / "instances_train2017.json")
    shutil.copy(drawn / "images/instances_val.json", folder / "annotations.json")
    for name in ("images", "train2017", "photos"):
        shutil.copytree(drawn / "images/images", folder / name)
    for name in ("data/val", "store/datasets/val"):
        shutil.copytree(drawn / "shards/val", folder / name)
    for image, names in (("000004.jpg", ("a.jpg", "image.jpg")), ("000009.jpg", ("b.png", "other.png"))):
        for name in names:
            shutil.copy(drawn / "images/images" / image, folder / name)
    for name, model, num_classes in (("yolov7.pt", "yolov7", 80), ("mine.pt", "yolov7-tiny", 3)):
        detector = build_model(model, num_classes=num_classes)
        state = detector.state_dict()
        published = {theirs: state[ours].half() for theirs, ours in official_parameter_names(detector).items()}
        torch.save(published, folder / name)
    write_job(folder, drawn, name="my-run", cluster__workers=1, epochs=0.2)
    (folder / "space.yaml").write_text(SPACE)
    write_exports(folder / "exports")
    for name in ("jobs", "infra"):
        (folder / name).symlink_to(ROOT / name)
    shell.succeed("tune", "space.yaml", "--yes")
    return shell
