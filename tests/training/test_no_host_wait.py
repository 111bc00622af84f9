"""A step reads nothing back from the device that it runs on, mixes no devices, and computes what it does on a CPU.

The device is none: its tensors say that they are elsewhere, hold their values on the CPU, and fail at every operation
that would make the host wait for an accelerator, or that an accelerator would refuse.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from yolofleet.data.micro_batch import MicroBatch
from yolofleet.losses import LossResult
from yolofleet.losses.levels import make_levels
from yolofleet.models import build_model
from yolofleet.models.modules import lay_channels_innermost
from yolofleet.specs.job import JobSpec
from yolofleet.specs.stop import StopSpec
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.evaluation.early_stop import EarlyStopping
from yolofleet.training.loop import train as loop
from yolofleet.training.loop.non_finite import FiniteGuard
from yolofleet.training.loop.pace import Pace
from yolofleet.training.loop.progress import LossTerms
from yolofleet.training.loop.trainer import Learner, Meters, Trainer, build_trainer
from yolofleet.training.loop.update import MicroBatchStatistics, Precision, WeightAverage, build_optimizer
from yolofleet.training.loop.worker_group import WorkerGroup
from yolofleet.training.setup.preflight import check_job
from yolofleet.training.setup.preparation import run_table
from yolofleet.training.strategies.strategy import Replicated

CPU, ELSEWHERE = torch.device("cpu"), torch.device("meta")
NUM_STEPS = 5
SPOILT = 5
"""The call of the loss, of two a step, that gives NaN."""
WAITING = {"_local_scalar_dense", "is_nonzero", "item", "equal", "nonzero", "masked_select", "unique", "_unique2"}


class DeviceTensor(Tensor):
    """A tensor that lies elsewhere, with its values."""

    values: Tensor

    @staticmethod
    def __new__(cls: Any, values: Tensor) -> Any:
        made = Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), dtype=values.dtype, device=ELSEWHERE
        )
        made.values = values
        return made

    def __deepcopy__(self, memo: Any) -> Any:
        copied = DeviceTensor(self.values.clone())
        return nn.Parameter(copied, self.requires_grad) if isinstance(self, nn.Parameter) else copied

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of the test's steps")


class Device(TorchDispatchMode):
    """Computes with device tensors, and counts copies to the host."""

    num_readings = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.removeprefix("aten::")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
        to_device = kwargs.get("device") == ELSEWHERE or (bool(here) and kwargs.get("device") != CPU)
        if here:
            assert name not in WAITING, f"{name} waits for the device"
            if name in {"index", "index_put", "index_put_"}:
                masks = [index for index in args[1] if index is not None and index.dtype == torch.bool]
                assert not masks, f"{name} by a mask waits for the device"
            if name == "_to_copy":
                assert to_device or kwargs.get("non_blocking"), "a copy to the host waits for the device"
                self.num_readings += not to_device
            elif name == "copy_":
                assert isinstance(args[0], DeviceTensor), "a copy to the host waits for the device"
            else:
                strangers = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor) and tensor.dim()]
                assert not strangers, f"{name} of tensors of two devices"
        if kwargs.get("device") == ELSEWHERE:
            kwargs["device"] = CPU
        args, kwargs = tree_map_only(DeviceTensor, lambda tensor: tensor.values, (args, kwargs))
        found = func(*args, **kwargs)
        if not to_device:
            return found
        known = {id(tensor.values): tensor for tensor in here}  # what an operation in place returns
        return tree_map_only(
            Tensor, lambda tensor: known[id(tensor)] if id(tensor) in known else DeviceTensor(tensor), found
        )


def moved(model: nn.Module) -> None:
    """Move a model to the device."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(DeviceTensor(parameter.detach())))
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = DeviceTensor(buffer)


def values_of(tensor: Tensor) -> Tensor:
    return tensor.values if isinstance(tensor, DeviceTensor) else tensor.detach()


class SpoiltLoss:
    """The loss, whose gradient is NaN in one call."""

    def __init__(self, loss: Any) -> None:
        self.loss, self.calls = loss, 0

    def __call__(self, *arguments: Any) -> LossResult:
        result = self.loss(*arguments)
        self.calls += 1
        return replace(result, total=result.total * torch.nan) if self.calls - 1 == SPOILT else result


