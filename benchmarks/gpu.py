"""One command for a machine with a GPU: is the package right there, and how fast is a step? At most eight minutes.

    python benchmarks/gpu.py [--minutes 8] [--models yolov7 yolov7-tiny] [--json]
    python benchmarks/gpu.py --small        # the whole script on a CPU in a minute or two; its figures say nothing

It needs torch, numpy and the package with its tests' golden values; neither Ray nor MLflow is imported. First come the
checks: golden losses, outputs and training steps in fp32, bf16 and fp16, plain and compiled, and steps in which torch
makes every wait for the device an error. Then, of each model at its published size, a step in bf16:

- images a second; ``mfu``, its operations (a backward pass counts as two forward ones) over the peak that NVIDIA gives
  or, for other devices, over a large product measured here; ``over_floor``, its time over the least one: its
  operations at the product's rate, and what the forward pass keeps, moved four times at a copy's rate;
- the stages, each with the share of the whole; memory at its highest over the forecast;
- ``times_baseline``: the time of the baseline's step (`gpu_baseline.py`) over ours, in turn in this process.

Then the wait for data from drawn shards, suppression, and inference in torch, compiled, and in ONNX Runtime. A part for
which no time is left is named, not guessed. The exit status is 1 where a check or a part failed.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from gpu_baseline import BaselineStep
from gpu_checks import checks
from gpu_parts import data_wait, inference, suppression
from gpu_step import Case, StageClock, Step, ceilings, seconds_per_call, synchronise
from yolofleet.evaluation.latency import Environment

NOT_ON_A_GPU = "not measured on a GPU"
CASES = (
    Case(model="yolov7", image_size=640, batch_size=32),
    Case(model="yolov7-tiny", image_size=640, batch_size=64),
    Case(model="yolov7-w6", image_size=1280, batch_size=16),
    Case(model="yolov7-e6e", image_size=1280, batch_size=8),
)
SMALL = (Case(model="yolov7-tiny", image_size=64, batch_size=2),)
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12, "L40S": 362e12, "L4": 121e12}
"""Dense bf16 operations a second, from NVIDIA's data sheets."""
SECONDS_KEPT = 20.0
"""A part does not begin with less time left."""


class Report:
    """What has been found, and the time that is left."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes
        self.found: dict[str, Any] = {}
        self.failed = False

    def part(self, name: str, work: Callable[[], Any], *, needs_seconds: float = SECONDS_KEPT) -> Any:
        """Do a part, unless the time is up; a failure is kept, and the next part begins."""
        began = time.monotonic()
        if self._end - began < needs_seconds:
            self.found[name] = {"left out": "no time left"}
            return None
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            self.found[name] = work()
        except Exception as error:  # the other parts are worth having
            self.failed = True
            self.found[name] = {"failed": f"{type(error).__name__}: {error}"}
        print(f"{name}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
        return self.found[name]


def peak_flops(device: torch.device, product: float) -> float:
    """Return the device's peak in bf16, or what the product reached where the data sheet is not known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for key, peak in PEAK_FLOPS.items() if key in name), product)


def measure_step(case: Case, device: torch.device, product: float, copied: float, *, small: bool) -> dict[str, Any]:
    """Measure a step of a case, its stages and its memory."""
    warm_up, rounds = (1, 2) if small else (10, 20)
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    step = Step.of(case, device)
    seconds = seconds_per_call(step, device, warm_up=warm_up, rounds=rounds)
    clock = StageClock(device)
    for _ in range(rounds):
        step.stages(clock)
        clock.end()
    step.finish()
    stages = clock.medians()
    found: dict[str, Any] = {
        "images_per_second": round(case.batch_size / seconds, 1),
        "step_ms": round(seconds * 1e3, 2),
        "tflops": float(f"{case.flops() / seconds / 1e12:.4g}"),
        "mfu": round(case.flops() / seconds / peak_flops(device, product), 4),
        "over_floor": round(seconds / case.floor_seconds(product, copied), 2),
        "stages_ms": {name: round(value * 1e3, 3) for name, value in stages.items()},
        "loss_share": round(stages["loss"] / sum(stages.values()), 4),
    }
    if device.type == "cuda":
        held = torch.cuda.max_memory_allocated(device)
        found |= {"memory_bytes": held, "memory_over_forecast": round(held / case.forecast().total, 3)}
    return found


