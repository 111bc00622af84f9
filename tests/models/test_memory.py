"""The memory forecast against the tensors that a real step saves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from yolofleet.core.errors import UserError
from yolofleet.models import build_model
from yolofleet.models.memory import MemoryUse, activation_bytes, recomputed_blocks, training_memory
from yolofleet.models.memory_saving import MemorySaving
from yolofleet.models.wiring import wire
from yolofleet.models.zoo import resolve
from yolofleet.specs.model import ModelChoice

NARROW = {"transition_width": 0.25, "hidden_width": 0.25}
CHOICES = [
    ModelChoice(name="yolov7-tiny"),
    ModelChoice(name="yolov7", **NARROW),
    ModelChoice(name="yolov7", **NARROW, reparameterize="planned"),
    ModelChoice(name="yolov7-w6", **NARROW),
    ModelChoice(name="yolov7-e6e", **NARROW),
    ModelChoice(name="yolor-csp", transition_width=0.25),
    ModelChoice(name="x50-csp", transition_width=0.25),
    ModelChoice(name="yolov4", transition_width=0.25),
    ModelChoice(name="yolov4-tiny-3l"),
    ModelChoice(name="yolor-u5", transition_width=0.25),
    ModelChoice(name="yolov3-spp", transition_width=0.25),
]


def saved_bytes(model: nn.Module, *inputs: Tensor, dtype: torch.dtype, left_out: tuple[Tensor, ...] = ()) -> int:
    """Bytes of the storages that a forward pass saves for the backward pass, parameters and buffers left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.state_dict().values(), *left_out)}
    saved: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
    ):
        raw = model(*inputs)
    assert all(level.requires_grad for level in raw)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: f"{choice.name}-{choice.reparameterize}")
def test_forecast_is_what_a_real_step_saves(choice: ModelChoice, precision: str) -> None:
    graph = wire(resolve(choice))
    side = 2 * graph.max_stride
    model = build_model(graph.table, 20).train()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    real = saved_bytes(model, torch.rand(2, 3, side, 3 * side // 2), dtype=dtype)
    forecast = activation_bytes(
        graph, num_classes=20, size=(side, 3 * side // 2), micro_batch_size=2, precision=precision
    )
    assert forecast == pytest.approx(real, rel=0.1)
    if precision == "fp32":
        assert forecast == pytest.approx(real, rel=0.01)


@pytest.mark.parametrize("use", ["balanced", "small"])
@pytest.mark.parametrize("choice", [CHOICES[0], CHOICES[1], CHOICES[4], CHOICES[7]], ids=lambda choice: choice.name)
def test_so_it_is_where_blocks_are_computed_again(choice: ModelChoice, use: MemoryUse) -> None:
    """The pass itself keeps less; the backward pass has the inside of one block at a time besides."""
    graph = wire(resolve(choice))
    side = 2 * graph.max_stride
    model = build_model(graph.table, 20).train()
    model.memory_saving = MemorySaving(recomputed_blocks(graph, use))
    inputs: dict[str, tuple[Tensor, ...]] = {}

    def keep(name: str, features: tuple[Tensor, ...]) -> None:
        inputs[name] = tuple(feature.detach().requires_grad_() for feature in features)

    for name, block in model.blocks.items():
        block.register_forward_pre_hook(lambda module, features, name=name: keep(name, features))
    kept = saved_bytes(model, torch.rand(2, 3, side, side), dtype=torch.float32)
    for block in model.blocks.values():
        block._forward_pre_hooks.clear()
    inside = [
        saved_bytes(model.blocks[name], *inputs[name], dtype=torch.float32, left_out=inputs[name])
        for name in model.memory_saving.blocks
    ]
    sizes = {"num_classes": 20, "size": (side, side), "micro_batch_size": 2}
    assert activation_bytes(graph, **sizes, memory=use) == pytest.approx(kept + max(inside), rel=0.02)
    assert activation_bytes(graph, **sizes, memory="small") < activation_bytes(graph, **sizes, memory="balanced")
    assert activation_bytes(graph, **sizes, memory="balanced") < activation_bytes(graph, **sizes)


def test_strategies_share_what_they_say() -> None:
    graph = wire(resolve("yolov7-tiny"))
    memory = {
        strategy: training_memory(
            graph, num_classes=80, size=(640, 640), micro_batch_size=4, strategy=strategy, num_workers=4
        )
        for strategy in ("ddp", "zero1", "zero2")
    }
    full = memory["ddp"]
    assert full.weights == full.gradients == full.momentum == full.average == 4 * 6_228_762
    assert memory["zero1"].momentum == -(-full.momentum // 4)
    assert memory["zero1"].gradients == full.gradients
    assert memory["zero2"].gradients == memory["zero2"].momentum == memory["zero1"].momentum
    assert (full.exchange, memory["zero1"].exchange) == (full.gradients, memory["zero1"].momentum)
    assert memory["zero2"].exchange == memory["zero1"].exchange + full.weights, "all gradients fit one bucket"
    assert full.total > memory["zero2"].total > memory["zero1"].total, "a small model gains nothing more by sharing"
    assert {entry.activations for entry in memory.values()} == {full.activations}
    adam = training_memory(graph, num_classes=80, size=(640, 640), micro_batch_size=4, moments=2)
    alone = training_memory(graph, num_classes=80, size=(640, 640), micro_batch_size=4)
    assert (adam.momentum, adam.total) == (2 * alone.momentum, alone.total + alone.momentum)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="image size 100 x 96 must be a multiple of its largest stride, 32"):
        activation_bytes(wire(resolve("yolov7-tiny")), num_classes=1, size=(100, 96), micro_batch_size=1)
