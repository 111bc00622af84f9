"""Inference, batch 1 on a CPU at 640 px: a loaded detector over ONNX Runtime by itself and over other forms.

    python benchmarks/inference.py [--models yolov7-tiny yolov7] [--rounds 10] [--threads 1] [--int8] [--json]

A detector whose package holds its network as ONNX is loaded to predict in ONNX Runtime; without that file, in the
fused form: the deployed form in torch with each activation inside its convolution. ONNX Runtime by itself is given a
graph for this one size and numpy arrays. All compute decoded predictions of the same image; they take turns, and each
is given its best round, in processor time of one thread (with more threads: wall time). `ratio` is the training form's
time over a form's: above 1 it is faster. `difference` is the largest one to the training form's predictions, as a share
of their range. INT8 takes its ranges from one random image: enough for its speed, not for its predictions. (What
deployment gains for every model, on a GPU too, is `deployed_form.py`'s question.)
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from yolofleet.evaluation.detector_package import save_detector
from yolofleet.export.exporter import add_network
from yolofleet.export.onnx_graph import network_to_onnx
from yolofleet.export.quantization import quantize
from yolofleet.export.runtime import load_detector
from yolofleet.export.settings import INPUT_NAME, InputShape
from yolofleet.models import build_model, deploy
from yolofleet.models.modules import lay_channels_innermost

if TYPE_CHECKING:
    from onnx import ModelProto

IMAGE_SIZE = 640
WARM_UPS = 2
SHAPE = InputShape(batch=1, image_size=IMAGE_SIZE, dynamic=False)


def networks(name: str, *, int8: bool) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the forms of a model."""
    torch.manual_seed(0)
    model = build_model(name).eval()
    lay_channels_innermost(model)
    deployed = deploy(model)
    forms: dict[str, Callable[[Tensor], Tensor]] = {"training form": model, "deployed form": deployed}
    with tempfile.TemporaryDirectory(prefix="yolofleet-inference-") as folder:
        classes = [(number, str(number)) for number in range(model.num_classes)]
        package = save_detector(Path(folder), deployed, classes, IMAGE_SIZE)
        forms["fused form"] = load_detector(package).network
        add_network(package)
        forms["loaded detector"] = load_detector(package).network
    graph = network_to_onnx(deployed, SHAPE)
    forms["ONNX Runtime"] = by_itself(graph)
    if int8:
        noise = np.random.default_rng(0).integers(0, 256, (1, 3, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
        forms["ONNX Runtime, INT8"] = by_itself(quantize(graph, noise))
    return forms


def by_itself(graph: ModelProto) -> Callable[[Tensor], Tensor]:
    """Return a graph as ONNX Runtime runs it, without anything of ours but the types."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {INPUT_NAME: images.numpy()})[0])


@torch.inference_mode()
def compared(name: str, rounds: int, *, int8: bool) -> dict[str, Any]:
    """Time the forms of a model in turns."""
    forms = networks(name, int8=int8)
    images = torch.rand(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    taken: dict[str, list[float]] = {label: [] for label in forms}
    answers = {}
    for turn in range(WARM_UPS + rounds):
        for label, form in forms.items():
            start = clock()
            answers[label] = form(images)
            if turn >= WARM_UPS:
                taken[label].append(clock() - start)
    best = {label: min(values) for label, values in taken.items()}
    expected = answers["training form"]
    return {
        "model": name,
        "forms": {
            label: {
                "ratio": round(best["training form"] / seconds, 3),
                "milliseconds": round(seconds * 1e3, 2),
                "difference": float((answers[label] - expected).abs().max() / expected.abs().max()),
            }
            for label, seconds in best.items()
        },
        "loaded_over_onnx_runtime": round(best["loaded detector"] / best["ONNX Runtime"], 3),
        "fused_over_onnx_runtime": round(best["fused form"] / best["ONNX Runtime"], 3),
    }


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["yolov7-tiny", "yolov7"], metavar="NAME")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--int8", action="store_true", help="the quantized network, too")
    parser.add_argument("--json", action="store_true", help="print only JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = []
    for name in options.models:
        results.append(compared(name, options.rounds, int8=options.int8))
        if not options.json:
            print(name)
            for label, row in results[-1]["forms"].items():
                print(
                    f"  {label:20} {row['milliseconds']:9.1f} ms  {row['ratio']:.3f} times as fast as the training "
                    f"form, difference {row['difference']:.1e}",
                    flush=True,
                )
    if options.json:
        print(json.dumps({"threads": options.threads, "models": results}, indent=1))


if __name__ == "__main__":
    main()