def measure_baseline(case: Case, device: torch.device, ours: dict[str, Any], *, small: bool) -> dict[str, Any]:
    """Measure the baseline's step and how many times as fast ours is."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
    seconds = seconds_per_call(BaselineStep(case, device), device, warm_up=1 if small else 5, rounds=2 if small else 10)
    return {
        "images_per_second": round(case.batch_size / seconds, 1),
        "times_baseline": round(seconds * 1e3 / ours["step_ms"], 2) if "step_ms" in ours else None,
    }


def goals(found: dict[str, Any]) -> dict[str, bool]:
    """Return which goals the figures of a GPU reach."""
    reached = {}
    for case in CASES:
        ours = found.get(f"step {case.model}", {})
        if "step_ms" in ours:
            reached[f"{case.model}: loss at most 5 % of the step"] = ours["loss_share"] <= 0.05
            reached[f"{case.model}: step at most 2.5 times the floor"] = ours["over_floor"] <= 2.5
            reached[f"{case.model}: memory within 10 % of the forecast"] = abs(ours["memory_over_forecast"] - 1) <= 0.1
        times = found.get(f"baseline {case.model}", {}).get("times_baseline")
        if times is not None:
            reached[f"{case.model}: at least twice the baseline"] = times >= 2
    if "step_ms" in found.get("step yolov7", {}):
        reached["yolov7: at least 500 images a second"] = found["step yolov7"]["images_per_second"] >= 500
    if "data_wait_share" in found.get("data", {}):
        reached["data wait at most 2 %"] = found["data"]["data_wait_share"] <= 0.02
    return reached


def run(device: torch.device, cases: tuple[Case, ...], minutes: float, *, small: bool) -> Report:
    """Do all parts, the most telling ones first."""
    report = Report(minutes)
    report.part("checks", lambda: checks(device, small=small))
    product, copied = ceilings(device, small=small)
    report.found["ceilings"] = {"tflops": float(f"{product / 1e12:.4g}"), "copy_gb_per_second": round(copied / 1e9, 1)}
    for case in cases:
        ours = report.part(f"step {case.model}", lambda c=case: measure_step(c, device, product, copied, small=small))
        report.part(f"baseline {case.model}", lambda c=case, o=ours: measure_baseline(c, device, o or {}, small=small))
    first, loaders = cases[0], 2 if small else min(16, os.cpu_count() or 1)
    report.part("data", lambda: data_wait(first, device, num_loaders=loaders, small=small), needs_seconds=60)
    report.part("suppression", lambda: suppression(device, small=small))
    for case in cases[:2]:
        report.part(f"inference {case.model}", lambda c=case: inference(c, device, small=small), needs_seconds=60)
    if device.type == "cuda":
        for case, kind in itertools.product(cases[:2], ("model", "full")):
            report.part(
                f"step {case.model}, compile {kind}",
                lambda c=case, k=kind: measure_step(replace(c, compile=k), device, product, copied, small=small),
                needs_seconds=100,
            )
        synchronise(device)
        report.found["goals"] = goals(report.found)
    return report


def table(found: dict[str, Any]) -> str:
    """Return the figures as text, a line each."""
    lines = []
    for name, part in found.items():
        if not isinstance(part, dict):
            lines.append(f"{name:28} {part}")
            continue
        for key, value in part.items():
            text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            lines.append(f"{name:28} {key:34} {text}")
    return "\n".join(lines)


def main() -> int:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="time that may be taken")
    parser.add_argument("--models", nargs="+", choices=[case.model for case in CASES], help="models to measure; all")
    parser.add_argument("--small", action="store_true", help="a small run on the CPU")
    parser.add_argument("--json", action="store_true", help="print only JSON")
    options = parser.parse_args()
    if not options.small and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --small runs the script on a CPU")
    device = torch.device("cpu" if options.small else "cuda:0")
    chosen = SMALL if options.small else tuple(case for case in CASES if case.model in (options.models or [case.model]))
    report = run(device, chosen, options.minutes, small=options.small)
    measured = NOT_ON_A_GPU if options.small else "measured on a GPU"
    head: dict[str, Any] = {"measured": measured, "on": str(Environment.of(device))}
    if options.json:
        print(json.dumps(head | report.found, indent=1))
    else:
        print(*head.values(), sep="\n")
        print(table(report.found))
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
