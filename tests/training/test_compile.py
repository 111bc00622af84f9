"""The compiled network computes what the plain one does, as one graph that is never compiled again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._dynamo.utils import counters

from yolofleet.core.errors import UserError
from yolofleet.losses import DetectionLoss
from yolofleet.models import build_model
from yolofleet.models.modules import lay_channels_innermost
from yolofleet.models.network import Network
from yolofleet.specs.hyperparameters import recipe
from yolofleet.specs.job import JobSpec
from yolofleet.specs.model import ModelChoice
from yolofleet.training.loop.out_of_memory import take_less
from yolofleet.training.loop.trainer import build_trainer
from yolofleet.training.loop.update import MicroBatchStatistics
from yolofleet.training.loop.worker_group import WorkerGroup
from yolofleet.training.setup.builders import build_loss
from yolofleet.training.setup.preflight import check_job

NUM_STEPS = 50


def narrow() -> Network:
    torch.manual_seed(0)
    choice = {"name": "yolov7-tiny", "transition_width": 0.25, "hidden_width": 0.25}
    model = build_model(ModelChoice.parse(choice, source="test"), num_classes=3).train()
    lay_channels_innermost(model)
    return model


def losses(
    model: Network, sizes: list[int], compile_loss: Callable[[DetectionLoss], None] | None = None
) -> list[float]:
    """Train for a step a size, with another number of boxes in each; returns the losses."""
    loss = build_loss(model, recipe("tiny"), 64)
    if compile_loss is not None:
        compile_loss(loss)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    statistics = MicroBatchStatistics(model)
    found = []
    for step, size in enumerate(sizes):
        draw = torch.Generator().manual_seed(step)
        number = step % 7 * 3
        boxes = torch.rand(number, 4, generator=draw) * 0.5 + 0.2
        where = torch.randint(0, 2, (number, 2), generator=draw)
        statistics.begin_step()
        predictions = model(torch.rand(2, 3, size, size, generator=draw))
        result = loss(predictions, torch.cat([where, boxes], 1), (size, size))
        result.total.backward()
        statistics.add_micro_batch()
        statistics.finish_step(1, accept=torch.tensor(True))
        optimizer.step()
        optimizer.zero_grad()
        found.append(result.total.item())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[64] * NUM_STEPS, [64, 96, 64, 128, 96]], ids=["one size", "multi-scale"])
def test_one_graph_serves_all_steps(sizes: list[int]) -> None:
    wanted = losses(narrow(), sizes)
    torch._dynamo.reset()
    counters.clear()
    model = narrow()
    with torch._dynamo.config.patch(error_on_recompile=True):
        model.compile(backend="aot_eager", fullgraph=True, dynamic=len(set(sizes)) > 1)
        found = losses(model, sizes)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.slow
def test_the_loss_is_compiled_once_for_each_size_of_its_tables() -> None:
    """Boxes are padded to 8 or 16 an image here."""
    sizes = [64] * NUM_STEPS
    wanted = losses(narrow(), sizes)
    torch._dynamo.reset()
    counters.clear()
    found = losses(narrow(), sizes, lambda loss: loss.compile(backend="aot_eager", dynamic=False))
    assert found == pytest.approx(wanted, rel=1e-5)
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


@pytest.mark.slow
def test_what_the_inductor_makes_of_it_computes_the_same() -> None:
    # Two steps: its kernels round otherwise, and rounding grows at least tenfold a step in so narrow a network.
    wanted = losses(narrow(), [64] * 2)
    torch._dynamo.reset()
    model = narrow()
    model.compile(fullgraph=True, dynamic=False)
    assert losses(model, [64] * 2, lambda loss: loss.compile(dynamic=False)) == pytest.approx(wanted, rel=1e-4)


def test_what_cannot_be_compiled_is_refused(small_job: Callable[..., JobSpec]) -> None:
    for kind in ("model", "full"):
        assert small_job(compile=kind).digest() == small_job().digest()
        for changes in ({"strategy": "zero1"}, {"batch_norm_workers": 2}, {"memory": "small"}):
            with pytest.raises(UserError, match="use compile off"):
                small_job(compile=kind, **changes)
    with pytest.raises(UserError, match="use compile model"):
        small_job(compile="full", hyperparameters={"multi_scale": 0.5})


def test_a_run_that_was_out_of_memory_is_no_longer_compiled(
    small_job: Callable[..., JobSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch cannot compile what is computed again: no later start of the run would come to a step."""
    compiled: list[Network] = []
    monkeypatch.setattr(Network, "compile", lambda network, **_: compiled.append(network))
    job = small_job(compile="model")
    run = check_job(job).run
    assert build_trainer(job, run, WorkerGroup()).learner.model in compiled
    take_less(job, run, WorkerGroup(), MemoryError())
    assert build_trainer(job, run, WorkerGroup()).learner.model not in compiled
    assert b"is not compiled" in run.storage.get("out_of_memory/small-1.json")
