"""A model's cost from its block table against counting a build on the meta device, for every model, in the same run.

    python benchmarks/model_profile.py [--models yolov7 yolov7-e6e] [--rounds 20] [--json]

The peer builds the model on the meta device, which allocates nothing either, passes images through it and counts what
its convolutions do; both give the same parameters and GFLOPs, or this stops. Processor time, the best of the rounds;
``ratio`` is the peer's time over the profile's.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from yolofleet.models import build_model
from yolofleet.models.profile import profile
from yolofleet.models.zoo import zoo_names, zoo_table

PEER_ROUNDS = 2


def by_profile(name: str) -> tuple[int, float]:
    """Return parameters and GFLOPs of the training form by shape arithmetic."""
    found = profile(zoo_table(name))
    return found.parameters, found.gflops


def by_meta_build(name: str) -> tuple[int, float]:
    """Return the same from a build on the meta device."""
    macs = 0

    def count(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        nonlocal macs
        macs += module.get_parameter("weight").numel() * output.shape[-2] * output.shape[-1]

    size = zoo_table(name).image_size
    with torch.device("meta"), torch.no_grad():
        model = build_model(name)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(count)
        model.raw(torch.empty(1, 3, size, size))
    return sum(parameter.numel() for parameter in model.parameters()), round(2 * macs / 1e9, 4)


def best_seconds(work: Callable[[str], tuple[int, float]], name: str, rounds: int) -> tuple[float, tuple[int, float]]:
    """Return the shortest processor time of a call over some rounds, and its result."""
    result = work(name)
    times = []
    for _ in range(rounds):
        start = time.process_time()
        result = work(name)
        times.append(time.process_time() - start)
    return min(times), result


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(zoo_names()), metavar="NAME", help="models to measure; all")
    parser.add_argument("--rounds", type=int, default=20, help="measured rounds of the profile")
    parser.add_argument("--json", action="store_true", help="print only JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in options.models:
        profile_seconds, found = best_seconds(by_profile, name, options.rounds)
        peer_seconds, expected = best_seconds(by_meta_build, name, PEER_ROUNDS)
        if found != expected:
            raise SystemExit(f"{name}: the profile says {found}, the build {expected}")
        ratio = peer_seconds / profile_seconds
        rows.append({"model": name, "profile_ms": round(profile_seconds * 1e3, 3), "ratio": round(ratio, 1)})
        if not options.json:
            print(
                f"{name:18} {profile_seconds * 1e3:6.2f} ms, a build on the meta device takes {ratio:.0f} times as long"
            )
    if options.json:
        print(json.dumps({"smallest_ratio": min(float(row["ratio"]) for row in rows), "models": rows}, indent=1))


if __name__ == "__main__":
    main()
