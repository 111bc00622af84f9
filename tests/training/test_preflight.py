from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from yolofleet.core.errors import UserError
from yolofleet.specs.job import JobSpec
from yolofleet.training.setup.preflight import check_job

MakeJob = Callable[..., JobSpec]


def test_a_spec_that_computes_something_else_is_refused_field_by_field(small_job: MakeJob) -> None:
    check_job(small_job())
    with pytest.raises(UserError) as refusal:
        check_job(small_job(epochs=3, seed=7, hyperparameters={"lr0": 0.02}))
    lines = str(refusal.value).splitlines()
    assert lines[0].endswith("was started with another spec, and what it computes cannot change:")
    assert "  epochs: was 2.0, now 3.0" in lines
    assert "  seed: was 0, now 7" in lines
    assert "  hyperparameters.lr0: was not set, now 0.02" in lines
    assert "  hyperparameters.warmup_min_steps: was 4, now not set" in lines
    assert "Use another name" in lines[-1]
    assert "cluster, strategy, compile, storage, checkpoint" in lines[-1]


def test_many_differences_are_counted(small_job: MakeJob) -> None:
    check_job(small_job())
    hyperparameters = {"lr0": 0.02, "momentum": 0.9, "mosaic": 0.1, "mixup": 0.1, "warmup_epochs": 1.0, "scale": 0.2}
    with pytest.raises(UserError, match=r"and \d more"):
        check_job(small_job(epochs=3, seed=7, global_batch_size=16, hyperparameters=hyperparameters))


def test_allowed_changes_are_taken_and_listed(small_job: MakeJob) -> None:
    assert check_job(small_job()).changes == ()
    assert check_job(small_job()).changes == ()
    changed = check_job(small_job(cluster={"workers": 2, "max_failures": 9}, checkpoint={"every_steps": 5, "keep": 2}))
    assert set(changed.changes) == {
        "cluster.workers: was 1, now 2",
        "cluster.max_failures: was 3, now 9",
        "checkpoint.every_steps: was 2, now 5",
    }
    assert check_job(small_job()).changes  # the newest start is what the next one is compared with


def test_another_dataset_under_the_same_name_is_refused(small_job: MakeJob, small_data: Path) -> None:
    check_job(small_job())
    with pytest.raises(UserError, match="another content of train"):
        check_job(small_job(data={"train": str(small_data / "val"), "val": str(small_data / "val"), "image_size": 64}))


def test_a_storage_that_cannot_be_written_is_named(small_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="does not take the run directory"):
        check_job(small_job(storage=str(tmp_path / "file")))


def test_a_validation_set_without_boxes_is_refused_before_training(
    small_job: MakeJob, small_data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "unlabelled"
    shutil.copytree(small_data / "val", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"class_counts": [0 for _ in manifest["class_counts"]], "num_boxes": 0, "num_crowds": 0}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    job = small_job(data={"train": str(small_data / "train"), "val": str(folder), "image_size": 64})
    with pytest.raises(UserError, match=r"unlabelled: no boxes to evaluate with in \d+ images .*set data\.val"):
        check_job(job)
    assert not Path(job.storage, job.name).exists()


def test_a_release_that_cannot_be_exported_is_refused_before_training(
    small_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yolofleet.export.settings.is_installed", lambda name: False)
    check_job(small_job())
    with pytest.raises(UserError, match=r"onnx is not installed; install it with: pip install 'yolofleet\[export\]'"):
        check_job(small_job(release_onnx=True))
