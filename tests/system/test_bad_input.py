"""Whatever is wrong is told in one readable message, with exit code 2, before anything is computed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from system.shell import Shell, write_job

pytestmark = pytest.mark.system
DEAD = {
    "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "us-east-1",
}


def refused(shell: Shell, *arguments: str) -> str:
    """Run a command that must refuse; returns its message."""
    done = shell.run(*arguments, timeout_seconds=60)
    assert done.returncode == 2, f"{done.returncode}\n{done.stdout}\n{done.stderr[-3000:]}"
    assert "Traceback" not in done.stderr
    message = done.stderr[done.stderr.index("error: ") :]
    assert len(message) < 1500
    return message


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"micro_batchsize": 4}, ["micro_batchsize", "did you mean 'micro_batch_size'"]),
        ({"epochs": "ten"}, ["epochs", '"ten"']),
        ({"model__name": "yolov7-tny"}, ["yolov7-tny", "yolov7-tiny"]),
        ({"data__train": "nowhere"}, ["nowhere", "manifest.json", "data shard"]),
        ({"global_batch_size": 10}, ["10", "micro_batch_size 4", "8 or 12"]),
        ({"data__image_size": 72}, ["72", "stride 32", "64 or 96"]),
        (
            {"tracking__uri": "http://127.0.0.1:9"},
            ["nothing answers at http://127.0.0.1:9", "mlflow server", "tracking.uri"],
        ),
        ({"tracking__uri": "nonsense"}, ["nonsense", "tracking URI"]),
        ({"cluster__gpus_per_worker": 1}, ["GPU"]),
        ({"cluster__cpus_per_worker": 500}, ["500 CPU", "room for 0"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_job_that_cannot_run(changes: dict[str, Any], parts: list[str], shell: Shell, drawn: Path) -> None:
    message = refused(shell, "train", str(write_job(shell.folder, drawn, **changes)))
    for part in parts:
        assert part in message


def test_a_missing_job_file(shell: Shell) -> None:
    assert "no such file" in refused(shell, "train", "nothing.yaml")


def test_a_run_of_another_spec(shell: Shell, drawn: Path) -> None:
    job = write_job(shell.folder, drawn, cluster__workers=1, epochs=0.2)
    shell.succeed("train", str(job), "--launcher", "process")
    message = refused(shell, "train", str(job), "seed=5")
    assert "seed: was 0, now 5" in message
    assert "another name" in message


def test_other_data_under_the_same_name(shell: Shell, drawn: Path) -> None:
    job = write_job(shell.folder, drawn, cluster__workers=1, epochs=0.2)
    shell.succeed("train", str(job), "--launcher", "process")
    shutil.copytree(drawn / "shards" / "train", shell.folder / "moved")
    assert "finished already" in shell.succeed("train", str(job), "data.train=moved")
    assert "models:/late/1" in shell.succeed("train", str(job), "tracking.register_as=late", "--launcher", "process")
    assert "finished already" in shell.succeed("train", str(job), "tracking.register_as=late")
    assert "another content of train" in refused(shell, "train", str(job), f"data.train={drawn / 'shards' / 'val'}")


@pytest.mark.parametrize(
    ("document", "part"),
    [
        ([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}], "detections"),
        ({"images": [], "annotations": [], "categories": []}, "categories"),
        ({"nothing": "here"}, "images"),
        ("text", "annotations.json"),
    ],
    ids=["a result file", "no images", "not COCO", "text"],
)
def test_annotations_that_are_not_coco(document: Any, part: str, shell: Shell, drawn: Path) -> None:
    path = shell.folder / "annotations.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    assert part in refused(shell, "data", "shard", str(path), str(drawn / "images/images"), "out")
    assert not (shell.folder / "out" / "manifest.json").exists()


def test_no_classes(shell: Shell, drawn: Path) -> None:
    document = json.loads((drawn / "images" / "instances_val.json").read_text())
    document["categories"], document["annotations"] = [], []
    (shell.folder / "annotations.json").write_text(json.dumps(document))
    message = refused(shell, "data", "shard", "annotations.json", str(drawn / "images/images"), "out")
    assert "categories" in message


@pytest.mark.slow
def test_storage_that_does_not_answer(shell: Shell, drawn: Path) -> None:
    shell.environment = DEAD
    job = str(write_job(shell.folder, drawn, storage="s3://runs"))
    assert "got no answer from http://127.0.0.1:9" in refused(shell, "train", job)
    job = str(write_job(shell.folder, drawn, data__train="s3://data/train"))
    assert "s3://data/train" in refused(shell, "train", job)


def test_a_job_that_is_not_yaml(shell: Shell) -> None:
    (shell.folder / "job.yaml").write_text("name: [unclosed")
    assert "job.yaml:2: column 1: not readable as YAML" in refused(shell, "train", "job.yaml")
    (shell.folder / "job.yaml").write_text(yaml.safe_dump(["a", "list"]))
    assert "a mapping of keys is needed" in refused(shell, "train", "job.yaml")
