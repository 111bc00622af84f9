"""A spec is read from s3:// wherever a command takes one, bounded, and what is wrong with it is said with its URL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from faulty_s3 import faulty_s3
from yolofleet.cli.main import main
from yolofleet.cluster.bundle import read_bundle
from yolofleet.core.errors import UserError
from yolofleet.specs.job import JobSpec
from yolofleet.specs.search import load_search
from yolofleet.specs.yaml_document import MOST_BYTES
from yolofleet.storage import StoredFile, open_file, open_storage

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small drawn training and validation shards."""
    folder = tmp_path_factory.mktemp("drawn")
    assert main(["data", "synth", str(folder / "images"), "--images", "24", "--image-size", "64"]) == 0
    for part in ("train", "val"):
        annotations = folder / f"images/instances_{part}.json"
        assert main(["data", "shard", str(annotations), str(folder / "images/images"), str(folder / part)]) == 0
    return folder


@pytest.fixture(scope="module")
def bucket(shards: Path) -> Iterator[str]:
    """The URL of a bucket with a job, a search space over it, and the settings of a cluster."""
    from yolofleet.storage.s3 import _s3_client

    with faulty_s3() as proxy, pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": proxy.url}).items():
            monkeypatch.setenv(name, value)
        _s3_client.cache_clear()
        boto3.client("s3").create_bucket(Bucket="bucket")
        job: dict[str, Any] = {
            "name": "small",
            "model": {"name": "yolov7-tiny", "transition_width": 0.25, "hidden_width": 0.25},
            "data": {"train": str(shards / "train"), "val": str(shards / "val"), "image_size": 64},
            "epochs": 1,
            "global_batch_size": 8,
            "micro_batch_size": 4,
            "storage": "s3://bucket/runs",
        }
        space = {
            "name": "rates",
            "job": "../jobs/job.yaml",
            "parameters": {"hyperparameters.lr0": {"log_uniform": [0.001, 0.1]}},
            "budget": {"trials": 2},
        }
        storage = open_storage("s3://bucket")
        storage.put("jobs/job.yaml", yaml.safe_dump(job).encode())
        storage.put("spaces/rates.yaml", yaml.safe_dump(space).encode())
        storage.put("large.yaml", b"#" * (MOST_BYTES + 1))
        storage.put("broken.yaml", b"name: [")
        yield "s3://bucket"
        _s3_client.cache_clear()


def test_a_job_at_a_url_is_planned_and_drawn(bucket: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    job = f"{bucket}/jobs/job.yaml"
    assert main(["cluster", "plan", job, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["job"] == "small"
    assert main(["data", "show", job, "--out", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("*.png"))) == 2


def test_a_space_at_a_url_takes_its_job_from_beside_it(bucket: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", f"{bucket}/spaces/rates.yaml", "--plan", "--json", "budget.trials=5"]) == 0
    assert len(json.loads(capfd.readouterr().out)["candidates"]) > 2
    bundle = read_bundle(open_file(f"{bucket}/spaces/rates.yaml"), [])
    assert (bundle.kind, bundle.document["job"]["name"]) == ("tune", "small")
    assert read_bundle(open_file(f"{bucket}/jobs/job.yaml"), ["epochs=3"]).document["epochs"] == 3


def test_a_local_space_may_name_a_job_at_a_url(bucket: str, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(
        yaml.safe_dump(
            {
                "name": "rates",
                "job": f"{bucket}/jobs/job.yaml",
                "parameters": {"epochs": {"choice": [1, 2]}},
                "budget": {"trials": 2},
            }
        )
    )
    assert load_search(space).job["name"] == "small"


@pytest.mark.slow
def test_a_job_at_a_url_trains(bucket: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"{bucket}/jobs/job.yaml", "--launcher", "process", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["run"] == "s3://bucket/runs/small"


WRONG = {
    "jobs/jobs.yaml": "s3://bucket/jobs/jobs.yaml: no such object",
    "broken.yaml": "s3://bucket/broken.yaml:2: column 1: not readable as YAML",
    "jobs/": "s3://bucket/jobs/: names no file; give its whole URL",
}


@pytest.mark.parametrize(
    "command", ["train", "tune --plan", "submit", "cluster plan", "cluster render", "cluster doctor", "data show"]
)
def test_what_is_wrong_is_said_with_the_url(
    bucket: str, command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = ["--out", str(tmp_path)] if command == "data show" else []
    for path, message in WRONG.items():
        assert main([*command.split(), f"{bucket}/{path}", *more]) == 2
        assert message in capfd.readouterr().err


def test_a_file_that_is_too_large_for_a_spec_is_not_read(bucket: str) -> None:
    with pytest.raises(UserError, match=r"large.yaml: 8,000,001 bytes are too many for such a file \(8,000,000\)"):
        JobSpec.load(open_file(f"{bucket}/large.yaml"))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://bucket", "s3://bucket: names no file"),
        ("ftp://host/job.yaml", "unknown scheme 'ftp://'; use a path, file:// or s3://"),
        ("s3://key:secret@bucket/job.yaml", "a URL takes no key, token or password"),
    ],
)
def test_a_url_that_is_no_file_is_refused(url: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        open_file(url)
    assert message in str(caught.value)
    assert "secret@" not in str(caught.value)


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("job.yaml", "s3://b/a/job.yaml"),
        ("../job.yaml", "s3://b/job.yaml"),
        ("../../../job.yaml", "s3://b/job.yaml"),
        ("s3://c/job.yaml", "s3://c/job.yaml"),
    ],
)
def test_a_relative_path_counts_from_the_url_and_stays_in_the_bucket(named: str, expected: str) -> None:
    space = open_file("s3://b/a/space.yaml")
    assert isinstance(space, StoredFile)
    assert str(open_file(named, beside=space)) == expected
    assert str(open_file("job.yaml", beside=Path("a/space.yaml"))) == "a/job.yaml"
