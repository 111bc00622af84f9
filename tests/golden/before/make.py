"""Make records.tar.xz: one small record of every kind that yolofleet writes, as commit 501c7a7 wrote them.

    python make.py FOLDER ARCHIVE      # FOLDER: a new one; its path ends up in some records, so take a neutral one

It needs the code of that commit; later code writes later records, and those are not what the archive is for.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from specs import EVENTS, HALVING, JOB, MODEL, POLICY, SEARCH, UNFINISHED

CONFIDENCE = "0.018"
"""So little was learned that nothing is found at 0.25."""
URI = "sqlite:///runs/_mlflow/mlflow.db"


def run(*arguments: str) -> str:
    """Run a command that must succeed."""
    print("$ yolofleet", *arguments, flush=True)
    done = subprocess.run([sys.executable, "-m", "yolofleet", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def start(*arguments: str) -> subprocess.Popen[bytes]:
    """Start a command in a process group of its own."""
    print("$ yolofleet", *arguments, "&", flush=True)
    command = ["env", "--default-signal=INT", sys.executable, "-m", "yolofleet", *arguments]
    return subprocess.Popen(command, start_new_session=True)


def wait_for(condition: Callable[[], Any]) -> None:
    """Return once the condition holds."""
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def rows(path: str) -> list[dict[str, Any]]:
    """Return the whole rows of a log."""
    return [json.loads(line) for line in Path(path).read_bytes().split(b"\n")[:-1]] if Path(path).exists() else []


def write(name: str, *documents: dict[str, Any]) -> None:
    """Write documents, the later over the earlier, as YAML."""
    merged: dict[str, Any] = {}
    for document in documents:
        merged |= document
    Path(name).write_text(yaml.safe_dump(merged, sort_keys=False))


def keep(name: str, text: str) -> None:
    """Keep what a command printed."""
    Path("expected").mkdir(exist_ok=True)
    Path("expected", name).write_text(text)


def make_data() -> None:
    """Draw images; the validation set is a part of the training set, so that something is learned in seconds."""
    run("data", "synth", "images", "--images", "12", "--seed", "3", "--image-size", "96")
    run("data", "shard", "images/instances.json", "images/images", "shards/train")
    run("data", "shard", "images/instances.json", "images/images", "shards/val", "--split", "0.0-0.3")
    for part in ("train", "val"):
        keep(f"inspect-{part}.json", run("data", "inspect", f"shards/{part}", "--json"))


def make_runs() -> None:
    """Train a run whose worker dies once, and one that is stopped and not resumed, beside the same undisturbed."""
    command = start("train", "job.yaml")
    wait_for(lambda: [row for row in rows("runs/finished/metrics.jsonl") if row["step"] >= 100])
    workers = psutil.Process(command.pid).children(recursive=True)
    os.kill(next(p.pid for p in workers if any("RayTrainWorker" in part for part in p.cmdline())), signal.SIGKILL)
    assert command.wait() == 0
    run("train", "unfinished.yaml", "storage=undisturbed", "--launcher", "process")
    keep("undisturbed-metrics.jsonl", Path("undisturbed/unfinished/metrics.jsonl").read_text())
    keep("undisturbed-samples.jsonl", Path("undisturbed/unfinished/samples/rank-0.jsonl").read_text())
    for name in ("weights", "average"):
        state = f"undisturbed/unfinished/checkpoints/step-30/{name}.safetensors"
        shutil.copy(state, f"expected/undisturbed-{name}.safetensors")
    shutil.rmtree("undisturbed")
    command = start("train", "unfinished.yaml", "--launcher", "process")
    wait_for(lambda: [row for row in rows("runs/unfinished/metrics.jsonl") if row["step"] >= 10])
    command.send_signal(signal.SIGTERM)
    assert command.wait() == 1
    run("train", "fine-tuned.yaml", "--launcher", "process")
    keep("evaluation.json", run("evaluate", "runs/finished", "shards/val", "--json", "--results", "results.json"))
    keep(
        "predict.json",
        run(
            "predict",
            "models:/shapes/1",
            "images/images/000001.jpg",
            "--out",
            "drawn",
            "--confidence",
            CONFIDENCE,
            "--json",
        ),
    )
    shutil.rmtree("drawn")


def make_eventful_run() -> None:
    """Train on shards with a broken image, and add a row of every kind of event."""
    from yolofleet.storage import open_storage
    from yolofleet.tracking.run_directory import RunDirectory

    shutil.copytree("shards/train", "broken")
    tar = Path("broken/shards/shard-000000.tar")
    with tarfile.open(tar) as archive:
        image = next(member for member in archive if member.name.endswith(".jpg"))
    with tar.open("r+b") as file:
        file.seek(image.offset_data)
        file.write(b"no image")
    changes = ["name=eventful", "data.train=broken", "epochs=4", "evaluation.every_epochs=4"]
    run("train", "unfinished.yaml", *changes, "--launcher", "process")
    shutil.rmtree("broken")
    for name in ("checkpoints", "model", "samples", "report/images"):
        shutil.rmtree(f"runs/eventful/{name}")
    Path("runs/eventful/report/index.html").unlink()
    storage = open_storage("runs/eventful")
    directories = {source: RunDirectory(storage, source=source) for source in (None, "driver", "mirror")}
    for source, kind, fields in EVENTS:
        time.sleep(0.02)
        directories[source].append_event(kind, **fields)
    directories["driver"].append_metrics({"step": 40, "val_AP": 0.625})
    for directory in directories.values():
        directory.close()


def make_searches() -> None:
    """End a search with exchanges, and stop one that waits at rungs."""
    run("tune", "population.yaml", "--yes")
    command = start("tune", "halving.yaml", "--yes")
    wait_for(lambda: sum(row["kind"] == "measured" for row in rows("runs/halving/trials.jsonl")) >= 2)
    os.killpg(command.pid, signal.SIGINT)
    assert command.wait() != 0
    for name in ("population", "halving"):
        keep(f"report-{name}.json", run("report", f"runs/{name}", "--json"))


def make_versions() -> None:
    """Prove the two versions, and move an alias from one to the other."""
    for version in ("1", "2"):
        run("registry", "promote", "shapes", "--version", version, "--policy", "promotion.yaml", "--reason", "is due")
    for version in ("1", "2"):
        keep(f"show-{version}.json", run("registry", "show", f"shapes/{version}", "--json"))
        keep(f"verify-{version}.json", run("registry", "verify", f"shapes/{version}", "--json"))
    keep("list.json", run("registry", "list", "shapes", "--json"))
    keep("history.json", run("registry", "history", "shapes", "--json"))


def make_predictions() -> None:
    """Predict for the training set in parts, and leave it as a kill after the third part does."""
    detector = shutil.copytree("runs/fine-tuned/model", "detector")
    run(
        "predict",
        str(detector),
        "shards/train",
        "--workers",
        "1",
        "--part-size",
        "2",
        "--out",
        "found",
        "--device",
        "cpu",
        "--confidence",
        CONFIDENCE,
    )
    keep("found.json", Path("found/detections.json").read_text())
    for part in range(3, 6):
        Path(f"found/parts/{part:08d}.json").unlink()
    for name in ("detections.json", "results.json"):
        Path("found", name).unlink()


def pack(archive: Path) -> None:
    """Pack the folder; the database as SQL, for most of its pages are empty."""
    for name in ("finished", "unfinished", "fine-tuned", "eventful"):
        keep(f"report-{name}.json", run("report", f"runs/{name}", "--json"))
    database = Path("runs/_mlflow/mlflow.db")
    with sqlite3.connect(database) as connection:
        Path("mlflow.sql").write_text("\n".join(connection.iterdump()) + "\n")
    for path in (database, Path("runs/_mlflow/mlflow.db.lock")):
        path.unlink()
    for image in Path("images/images").iterdir():
        if image.name != "000001.jpg":
            image.unlink()
    compress(archive)


def compress(archive: Path) -> None:
    """Write the archive; files of one kind stand together, so that copies of one file cost nothing."""
    with tarfile.open(archive, "w:xz", preset=9) as file:
        for path in sorted(Path().rglob("*"), key=lambda path: (path.suffix, path.name, str(path))):
            if path.is_file():
                file.add(path, filter=_anonymous)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    folder, archive = Path(sys.argv[1]), Path(sys.argv[2]).absolute()
    folder.mkdir(parents=True)
    os.chdir(folder)
    os.environ |= {"MLFLOW_TRACKING_URI": URI, "OMP_NUM_THREADS": "1"}
    Path("model.yaml").write_text(MODEL)
    Path("promotion.yaml").write_text(POLICY)
    write("job.yaml", JOB)
    write("unfinished.yaml", JOB, UNFINISHED)
    tuned = {
        "name": "fine-tuned",
        "initial_weights": "models:/shapes/1",
        "freeze": ["conv_0"],
        "cluster": {},
        "epochs": 8,
    }
    write("fine-tuned.yaml", JOB, tuned)
    write("population.yaml", SEARCH, {"set": SEARCH["set"] | {"initial_weights": "runs/finished"}})
    write("halving.yaml", SEARCH, HALVING)
    make_data()
    make_runs()
    make_eventful_run()
    make_searches()
    make_versions()
    make_predictions()
    pack(archive)
