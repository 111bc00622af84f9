"""What `gpu.py` checks before it measures: golden outputs, losses and training steps, and that no step waits."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu_step import NUM_CLASSES, Case, Step, synchronise

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path.insert(0, str(TESTS))  # the golden values and what reads them

from losses.golden_loss import CASES, TAGS, load_case  # noqa: E402
from models.golden_models import Golden, filled_state_dict, tensors_of  # noqa: E402
from yolofleet.losses import DetectionLoss  # noqa: E402
from yolofleet.models import build_model  # noqa: E402
from yolofleet.models.modules import lay_channels_innermost  # noqa: E402
from yolofleet.models.weights import load_official_state_dict  # noqa: E402
from yolofleet.training.loop.update import Precision  # noqa: E402

TOLERANCES = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 1e-2}
"""Of the golden step's total loss, by precision."""


def check_losses(device: torch.device) -> float:
    """Return the largest relative difference of a golden loss on the device."""
    worst = 0.0
    for case in CASES:
        for tag in TAGS:
            if tag == "aux_ota" and not case.startswith("p6"):
                continue
            golden = load_case(case, tag)
            predictions = [level.to(device) for level in golden.predictions]
            found = golden.loss()(predictions, golden.targets, golden.image_size).total.item()
            wanted = float(golden.arrays[f"{tag}/loss"][0])
            worst = max(worst, abs(found - wanted) / max(abs(wanted), 1e-9))
    return _within(worst, 1e-4, "golden losses")


@torch.no_grad()
def check_outputs(name: str, device: torch.device) -> float:
    """Return the largest error of a model's golden outputs on the device, in float32."""
    golden = Golden(name)
    model = build_model(name).eval()
    load_official_state_dict(model, golden.state)
    decoded = model.to(device)(golden.images.to(device)).cpu()
    return _within(golden.error("decoded", decoded), 1e-3, f"golden outputs of {name}")


def check_step(name: str, device: torch.device, precision: str, *, is_compiled: bool) -> float:
    """Return the relative difference of a golden training step's total loss; its gradient must be finite."""
    golden = json.loads((TESTS / "golden" / "train_steps" / f"{name}.json").read_text())
    model = build_model(name, num_classes=NUM_CLASSES)
    load_official_state_dict(model, filled_state_dict(tensors_of(name), golden["gain"]))
    model.to(device).train()
    lay_channels_innermost(model)
    loss = DetectionLoss(
        anchors=model.anchors,
        strides=model.strides,
        num_classes=NUM_CLASSES,
        hyperparameters=golden["hyp"],
        assigner="coarse_to_fine" if model.num_auxiliary_levels else "none",
    )
    draw = np.random.default_rng(golden["input"]["seed"])
    images = torch.from_numpy(draw.random(golden["input"]["shape"]).astype(np.float32)).to(device)
    if is_compiled:
        model.compile()
        loss.compile()
    with Precision(precision, device).context():
        predictions = model(images)
    result = loss(predictions, torch.tensor(golden["targets"]), (images.shape[2], images.shape[3]))
    result.total.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if not bool(torch.nn.utils.get_total_norm(gradients).isfinite()):
        raise RuntimeError(f"the golden step of {name} in {precision} has a gradient that is not finite")
    difference = abs(result.total.item() - golden["total"]) / golden["total"]
    return _within(difference, TOLERANCES[precision], f"golden step of {name} in {precision}")


def check_no_wait(case: Case, device: torch.device) -> str:
    """Do some steps in torch's sync debug mode, in which an operation that waits is an error."""
    step = Step.of(case, device)
    for _ in range(3):
        step()
    if device.type != "cuda":
        step.finish()
        return "no GPU: proven by tests/training/test_no_host_wait.py"
    synchronise(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    step.finish()
    return "3 steps without a wait"


def checks(device: torch.device, *, small: bool) -> dict[str, Any]:
    """Run all checks; raises at the first that fails."""
    if loaded := {"ray", "mlflow"} & sys.modules.keys():
        raise RuntimeError(f"{', '.join(sorted(loaded))} was imported, which a training step does not need")
    precisions = ("fp32",) if small else tuple(TOLERANCES)
    names = ("yolov7-tiny",) if small else ("yolov7-tiny", "yolov7")
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        found: dict[str, Any] = {"losses": check_losses(device)}
        for name in names:
            found[f"outputs {name}"] = check_outputs(name, device)
            for precision in precisions:
                found[f"step {name} {precision}"] = check_step(name, device, precision, is_compiled=False)
        if device.type == "cuda":
            for precision in precisions:
                compiled = check_step("yolov7-tiny", device, precision, is_compiled=True)
                found[f"step yolov7-tiny {precision} compiled"] = compiled
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
    side, precision = (64, "fp32") if small else (320, "bf16")
    case = Case(model="yolov7-tiny", image_size=side, batch_size=2, precision=precision)
    return found | {"no wait": check_no_wait(case, device)}


def _within(difference: float, tolerance: float, what: str) -> float:
    if not difference <= tolerance:
        raise RuntimeError(f"{what}: the difference is {difference:.2g}, and {tolerance:.0e} is allowed")
    return difference