def trainer_on(device: torch.device, built: Trainer, job: JobSpec) -> Trainer:
    """Return the trainer with what learns anew, on a device."""
    torch.manual_seed(0)
    group = WorkerGroup(device=device)
    model = build_model(run_table(job, built.run), num_classes=3).train()
    lay_channels_innermost(model)
    if device == ELSEWHERE:
        moved(model)
    hyperparameters, precision = job.resolved_hyperparameters(), Precision(job.precision, device)
    optimizer = build_optimizer(model, hyperparameters, job.global_batch_size)
    statistics = MicroBatchStatistics(model)
    average = WeightAverage(model, hyperparameters, statistics.running)
    loss: Any = SpoiltLoss(built.learner.loss)
    strategy = Replicated(model, optimizer, precision, group)
    return replace(
        built,
        group=group,
        stopping=EarlyStopping(StopSpec(max_hours=1000.0), built.run, group),
        learner=Learner(model, average, loss, precision, statistics, strategy),
        state=replace(built.state),
        guard=FiniteGuard(group, job.most_non_finite_steps),
        meters=Meters(LossTerms(group), Pace(group), None),
    )


def state_of(trainer: Trainer) -> dict[str, Tensor]:
    """Return weights, average and moments."""
    learner = trainer.learner
    found = dict(learner.model.state_dict())
    found |= {f"average.{name}": tensor for name, tensor in learner.average.model.state_dict().items()}
    found |= {f"moments.{name}": tensor for name, tensor in learner.strategy.moments().items()}
    return {name: values_of(tensor) for name, tensor in found.items()}


def batches_of(built: Trainer, wrap: Callable[[Tensor], Tensor]) -> Iterator[MicroBatch]:
    stream = built.data.stream.micro_batches(0, list(built.data.owned))
    with contextlib.closing(stream):  # type: ignore[type-var]
        for batch in stream:
            yield replace(batch, images=wrap(batch.images))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_step_waits_for_no_device_and_computes_the_same(
    precision: str, optimizer: str, small_job: Callable[..., JobSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # knows no such device
    for module in ("sgd", "adam"):
        optimizers = sys.modules[f"torch.optim.{module}"]
        monkeypatch.setattr(optimizers, "_device_dtype_check_for_fused", lambda *_, **__: None)
    hyperparameters = {"optimizer": optimizer, "lr0": 1e-3}
    job = small_job(precision=precision, hyperparameters=hyperparameters, log_every_steps=2, record_samples=False)
    augment_on = "device" if optimizer == "sgd" else "host"
    job = job.model_copy(update={"data": job.data.model_copy(update={"augment_on": augment_on})})
    ready = check_job(job)
    assert isinstance(ready.run, RunDirectory)
    built = build_trainer(job, ready.run, WorkerGroup())
    ends, reported = {}, {}
    for device in (CPU, ELSEWHERE):
        mode = Device() if device == ELSEWHERE else contextlib.nullcontext()
        rows: list[dict[str, Any]] = []
        with mode:
            trainer = trainer_on(device, built, job)
            batches = batches_of(built, DeviceTensor if device == ELSEWHERE else lambda images: images)
            for step in range(NUM_STEPS):
                loop._do_step(trainer, batches, rows.append)
                assert len(rows) == step // 2, "a row is written when the step after it has been queued"
            batches.close()  # type: ignore[attr-defined]
            if device == ELSEWHERE:
                assert mode.num_readings == NUM_STEPS  # type: ignore[union-attr]
            loop._settle(trainer, rows.append)
            ends[device], reported[device] = state_of(trainer), rows
        assert (trainer.state.step, trainer.state.num_updates, trainer.state.non_finite_steps) == (5, 4, 1)
    make_levels.cache_clear()
    assert [row["step"] for row in reported[CPU]] == [2, 4]
    for one, other in zip(reported[CPU], reported[ELSEWHERE], strict=True):
        timeless = [name for name in one if not name.endswith(("_share", "_per_second", "_utilization"))]
        assert one.keys() == other.keys()
        assert [one[name] for name in timeless] == pytest.approx(
            [other[name] for name in timeless], rel=1e-4, nan_ok=True
        )
    tolerance = 1e-5 if optimizer == "sgd" else 1e-2  # Adam moves as far for a gradient that is rounding alone
    for name, tensor in ends[CPU].items():
        assert tensor.isfinite().all(), name
        torch.testing.assert_close(ends[ELSEWHERE][name], tensor, rtol=1e-3, atol=tolerance, msg=name)
