from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from yolofleet.training.loop.update import MicroBatchStatistics


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.03), nn.Conv2d(4, 2, 1)).double().train()


def test_one_micro_batch_is_ordinary_batch_norm() -> None:
    plain, ours = network(), network()
    statistics = MicroBatchStatistics(ours)
    for step in range(3):
        images = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        plain(images)
        statistics.begin_step()
        ours(images)
        statistics.add_micro_batch()
        statistics.finish_step(1, accept=torch.tensor(True))
    torch.testing.assert_close(ours[1].running_mean, plain[1].running_mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours[1].running_var, plain[1].running_var, rtol=1e-12, atol=0)


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(1, 4))
def test_the_division_among_workers_does_not_matter(num_micro_batches: int, num_workers: int) -> None:
    batches = [torch.randn(2, 3, 8, 8, dtype=torch.float64) for _ in range(num_micro_batches)]
    whole = network()
    statistics = MicroBatchStatistics(whole)
    statistics.begin_step()
    for images in batches:
        whole(images)
        statistics.add_micro_batch()
    statistics.finish_step(num_micro_batches, accept=torch.tensor(True))

    workers = [network() for _ in range(min(num_workers, num_micro_batches))]
    parts = [MicroBatchStatistics(worker) for worker in workers]
    sums = []
    for rank, (worker, part) in enumerate(zip(workers, parts, strict=True)):
        part.begin_step()
        for images in batches[rank :: len(workers)]:
            worker(images)
            part.add_micro_batch()
        sums.append(part.sums.clone())
    total = torch.stack(sums).sum(0)
    fresh = network()
    again = MicroBatchStatistics(fresh)
    again.begin_step()
    again.sums.copy_(total)
    again.finish_step(num_micro_batches, accept=torch.tensor(True))
    torch.testing.assert_close(fresh[1].running_var, whole[1].running_var, rtol=1e-12, atol=0)
    torch.testing.assert_close(fresh[1].running_mean, whole[1].running_mean, rtol=1e-12, atol=1e-15)


def test_a_skipped_step_leaves_the_running_statistics_alone() -> None:
    model = network()
    before = model[1].running_var.clone()
    statistics = MicroBatchStatistics(model)
    statistics.begin_step()
    model(torch.full((2, 3, 8, 8), float("nan"), dtype=torch.float64))
    statistics.add_micro_batch()
    statistics.finish_step(1, accept=torch.tensor(False))
    assert torch.equal(model[1].running_var, before)
    statistics.begin_step()
    model(torch.randn(2, 3, 8, 8, dtype=torch.float64))
    statistics.add_micro_batch()
    statistics.finish_step(1, accept=torch.tensor(True))
    assert torch.isfinite(model[1].running_var).all()


def test_several_micro_batches_move_the_statistics_once_by_their_mean() -> None:
    model = network()
    statistics = MicroBatchStatistics(model)
    running, found = model[1].running_var.clone(), []
    for _ in range(2):  # the second step begins from nothing
        batches = [torch.randn(2, 3, 8, 8, dtype=torch.float64) for _ in range(3)]
        statistics.begin_step()
        found = []
        for images in batches:
            model(images)
            found.append(model[0](images).transpose(0, 1).flatten(1).var(dim=1))
            statistics.add_micro_batch()
        statistics.finish_step(3, accept=torch.tensor(True))
        running = 0.97 * running + 0.03 * torch.stack(found).mean(dim=0).detach()
        torch.testing.assert_close(model[1].running_var, running, rtol=1e-9, atol=0)
    assert model[1].num_batches_tracked is None


def test_frozen_layers_and_models_without_batch_norm_are_left_alone() -> None:
    model = nn.Sequential(network(), network()).double()
    model[0].eval()
    before = model[0][1].running_mean.clone(), model[0][1].momentum
    statistics = MicroBatchStatistics(model)
    statistics.begin_step()
    model[1](torch.randn(2, 3, 8, 8, dtype=torch.float64))
    statistics.add_micro_batch()
    statistics.finish_step(1, accept=torch.tensor(True))
    assert torch.equal(model[0][1].running_mean, before[0]) and model[0][1].momentum == before[1] == 0.03
    assert model[1][1].momentum == 1.0 and model[1][1].running_mean.any()
    nothing = MicroBatchStatistics(nn.Conv2d(3, 4, 1))
    nothing.begin_step()
    nothing.add_micro_batch()
    nothing.finish_step(1, accept=torch.tensor(True))
    nothing.reload()


def test_loaded_statistics_are_gone_on_from() -> None:
    model = network()
    statistics = MicroBatchStatistics(model)
    loaded = {name: torch.full_like(value, 5.0) for name, value in model.state_dict().items() if "running" in name}
    model.load_state_dict(loaded, strict=False)
    statistics.reload()
    statistics.begin_step()
    model(torch.randn(2, 3, 8, 8, dtype=torch.float64))
    statistics.add_micro_batch()
    statistics.finish_step(1, accept=torch.tensor(False))
    assert (model[1].running_mean == 5.0).all() and (model[1].running_var == 5.0).all()
