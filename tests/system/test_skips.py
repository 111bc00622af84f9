"""A dataset with broken images: what was skipped is listed by reason and by key, once, wherever a user looks."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from system.shell import Shell, rows, sample_rows, wait_for, write_job
from yolofleet.data.dataset import ShardDataset
from yolofleet.storage import open_storage

pytestmark = pytest.mark.system
TRACKING_URI = "sqlite:///mlflow.db"


def broken(drawn: Path, folder: Path, numbers: list[int]) -> tuple[Path, list[str]]:
    """Copy the drawn training set, some images broken (every other one is a text) under digests that fit."""
    out = folder / "shards"
    storage, target = open_storage(drawn / "shards/train"), open_storage(out)
    for entry in storage.list(""):
        target.put(entry.key, storage.get(entry.key))
    dataset = ShardDataset(out)
    keys = []
    for number in numbers:
        shard, row = dataset.locate(number)
        index = dataset.index(shard)
        start, length = int(index.rows[row]["image_offset"]), int(index.rows[row]["image_bytes"])
        path = out / dataset.manifest.shards[shard].tar_key
        with path.open("r+b") as file:
            file.seek(start)
            file.write(b"no image" if number % 2 else b"\xff\xd8\xff" + bytes(length - 3))
        keys.append(index.keys[row])
    manifest = dataset.manifest
    digests = [hashlib.sha256((out / entry.tar_key).read_bytes()).hexdigest() for entry in manifest.shards]
    shards = tuple(replace(entry, sha256=sha256) for entry, sha256 in zip(manifest.shards, digests, strict=True))
    target.put("manifest.json", replace(manifest, shards=shards).to_bytes())
    return out, keys


def logged_twice(run: Path) -> list[tuple[Any, ...]]:
    """Skips that the run's sample logs hold more than once for the same position of the stream."""
    found = Counter((row["step"], row["micro_batch"], row["skipped"]) for row in sample_rows(run) if "reason" in row)
    return [position for position, count in found.items() if count > 1]


def test_a_run_tells_what_it_skipped(drawn: Path, shell: Shell) -> None:
    train, keys = broken(drawn, shell.folder, [2, 9, 15])
    write_job(
        shell.folder,
        drawn,
        data__train=str(train),
        cluster__workers=1,
        epochs=2,
        log_every_steps=3,
        record_samples=False,
        tracking={"uri": TRACKING_URI},
    )
    text = shell.succeed("train", "job.yaml", "--launcher", "process")
    run = shell.folder / "runs" / "small"
    found = json.loads((run / "report/skipped.json").read_text())
    assert found["skipped"] == 6 and found["seen"] == 128, "64 samples, two epochs, three broken"
    reasons = found["reasons"]
    assert reasons["image_damaged"] == {"count": 2, "samples": 1, "keys": {keys[0]: 2}}
    assert reasons["image_unknown"]["keys"] == dict.fromkeys(sorted(keys[1:]), 2)
    line = next(line for line in text.splitlines() if line.strip().startswith("skipped"))
    assert "6 of 128 (4.69%)" in line and "image_unknown x 4" in line and keys[0] in line
    assert "validation: none" in line
    page = (run / "report/index.html").read_text()
    assert "skipped in training" in page and "image_damaged x 2" in page
    assert "image_unknown x 4" in shell.succeed("report", "runs/small")
    assert json.loads((run / "report/release.json").read_text())["skipped"]["training"] == found
    last = {name: value for row in rows(run / "metrics.jsonl") for name, value in row.items()}
    assert (last["skipped_samples"], last["skipped_image_damaged"], last["skipped_image_unknown"]) == (6, 2, 4)
    assert not logged_twice(run)

    client = MlflowClient(tracking_uri=f"sqlite:///{shell.folder}/mlflow.db")
    mirrored = client.search_runs([client.get_experiment_by_name("yolofleet").experiment_id])[0]
    assert (
        mirrored.data.metrics["system/skipped_image_unknown"] == 4
        and mirrored.data.metrics["system/skipped_samples"] == 6
    )
    local = client.download_artifacts(mirrored.info.run_id, "report/skipped.json", str(shell.folder))
    assert json.loads(Path(local).read_text()) == found


@pytest.mark.slow
def test_skips_are_counted_once_over_a_kill(drawn: Path, shell: Shell) -> None:
    """A checkpoint between two rows of metrics, a kill after it: the sum is that of a run that was left alone."""
    train, _ = broken(drawn, shell.folder, list(range(0, 40, 10)))
    write_job(
        shell.folder,
        drawn,
        data__train=str(train),
        cluster__workers=1,
        epochs=1.5,
        log_every_steps=5,
        checkpoint={"every_steps": 3, "keep": 2},
        evaluation={"every_epochs": 10},
    )
    shell.succeed("train", "job.yaml", "name=whole", "--launcher", "process")
    process = shell.start("train", "job.yaml", "name=killed", "--launcher", "process")
    killed = shell.folder / "runs" / "killed"
    wait_for(lambda: list(killed.glob("checkpoints/step-*6/COMMITTED")), what="the checkpoint of step 6")
    process.kill()
    process.wait()
    shell.succeed("train", "job.yaml", "name=killed", "--launcher", "process")
    whole, again = (
        json.loads((shell.folder / "runs" / name / "report/skipped.json").read_text()) for name in ("whole", "killed")
    )
    assert whole == again and whole["skipped"] >= 4
    for name in ("whole", "killed"):
        newest = [row for row in rows(shell.folder / "runs" / name / "metrics.jsonl") if "skipped_samples" in row][-1]
        assert newest["skipped_samples"] == whole["skipped"]
    assert not logged_twice(killed)


@pytest.mark.slow
def test_a_run_that_skips_too_much_stops_and_says_why(drawn: Path, shell: Shell) -> None:
    train, keys = broken(drawn, shell.folder, list(range(0, 64, 4)))
    write_job(shell.folder, drawn, data__train=str(train), cluster__workers=1, epochs=10, log_every_steps=2)
    done = shell.run("train", "job.yaml", "--launcher", "process")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "image_damaged x" in done.stderr and sorted(keys)[0] in done.stderr and "most_skipped_share" in done.stderr
    found = json.loads((shell.folder / "runs/small/report/skipped.json").read_text())
    assert found["share"] > 0.1 and found["seen"] == 208, "judged from 200 samples on"
