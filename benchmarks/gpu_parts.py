"""The parts of `gpu.py` beside the step: inference, suppression, and the wait for data."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpu_step import NUM_CLASSES, Case, Step, seconds_per_call, synchronise
from yolofleet.data.loader import on_device
from yolofleet.evaluation.inference_form import half_precision
from yolofleet.evaluation.nms import non_maximum_suppression
from yolofleet.models import build_model, deploy
from yolofleet.models.modules import lay_channels_innermost
from yolofleet.models.network import Network


def inference(case: Case, device: torch.device, *, small: bool) -> dict[str, Any]:
    """Return images a second of the deployed form: torch, compiled, and in ONNX Runtime on the GPU if that is there."""
    torch.manual_seed(0)
    model = build_model(case.model, NUM_CLASSES).eval()
    lay_channels_innermost(model)
    deployed = deploy(model)
    network = (half_precision(deployed) if device.type == "cuda" else deployed).to(device).eval()
    kind = torch.float16 if device.type == "cuda" else torch.float32
    forms: dict[str, Callable[[Tensor], object]] = {"torch": network}
    if not small:
        forms["compiled"] = torch.compile(network)
    found: dict[str, Any] = {}
    for batch_size in (1, 2 if small else 32):
        images = torch.rand(batch_size, 3, case.image_size, case.image_size, device=device, dtype=kind)
        images = images.contiguous(memory_format=torch.channels_last)
        for name, form in forms.items():
            with torch.inference_mode():
                passed = partial(form, images)
                seconds = seconds_per_call(passed, device, warm_up=2 if small else 5, rounds=2 if small else 30)
            found[f"{name} b{batch_size}"] = round(batch_size / seconds, 1)
        found[f"onnxruntime b{batch_size}"] = _in_onnxruntime(deployed, images, small=small)
    return found


def _in_onnxruntime(deployed: Network, images: Tensor, *, small: bool) -> float | str:
    try:
        import onnxruntime

        from yolofleet.export.onnx_graph import network_to_onnx
        from yolofleet.export.settings import INPUT_NAME, InputShape
    except ImportError as error:
        return f"not measured: {error}"
    provider = "CUDAExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        return f"not measured: this onnxruntime has no {provider}"
    shape = InputShape(batch=images.shape[0], image_size=images.shape[2], dynamic=False)
    graph = network_to_onnx(deployed.cpu(), shape).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=[provider])
    given = onnxruntime.OrtValue.ortvalue_from_numpy(images.float().cpu().numpy(), "cuda", 0)
    binding = session.io_binding()
    binding.bind_ortvalue_input(INPUT_NAME, given)
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda")
    rounds = 2 if small else 30
    seconds = seconds_per_call(lambda: session.run_with_iobinding(binding), images.device, warm_up=3, rounds=rounds)
    return round(images.shape[0] / seconds, 1)


def suppression(device: torch.device, *, small: bool) -> dict[str, float]:
    """Return milliseconds an image of the step from decoded predictions to detections, as an evaluation does it."""
    draw = torch.Generator().manual_seed(0)
    number, batch_size = (2_000, 2) if small else (25_200, 32)
    boxes = torch.rand(batch_size, number, 4, generator=draw) * torch.tensor([640.0, 640.0, 100.0, 100.0])
    scores = torch.rand(batch_size, number, 1 + NUM_CLASSES, generator=draw) ** 8
    decoded = torch.cat([boxes, scores], 2).to(device)
    found = {}
    for confidence in (0.001, 0.25):
        seconds = seconds_per_call(
            lambda limit=confidence: non_maximum_suppression(decoded, confidence=limit, iou=0.65),
            device,
            warm_up=1,
            rounds=1 if small else 5,
        )
        found[f"confidence {confidence}"] = round(seconds * 1e3 / batch_size, 3)
    return found


def data_wait(case: Case, device: torch.device, *, num_loaders: int, small: bool) -> dict[str, Any]:
    """Return the share of time that steps wait for data, read from drawn shards with the published augmentation."""
    try:
        from yolofleet.data.build import build_dataset
        from yolofleet.data.build_plan import BuildOptions
        from yolofleet.data.coco import parse_coco
        from yolofleet.data.dataset import ShardDataset
        from yolofleet.data.problems import ProblemLog
        from yolofleet.data.stream import TrainingStream
        from yolofleet.data.synth import write_synthetic_dataset
        from yolofleet.storage import open_storage
    except ImportError as error:
        return {"not measured": str(error)}
    with tempfile.TemporaryDirectory(prefix="yolofleet-gpu-") as name:
        folder, problems = Path(name), ProblemLog()
        write_synthetic_dataset(folder, 12 if small else 200, seed=0, image_size=case.image_size)
        source = parse_coco((folder / "instances.json").read_bytes(), "instances.json", problems)
        images, shards = open_storage(folder / "images"), open_storage(folder / "shards")
        build_dataset(source, images, shards, BuildOptions(), problems)
        stream = TrainingStream(
            ShardDataset(folder / "shards"),
            seed=0,
            image_size=case.image_size,
            global_batch_size=case.batch_size,
            micro_batch_size=case.batch_size,
            augmentation=case.job().resolved_hyperparameters(),
            num_threads=num_loaders,
            loader="threads" if small else "processes",
        )
        batches = stream.micro_batches(0, [0])
        try:
            step = Step.of(case, device, on_device(batches, device))
            for _ in range(1 if small else 10):
                step()
            synchronise(device)
            step.trainer.meters.pace.begin()
            for _ in range(2 if small else 40):
                step()
            synchronise(device)
            step.trainer.meters.pace.begin()
            taken, _ = step.trainer.meters.pace.take()
        finally:
            batches.close()  # type: ignore[attr-defined]
    return {
        "loaders": num_loaders,
        "images_per_second": round(taken["samples_per_second"], 1),
        "data_wait_share": round(taken["data_wait_share"], 4),
    }
