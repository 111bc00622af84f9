"""YOLOv7-tiny from scratch on real images (blood cells, three classes): how well, and in what time.

    python benchmarks/training/real_data.py DATA --out FOLDER [--device cpu|gpu] [--minutes 20] [--json]

DATA holds images/ and instances_{train,val,test}.json in COCO form. The run is made of the commands that a user has:
shards, training, evaluation. It can be done in pieces: ``--minutes`` stops it, the same command goes on, and the time
of all pieces is added up. Everything is chosen on val; test is scored once, when the training is finished, and that
figure is kept in FOLDER/result.json. The curve of val AP over time lies beside it. Aim: on two CPU cores AP50 >= 0.80
within 60 minutes; on a GPU AP50 >= 0.85 and AP >= 0.50.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml

HERE = Path(__file__).parent / "real_data"
SPLITS = ("train", "val", "test")
AIMS = {"cpu": {"AP50": 0.80}, "gpu": {"AP50": 0.85, "AP": 0.50}}


def yolofleet(*arguments: str, folder: Path) -> list[str]:
    """Run a command of ours to its end and return the lines of its stdout."""
    command = [sys.executable, "-m", "yolofleet", *arguments]
    return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()


def make_shards(data: Path, folder: Path) -> None:
    """Write the shards of every split that has none yet."""
    for split in SPLITS:
        if not (folder / "shards" / split / "manifest.json").exists():
            annotations, images = data / f"instances_{split}.json", data / "images"
            yolofleet("data", "shard", str(annotations), str(images), f"shards/{split}", folder=folder)


def train_piece(job: Path, folder: Path, minutes: float | None) -> bool:
    """Train until the end or for some minutes, note the time that it took, and return whether it is finished."""
    command = [sys.executable, "-m", "yolofleet", "train", str(job), "storage=runs", "--launcher", "process"]
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    process = subprocess.Popen(command, cwd=folder, stdout=sys.stderr)
    try:
        code = process.wait(minutes * 60 if minutes else None)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()
        code = None
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    piece = {
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_seconds": time.monotonic() - begun,
        "processor_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }
    with (folder / "pieces.jsonl").open("a") as pieces:
        pieces.write(json.dumps(piece) + "\n")
    if code:
        sys.exit(code)
    return code == 0


def curve(run: Path) -> list[dict[str, float]]:
    """Return step, epoch and val figures of every evaluation of the run."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{"step": row["step"], "AP50": row["val_AP50"], "AP": row["val_AP"]} for row in rows if "val_AP50" in row]


def draw(points: list[dict[str, float]], out: Path) -> None:
    """Draw val AP50 and AP over the steps of the run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    for name in ("AP50", "AP"):
        axis.plot([point["step"] for point in points], [point[name] for point in points], marker="o", label=name)
    axis.set_xlabel("step")
    axis.set_ylabel("on val")
    axis.set_ylim(0, 1)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(out)


def result_of(job: dict[str, Any], device: str, folder: Path) -> dict[str, Any]:
    """Score the finished run's model on test and put everything together."""
    run = folder / "runs" / job["name"]
    judged = json.loads("\n".join(yolofleet("evaluate", str(run), "shards/test", "--json", folder=folder)))
    figures = {name: judged["figures"][name] for name in ("AP50", "AP")}
    pieces = [json.loads(line) for line in (folder / "pieces.jsonl").read_text().splitlines()]
    points = curve(run)
    draw(points, folder / "curve.svg")
    return {
        "test": figures,
        "val": {name: max(point[name] for point in points) for name in ("AP50", "AP")},
        "aim": AIMS[device],
        "reached": all(figures[name] >= aim for name, aim in AIMS[device].items()),
        "pieces": len(pieces),
        "wall_minutes": sum(piece["wall_seconds"] for piece in pieces) / 60,
        "processor_minutes": sum(piece["processor_seconds"] for piece in pieces) / 60,
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(device),
        "torch": torch.__version__,
        "curve": points,
        "job": job,
    }


def hardware(device: str) -> str:
    """Name what the run was computed on."""
    if device == "gpu":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores, {names[0] if names else platform.processor()}"


def main() -> None:
    """Do the next piece; print the result when there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--minutes", type=float, help="stop after so many minutes; the same command goes on")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    arguments = parser.parse_args()
    for split in SPLITS:
        if not (arguments.data / f"instances_{split}.json").is_file():
            parser.error(f"{arguments.data} has no instances_{split}.json")
    folder = arguments.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    job_path = HERE / f"{arguments.device}.yaml"
    record = folder / "result.json"
    if not record.exists():
        make_shards(arguments.data.resolve(), folder)
        if not train_piece(job_path, folder, arguments.minutes):
            print("stopped; the same command goes on", file=sys.stderr)
            return
        result = result_of(yaml.safe_load(job_path.read_text()), arguments.device, folder)
        record.write_text(json.dumps(result, indent=1) + "\n")
    result = json.loads(record.read_text())
    if arguments.json:
        print(json.dumps(result))
        return
    print(
        f"test AP50 {result['test']['AP50']:.4f}, AP {result['test']['AP']:.4f}; aim "
        f"{'reached' if result['reached'] else 'missed'}: {result['aim']}; {result['wall_minutes']:.0f} minutes, "
        f"{result['processor_minutes']:.0f} of a processor, in {result['pieces']} pieces, on {result['hardware']}"
    )


if __name__ == "__main__":
    main()
