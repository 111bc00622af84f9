from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from yolofleet.cli.main import main
from yolofleet.data.manifest import Manifest, ShardEntry
from yolofleet.data.records import ObjectClass
from yolofleet.storage import open_storage
from yolofleet.training.metrics.rate import Rate

SHARDS, SAMPLES, SHARD_BYTES = 24, 100, 50_000_000


def dataset_of(folder: Path, num_shards: int) -> str:
    """Write a manifest alone: it is all that a plan reads."""
    entries = tuple(ShardEntry(f"{n:06d}", SHARD_BYTES, f"{n:064x}", SAMPLES, "0" * 64) for n in range(num_shards))
    count = num_shards * SAMPLES
    manifest = Manifest((ObjectClass(1, "thing"),), (count,), count, 0, count, 0, entries, "made up")
    open_storage(folder).put("manifest.json", manifest.to_bytes())
    return str(folder)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    document = {
        "name": "planned",
        "model": {"name": "yolov7-tiny"},
        "data": {
            "train": dataset_of(tmp_path / "train", SHARDS),
            "val": dataset_of(tmp_path / "val", 1),
            "cache": {"path": str(tmp_path / "cache"), "max_bytes": "10GB"},
        },
        "global_batch_size": 64,
        "micro_batch_size": 8,
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["cluster", "plan", *(str(argument) for argument in arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_plan_tells_downloads_disk_start_and_shuffle(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, job, "--nodes", 2, "--workers", 4, "--bandwidth", "100MB/s", "--json")
    found = json.loads(text)
    assert code == 0 and len(found["nodes"]) == 2 and found["workers"] == 4 and not found["is_remote"]
    for node in found["nodes"]:
        assert SHARDS / 2 * SHARD_BYTES <= node["downloaded_bytes"][0] <= (SHARDS / 2 + 8) * SHARD_BYTES
        assert sum(node["downloaded_bytes"]) == node["peak_disk_bytes"] <= SHARDS * SHARD_BYTES
    assert found["downloaded_bytes"][0] == found["requests"][0] / 4 * SHARD_BYTES, "the index, and three ranges"
    assert found["start_seconds"] == max(node["first_batch_bytes"] for node in found["nodes"]) / 100e6
    assert 0.4 < found["shuffle_quality"] < 1 and found["deal"] == "epoch" and len(found["stall_seconds"]) == 2
    assert not (job.parent / "cache").exists(), "planning makes nothing"


def test_a_plan_is_a_table_with_the_cure(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, job, "data.cache.max_bytes=500MB", "--nodes", 2)
    assert code == 0 and "cure: data.cache.max_bytes of 600 MB or more" in text and "once: a node keeps" in text
    assert [line.split()[0] for line in text.splitlines()[4:7]] == ["node", "0", "1"]
    assert all(len(line) <= 80 for line in text.splitlines()[3:9])
    code, text, _ = run(capsys, job, "data.cache.max_bytes=1GB", "global_batch_size=8")
    assert code == 0 and "hint: with data.cache.max_bytes of 1.2 GB" in text


def test_a_plan_tells_what_a_change_of_nodes_downloads(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change = ("data.deal=fixed", "--nodes", 2, "--workers", 4, "--json")
    _, text, _ = run(capsys, job, *change)
    assert json.loads(text)["downloaded_bytes"][1] == 0
    _, text, _ = run(capsys, job, *change, "--then-nodes", 4)
    found = json.loads(text)
    assert 0 < found["downloaded_bytes"][1] < SHARDS * SHARD_BYTES and len(found["nodes"]) == 4


def test_a_plan_forecasts_hours_and_cost_from_a_rate(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    priced = ("epochs=12", "cluster.workers=4", "cluster.gpus_per_worker=1", "cluster.price_per_hour=3", "--json")
    found = json.loads(run(capsys, job, *priced)[1])
    assert found["forecast"]["num_steps"] == 450 and found["forecast"]["wall_hours"] is None
    assert found["steps_per_second"] == 1.0 and "--measure" in found["forecast"]["unknown"][0]
    found = json.loads(run(capsys, job, *priced, "--rate", 4)[1])
    assert found["forecast"]["wall_hours"] == 0.5 and found["steps_per_second"] == 0.25
    assert (found["forecast"]["gpu_hours"], found["forecast"]["cost"]) == (2.0, 6.0)
    rate = Rate(2.0, 1, 2, {"forward": 0.5, "backward": 1.0, "optimizer": 0.4})
    (job.parent / "rate.json").write_text(json.dumps(rate.document()))
    shown = (job, *priced[:-1], "--rate", job.parent / "rate.json", "--exchange-bandwidth", "1GB/s")
    text = run(capsys, *shown, "--device-memory", "16GB")[1]
    lines = [line.split() for line in text.splitlines()]
    assert ["1", "6.8", "100%", "0.85", "2.55"] in lines, "eight micro-batches of 0.8 s, and the optimiser's 0.4"
    assert "GPU hours, cost" in text and "advice: strategy ddp fits 16.0 GB" in text and "not known: start-up" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "soon"], "is neither a number of seconds nor a file"),
        (["--rate", "0"], "are a number above 0"),
        (["--rate", "1", "--like", "runs/x"], "give one of them"),
        (["--like", "nowhere"], "is not the directory of a run that has trained"),
        (["--exchange-bandwidth", "fast"], "--exchange-bandwidth 'fast' is not a size"),
        (["--nodes", 9], "9 workers, but a global batch of 64 holds only 8 micro-batches"),
        (["--nodes", 3, "--workers", 2], "3 nodes, but only 2 workers"),
        (["--nodes", 0], "--nodes"),
        (["--bandwidth", "fast"], "--bandwidth 'fast' is not a size"),
        (["--bandwidth", "0"], "at least one byte"),
        (["data.cache.max_bytes=1MB"], "alone has 50,000,000 bytes"),
        (["data.train=nowhere"], "no dataset here"),
        (["data.trian=x"], "trian"),
    ],
)
def test_a_plan_refuses_what_cannot_be(
    job: Path, capsys: pytest.CaptureFixture[str], arguments: list[object], message: str
) -> None:
    code, text, errors = run(capsys, job, *arguments)
    assert code == 2 and text == "" and message in errors and "Traceback" not in errors
