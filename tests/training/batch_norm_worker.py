"""One of two processes that pass half a batch each through a network with batch norm over both.

python batch_norm_worker.py RANK FOLDER
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed as dist
from torch import nn

from yolofleet.training.loop.update import MicroBatchStatistics
from yolofleet.training.loop.worker_group import WorkerGroup

NUM_PASSES = 3
MICRO_BATCH = 4


def network() -> nn.Sequential:
    """Return layers with batch norm as the models have it; one lies in a frozen block."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8, 1e-3, 0.03),
        nn.SiLU(),
        nn.Sequential(nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6, 1e-3, 0.03), nn.LeakyReLU(0.1)),
        nn.Conv2d(6, 5, 1, bias=False),
        nn.BatchNorm2d(5, 1e-3, 0.03),
    ).double()
    layers.train()
    layers[5].requires_grad_(False).eval()
    return layers


def images_of(number: int) -> torch.Tensor:
    """Return both halves of a batch; the second one is much brighter, so that statistics of a half differ."""
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(2 * MICRO_BATCH, 3, 12, 10, dtype=torch.float64, generator=generator)
    images[MICRO_BATCH:] = images[MICRO_BATCH:] * 3 + 5
    return images


def passed(
    model: nn.Module, statistics: MicroBatchStatistics, group: WorkerGroup, *, whole: bool
) -> dict[str, torch.Tensor]:
    """Pass all batches in one step, and return what came out: outputs, gradients, running statistics."""
    found: dict[str, torch.Tensor] = {}
    statistics.begin_step()
    for number in range(NUM_PASSES):
        images = images_of(number)
        images = images if whole else images.view(2, MICRO_BATCH, *images.shape[1:])[group.rank]
        images = images.clone().requires_grad_()
        out = model(images)
        (out * torch.linspace(-1, 1, out[0].numel(), dtype=torch.float64).view(out.shape[1:])).pow(2).sum().backward()
        statistics.add_micro_batch()
        assert images.grad is not None
        found |= {f"out.{number}": out.detach(), f"input.{number}": images.grad}
    group.sum_together(statistics.sums)
    statistics.finish_step(NUM_PASSES * (1 if whole else 2), accept=torch.tensor(True))
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            group.sum(parameter.grad)
            found[f"gradient.{name}"] = parameter.grad
    return found | {f"state.{name}": tensor.clone() for name, tensor in model.state_dict().items()}


def main(rank: int, folder: Path) -> None:
    from yolofleet.training.strategies.synchronised_norm import synchronise_batch_norm

    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(minutes=2))
    group, model = WorkerGroup(rank, 2), network()
    names = list(model.state_dict())
    statistics = MicroBatchStatistics(model)
    synchronise_batch_norm(model, 2, group)
    assert [name for name in names if "num_batches" not in name] == list(model.state_dict())
    found = passed(model, statistics, group, whole=False)
    with torch.no_grad():
        found["evaluated"] = model.eval()(images_of(0))
    safetensors.torch.save_file(found, folder / f"rank-{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
