"""What everything but the training itself costs with 1,000 workers and 10^9 samples, and what gives way first.

Nothing is trained: workers, their images, MLflow and the cluster's Jobs API are stand-ins, what lies between them is
the real thing. The data plane is simulated: 64 nodes of 8 workers against a model of an object store. Each part runs in
a process of its own; its time is processor time (or simulated), its memory what it adds at the peak.
Both are compared with a limit of that part (`scale_parts.py` says why that much): the largest share names the part that
would be the first to hold a larger cluster up.

    python benchmarks/scale.py [--workers 1000] [--samples 1000000000] [--trials 10000] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "platform"), str(ROOT / "benchmarks")]

from scale_parts import PARTS, Scale, bytes_over_dataset  # noqa: E402 - beside this file

MEBIBYTE = 2**20


def measured(part: str, scale: Scale, folder: Path) -> list[dict[str, Any]]:
    """Run a part in a process of its own; returns what it measured."""
    code = (
        "import json, sys; from pathlib import Path; from scale_parts import PARTS, Scale;"
        "scale, folder = Scale(*json.loads(sys.argv[2])), Path(sys.argv[3]);"
        "print(json.dumps([measure.document() for measure in PARTS[sys.argv[1]](scale, folder)]))"
    )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path[:3]),
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    amounts = json.dumps([scale.workers, scale.samples, scale.trials])
    done = subprocess.run(
        [sys.executable, "-c", code, part, amounts, str(folder)],
        env=environment, cwd=folder, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(f"{part} failed")
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return [{"part": part} | entry for entry in found]


def first_bottleneck(measures: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the measure that takes the largest share of its limit."""
    return max(measures, key=lambda entry: float(entry["share"]))


def main() -> int:
    """Measure all parts and show them; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=10**9)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--parts", nargs="*", choices=sorted(PARTS), default=list(PARTS))
    parser.add_argument("--json", action="store_true", help="print JSON only")
    arguments = parser.parse_args()
    scale = Scale(arguments.workers, arguments.samples, arguments.trials)
    measures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="yolofleet-scale-") as folder:
        for part in arguments.parts:
            measures += measured(part, scale, Path(folder))
            if not arguments.json:
                for entry in (entry for entry in measures if entry["part"] == part):
                    print(_line(entry), flush=True)
    worst = first_bottleneck(measures)
    downloads = bytes_over_dataset()
    if arguments.json:
        document = {"workers": scale.workers, "samples": scale.samples, "trials": scale.trials}
        print(json.dumps(document | downloads | {"measures": measures, "first_bottleneck": worst}, indent=1))
    else:
        print(", ".join(f"{name} {value:.4f}" for name, value in downloads.items()))
        print(
            f"first bottleneck: {worst['part']}, {worst['what']}: {worst['share']:.2f} of its limit ({worst['kind']})"
        )
    return 0


def _line(entry: dict[str, Any]) -> str:
    amounts = f"{entry['seconds']:10.4f} s of {entry['limit_seconds']:g}, {entry['bytes'] / MEBIBYTE:7.0f} MiB"
    return f"{entry['part']:<12} {entry['what']:<52} {amounts}, share {entry['share']:.3f} ({entry['kind']})"


if __name__ == "__main__":
    sys.exit(main())
