"""COCO AP from two JSON files, annotations and results: yolofleet against hotcoco, in the same run.

    pip install --target /tmp/peers hotcoco
    PYTHONPATH=/tmp/peers:platform python benchmarks/result_files.py [--images 1000] [--repeats 3] [--json]

Each is a process of its own with one thread: processor seconds from the files to the twelve figures, imports left out,
and the peak of its memory, imports included. hotcoco is no dependency; without it yolofleet is measured alone.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

DETECTIONS_PER_IMAGE = 100


def import_yolofleet() -> Callable[[Path, Path], list[float]]:
    """Return what computes the twelve figures from two files."""
    from yolofleet.evaluation.average_precision import coco_average_precision
    from yolofleet.evaluation.ground_truth import read_ground_truth
    from yolofleet.evaluation.result_file import read_results

    def evaluate(truth_path: Path, results_path: Path) -> list[float]:
        truth = read_ground_truth(truth_path)
        detections, _ = read_results(results_path, truth)
        figures = coco_average_precision(truth.document, detections).figures
        return [-1.0 if value is None else value for value in figures.values()]

    return evaluate


def import_hotcoco() -> Callable[[Path, Path], list[float]]:
    """Return what computes the twelve figures from two files."""
    import hotcoco

    def evaluate(truth_path: Path, results_path: Path) -> list[float]:
        truth = hotcoco.COCO(str(truth_path))
        evaluation = hotcoco.COCOeval(truth, truth.load_res(str(results_path)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.summarize()
        return [float(value) for value in evaluation.stats[:12]]

    return evaluate


PEERS = {"yolofleet": import_yolofleet, "hotcoco": import_hotcoco}


def peak_bytes() -> int:
    """Return the most memory that this process held; `getrusage` would give its parent's if that is more."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def measure_here(name: str, folder: Path) -> dict[str, Any]:
    """Measure one of them in this process."""
    evaluate = PEERS[name]()
    start = time.process_time()
    figures = evaluate(folder / "truth.json", folder / "results.json")
    seconds = time.process_time() - start
    return {
        "cpu_seconds": seconds,
        "peak_bytes": peak_bytes(),
        "figures": figures,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        name, folder = arguments.measure
        print(json.dumps(measure_here(name, Path(folder))))
        return
    from average_precision import problem

    names = [name for name in PEERS if find_spec(name)]
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        truth, results = problem(arguments.images, arguments.images * DETECTIONS_PER_IMAGE)
        for file_name, document in (("truth.json", truth), ("results.json", results)):
            Path(folder, file_name).write_text(json.dumps(document), encoding="utf-8")
        for _ in range(arguments.repeats):  # interleaved, so that a busy machine is busy for all
            for name in names:
                command = [sys.executable, __file__, "--measure", name, folder]
                done = subprocess.run(command, env=one_thread, capture_output=True, text=True, check=True)
                rows[name].append(json.loads(done.stdout.splitlines()[-1]))
    best = {name: {key: min(row[key] for row in rows[name]) for key in ("cpu_seconds", "peak_bytes")} for name in names}
    result: dict[str, Any] = {"images": arguments.images, "peers": best}
    if "hotcoco" in best:
        ours, theirs = best["yolofleet"], best["hotcoco"]
        result["times_hotcoco_seconds"] = round(ours["cpu_seconds"] / theirs["cpu_seconds"], 2)
        result["times_hotcoco_memory"] = round(ours["peak_bytes"] / theirs["peak_bytes"], 2)
        result["equal"] = rows["yolofleet"][0]["figures"] == rows["hotcoco"][0]["figures"]
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{result['images']} images, {result['images'] * DETECTIONS_PER_IMAGE} detections")
    for name, row in best.items():
        print(f"{name:10} {row['cpu_seconds']:7.3f} s  {row['peak_bytes'] / 2**20:7.0f} MiB")
    for key in ("times_hotcoco_seconds", "times_hotcoco_memory", "equal"):
        if key in result:
            print(f"{key}: {result[key]}")


if __name__ == "__main__":
    main()
