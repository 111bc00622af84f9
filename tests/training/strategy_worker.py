"""One of two workers that train the same model under every strategy, and write down what came out."""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from yolofleet.models import build_model
from yolofleet.models.modules import lay_channels_innermost
from yolofleet.specs.hyperparameters import merged
from yolofleet.specs.job import JobSpec
from yolofleet.training.loop.update import Precision, build_optimizer, load_moment_state, moment_prefixes
from yolofleet.training.loop.worker_group import WorkerGroup
from yolofleet.training.strategies.strategy import Strategy, build_strategy

NUM_STEPS = 20
MICRO_BATCHES_PER_WORKER = 2


def job_of(strategy: str) -> JobSpec:
    document = {"name": "x", "model": {"name": "yolov7-tiny"}, "data": {"train": "a", "val": "b"}, "strategy": strategy}
    return JobSpec.parse(document | {"cluster": {"workers": 2}}, source="job")


def smooth_network() -> nn.Module:
    """Return a network in which rounding errors stay as small as they are."""
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.SiLU(),
        nn.Conv2d(16, 33, 3, bias=False),  # odd sizes, so that pieces end within a kernel
        nn.BatchNorm2d(33),
        nn.SiLU(),
        nn.Conv2d(33, 5, 1),
    )
    lay_channels_innermost(network)
    return network


def start(
    model: nn.Module, moments: dict[str, torch.Tensor], strategy: str, group: WorkerGroup, optimizer_name: str
) -> Strategy:
    optimizer = build_optimizer(model, merged("tiny", {"optimizer": optimizer_name}), 16)
    load_moment_state(model, optimizer, moments, num_updates=NUM_STEPS // 2 - 1)  # one of those steps was skipped
    assert not moments or moments.keys() == {
        prefix + name for name, _ in model.named_parameters() for prefix in moment_prefixes(optimizer).values()
    }
    return build_strategy(job_of(strategy), model, optimizer, Precision("fp32", group.device), group)


def train(strategy: Strategy, group: WorkerGroup, steps: range, spoilt_step: int) -> list[float]:
    """Return the loss of each step, summed over all micro-batches."""
    losses = []
    for step in steps:
        for found in strategy.optimizer.param_groups:
            found["lr"] = 0.01 if "momentum" in found else 0.001
        total = torch.zeros(())
        for index in range(MICRO_BATCHES_PER_WORKER):
            last = index == MICRO_BATCHES_PER_WORKER - 1
            generator = torch.Generator().manual_seed(1000 * step + 10 * group.rank + index)
            images = torch.rand(4, 3, 32, 32, generator=generator)
            with strategy.accumulating(last):
                predictions = strategy.network(images)
            loss = (predictions - 1).pow(2).mean()
            if step == spoilt_step and group.rank == 1 and last:
                loss = loss * float("nan")
            with strategy.accumulating(last):
                strategy.backward(loss)
            total += loss.detach()
        strategy.step(strategy.gradient_norm().isfinite())
        group.sum(total)
        losses.append(float(total))
    return losses


def first_norm(strategy_name: str, group: WorkerGroup) -> float:
    """Return the gradient's norm in the first step of a network whose gradient jumps: other rounding would show."""
    torch.manual_seed(0)
    model = build_model("yolov7-tiny", num_classes=3).train()
    lay_channels_innermost(model)
    strategy = start(model, {}, strategy_name, group, "sgd")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(group.rank))
    with strategy.accumulating(True):
        loss = torch.stack([level.square().mean() for level in strategy.network(images)]).sum()
    with strategy.accumulating(True):
        strategy.backward(loss)
    return float(strategy.gradient_norm())


def main(out: Path, optimizer: str) -> None:
    dist.init_process_group("gloo")
    group = WorkerGroup(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    torch.manual_seed(0)
    first = smooth_network()
    found: dict[str, object] = {}
    ends: dict[str, dict[str, torch.Tensor]] = {}
    for name in ("ddp", "zero1", "zero2", "zero2-ddp", "ddp-zero1"):
        model = copy.deepcopy(first)
        before, _, after = name.partition("-")
        strategy = start(model, {}, before, group, optimizer)
        half = NUM_STEPS // 2 if after else NUM_STEPS
        losses = train(strategy, group, range(half), spoilt_step=5)
        moments = {key: tensor.clone() for key, tensor in strategy.moments().items()}
        if after:
            resumed = copy.deepcopy(first)
            resumed.load_state_dict(model.state_dict())
            strategy = start(resumed, moments, after, group, optimizer)
            losses += train(strategy, group, range(half, NUM_STEPS), spoilt_step=5)
            model, moments = resumed, strategy.moments()
        found[name] = losses
        ends[name] = {key: tensor.detach().clone() for key, tensor in model.named_parameters()} | {
            f"moments of {key}": tensor for key, tensor in moments.items()
        }
    norms = {name: first_norm(name, group) for name in ("ddp", "zero1", "zero2")}
    if group.is_first:
        distances = {
            name: max(float((tensor - ends["ddp"][key]).abs().max()) for key, tensor in end.items())
            for name, end in ends.items()
        }
        same_names = all(end.keys() == ends["ddp"].keys() for end in ends.values())
        document = {"losses": found, "distances": distances, "same_names": same_names, "first_norms": norms}
        out.write_text(json.dumps(document))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
