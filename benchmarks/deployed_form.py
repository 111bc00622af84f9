"""The deployed form against the training form at inference, for every model: batch 1, 640 px, in the same run.

    python benchmarks/deployed_form.py [--models yolov7 yolov7-tiny] [--rounds 5] [--device cpu] [--json]

Both forms are in evaluation mode and decode their predictions; the training form leaves its auxiliary head out already,
so what differs is batch norm, RepConv and implicit knowledge. The forms take turns, and each is given its best round:
processor time of one thread on a CPU, time between events on a GPU. The difference between what the two put out, as a
share of its range, is part of the result.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor

from yolofleet.models import build_model, deploy
from yolofleet.models.modules import lay_channels_innermost
from yolofleet.models.zoo import zoo_names

IMAGE_SIZE = 640
WARM_UPS = 2


def seconds_on_cpu(work: Callable[[], Tensor]) -> float:
    """Return the processor time of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def seconds_on_gpu(work: Callable[[], Tensor]) -> float:
    """Return the time between two events around a call."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


@torch.inference_mode()
def compared(name: str, rounds: int, device: str) -> dict[str, float | str]:
    """Time the two forms of a model.

    Returns:
        ``ratio`` (training over deployed: above 1 the deployed form is faster), the two times in milliseconds, and the
        largest difference of their decoded predictions as a share of their range.
    """
    torch.manual_seed(0)
    model = build_model(name).eval().to(device)
    lay_channels_innermost(model)
    deployed = deploy(model)
    images = torch.rand(1, 3, IMAGE_SIZE, IMAGE_SIZE, device=device)
    seconds = seconds_on_cpu if device == "cpu" else seconds_on_gpu
    forms: list[Callable[[], Tensor]] = [lambda: model(images), lambda: deployed(images)]
    want, got = (form() for form in forms)
    times: list[list[float]] = [[], []]
    for turn in range(WARM_UPS + rounds):
        for form, taken in zip(forms, times, strict=True):
            value = seconds(form)
            if turn >= WARM_UPS:
                taken.append(value)
    training, folded = (min(taken) for taken in times)
    return {
        "model": name,
        "ratio": round(training / folded, 3),
        "training_ms": round(training * 1e3, 2),
        "deployed_ms": round(folded * 1e3, 2),
        "difference": float((want - got).abs().max() / want.abs().max()),
    }


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(zoo_names()), metavar="NAME", help="models to measure; all")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds of each form")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", action="store_true", help="print only JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for name in options.models:
        results.append(compared(name, options.rounds, options.device))
        if not options.json:
            row = results[-1]
            print(
                f"{row['model']:18} deployed form {row['ratio']:.3f} times as fast "
                f"({row['training_ms']:.1f} -> {row['deployed_ms']:.1f} ms), difference {row['difference']:.1e}",
                flush=True,
            )
    smallest = min(float(row["ratio"]) for row in results)
    if options.json:
        print(json.dumps({"smallest_ratio": smallest, "device": options.device, "models": results}, indent=1))
    else:
        print(f"smallest ratio: {smallest:.3f}")


if __name__ == "__main__":
    main()
