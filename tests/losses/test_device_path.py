"""What runs on an accelerator, tried on a CPU: the same results from tables of fixed shape, and nothing read back.

On a CPU the tables are shortened to the slots in use. Telling the loss that tensors are not on a CPU makes it keep
them in full; a dispatch mode then fails at every operation that would make the host wait.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from losses.golden_loss import load_case
from losses.scenes import make_loss, make_predictions, make_targets, use_layout
from yolofleet.losses.boxes import read_boxes

SIZE = (96, 128)
ASSIGNERS = ["none", "independent", "lead", "coarse_to_fine"]
WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique_consecutive"}


class NoWaiting(TorchDispatchMode):
    """Fails where an accelerator would be waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        assert name not in WAITING, f"{name} waits for the device"
        if name in {"aten::index", "aten::index_put_"}:
            masks = [index for index in args[1] if index is not None and index.dtype == torch.bool]
            assert not masks, f"{name} by a mask waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", ["padded device", "shared device", "compiled"])
@pytest.mark.parametrize("matching", ["dynamic", "fixed"])
@pytest.mark.parametrize("assigner", ASSIGNERS)
@pytest.mark.parametrize("number", [0, 1, 30])
def test_tables_of_fixed_shape_give_the_same_loss(
    monkeypatch: pytest.MonkeyPatch, assigner: str, matching: str, number: int, layout: str
) -> None:
    targets = make_targets(1, number)
    if number > 3 and layout == "shared device":
        targets[1, 4] = 0.0
        targets[2, 2] = torch.nan
    settings = {"assigner": assigner, "matching": matching, "constraint": True, "class_weights": [1, 2, 3, 4, 5]}

    def run() -> tuple[Any, list[torch.Tensor], list[torch.Tensor]]:
        predictions = [level.requires_grad_() for level in make_predictions(1, image_size=SIZE, heads=2)]
        result = make_loss(**settings)(predictions, targets, SIZE)
        result.total.backward()
        used = [level.grad for level in predictions if level.grad is not None]
        return result, used, make_loss(**settings).assign(predictions, targets, SIZE)

    wanted, wanted_gradients, wanted_positives = run()
    use_layout(monkeypatch, layout)
    found, gradients, positives = run()
    torch.testing.assert_close(found.total, wanted.total, rtol=1e-5, atol=0)
    assert found.num_positives == wanted.num_positives
    for one, other in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
    for one, other in zip(positives, wanted_positives, strict=True):
        assert sorted(map(tuple, one.tolist())) == sorted(map(tuple, other.tolist()))


@pytest.mark.parametrize("assigner", ASSIGNERS)
def test_nothing_waits_for_the_device(monkeypatch: pytest.MonkeyPatch, assigner: str) -> None:
    use_layout(monkeypatch, "shared device")
    predictions = [level.requires_grad_() for level in make_predictions(2, image_size=SIZE, heads=2)]
    loss = make_loss(assigner=assigner, constraint=True, class_weights=[1, 2, 3, 4, 5])
    targets = make_targets(2, 30)
    with NoWaiting():
        loss(predictions, targets, SIZE).total.backward()


@pytest.mark.parametrize("assigner", ASSIGNERS)
def test_nothing_that_is_compiled_waits_for_the_device(monkeypatch: pytest.MonkeyPatch, assigner: str) -> None:
    use_layout(monkeypatch, "compiled")
    predictions = [level.requires_grad_() for level in make_predictions(2, image_size=SIZE, heads=2)]
    loss = make_loss(assigner=assigner, constraint=True)
    scene = loss._make_scene(predictions, make_targets(2, 30), SIZE)
    with NoWaiting():
        loss._compute(scene, None).total.backward()


@pytest.mark.parametrize(("most", "room"), [(0, 8), (1, 8), (8, 8), (9, 16), (256, 256), (257, None)])
def test_boxes_are_padded_to_a_power_of_two_an_image(most: int, room: int | None) -> None:
    targets = make_targets(3, most + 5, batch_size=1)
    targets[:most, 0], targets[most:, 0] = 2, 1
    targets = targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))]
    boxes = read_boxes(targets, 3, 5, torch.float32, keep_degenerate=False)
    padded = boxes.padded(3)
    assert (None if padded is None else padded.per_image) == (room if most else 8)
    if padded is not None:
        assert padded.image.tolist() == [image for image in range(3) for _ in range(padded.per_image or 0)]
        for name in ("image", "label", "xywh", "row"):
            torch.testing.assert_close(getattr(padded, name)[padded.alive], getattr(boxes, name))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "tag"), [("p5_crowd", "ota"), ("p5_basic", "plain"), ("p5_nc1", "ota"), ("p6_basic", "aux_ota")]
)
def test_the_compiled_loss_is_the_plain_one(case: str, tag: str) -> None:
    golden = load_case(case, tag)
    found = []
    for is_compiled in (False, True):
        loss, predictions = golden.loss(), [level.requires_grad_() for level in golden.predictions]
        if is_compiled:
            torch._dynamo.reset()
            counters.clear()
            loss.compile(backend="aot_eager", dynamic=False)
        result = loss(predictions, golden.targets, golden.image_size)
        result.total.backward()
        found.append((result.total, *[level.grad for level in predictions]))
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("targets_on", ["cpu", "cuda"])
@pytest.mark.parametrize("assigner", ASSIGNERS)
def test_nothing_waits_for_a_gpu(assigner: str, targets_on: str) -> None:
    host = make_predictions(2, image_size=SIZE, heads=2)
    predictions = [level.cuda().requires_grad_() for level in host]
    targets = make_targets(2, 30)
    loss = make_loss(assigner=assigner)
    wanted = loss([level.clone() for level in host], targets, SIZE)
    moved = targets.to(targets_on)
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = loss(predictions, moved, SIZE)
        result.total.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(result.total.cpu(), wanted.total, rtol=1e-4, atol=0)
