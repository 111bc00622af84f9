"""Less memory in training: the same gradient, batch norm moved once; and a step that has not enough costs no run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from yolofleet.core.errors import UserError, WorkError
from yolofleet.losses import DetectionLoss
from yolofleet.models import build_model
from yolofleet.models.memory import MemoryUse, recomputed_blocks
from yolofleet.models.memory_saving import MemorySaving
from yolofleet.models.network import Network
from yolofleet.models.wiring import wire
from yolofleet.models.zoo import resolve
from yolofleet.specs.job import JobSpec
from yolofleet.specs.model import ModelChoice
from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.checkpoint.store import CheckpointStore
from yolofleet.training.evaluation.checkpoint_evaluations import Validation
from yolofleet.training.loop.out_of_memory import save_memory, take_less
from yolofleet.training.loop.worker_group import WorkerGroup
from yolofleet.training.setup.builders import trained_table
from yolofleet.training.setup.micro_batch import largest_that_fits
from yolofleet.training.setup.preflight import check_job
from yolofleet.training.supervision.worker import run_worker

MakeJob = Callable[..., JobSpec]
NARROW = {"transition_width": 0.125, "hidden_width": 0.125}


def network(name: str, side: int) -> tuple[Network, torch.Tensor]:
    torch.manual_seed(0)
    table = resolve(ModelChoice(name=name, **NARROW))
    return build_model(table, 3).train().double(), torch.rand(4, 3, side, side, dtype=torch.float64)


def pass_both_ways(model: Network, images: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return the gradients of a loss over all levels, and the state after it."""
    model.zero_grad()
    weights = torch.arange(1, len(images) + 1).view(-1, 1, 1, 1, 1)  # no image counts like another
    torch.stack([(level.square() * weights).mean() for level in model(images)]).sum().backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return gradients, {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("use", ["balanced", "small"])
@pytest.mark.parametrize(("name", "side"), [("yolov7-tiny", 64), ("yolov7", 64), ("yolov7-w6", 128)])
def test_what_is_computed_again_gives_the_same_gradient_and_moves_batch_norm_once(
    use: MemoryUse, name: str, side: int
) -> None:
    plain, images = network(name, side)
    saving, _ = network(name, side)
    saving.memory_saving = MemorySaving(recomputed_blocks(wire(saving.table), use))
    assert saving.memory_saving.blocks
    gradients, state = pass_both_ways(plain, images)
    found, found_state = pass_both_ways(saving, images)
    assert found.keys() == gradients.keys() and len(gradients) > 20
    for key, gradient in gradients.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-9, atol=1e-9 * float(gradient.abs().max()))
    for key, tensor in state.items():
        torch.testing.assert_close(found_state[key], tensor, rtol=1e-12, atol=0)


@pytest.mark.parametrize("num_parts", [2, 4])
def test_parts_give_the_same_gradient_where_batch_norm_does_not_depend_on_them(num_parts: int) -> None:
    found = []
    for parts in (1, num_parts):
        model, images = network("yolov7-tiny", 64)
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()
        model.memory_saving = MemorySaving(recomputed_blocks(wire(model.table), "small"), parts)
        found.append(pass_both_ways(model, images)[0])
    for key, gradient in found[0].items():
        torch.testing.assert_close(found[1][key], gradient, rtol=1e-6, atol=1e-6 * float(gradient.abs().max()))


@given(st.sampled_from([1.0, 0.03, 0.5]), st.sampled_from([1, 2, 4]))
def test_batch_norm_of_parts_moves_by_their_mean(momentum: float, num_parts: int) -> None:
    layer = nn.BatchNorm2d(3, momentum=momentum).double()
    images = torch.rand(4, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    (result,) = MemorySaving(num_parts=num_parts).run_in_parts(lambda part: [layer(part)], layer, images)
    result.sum().backward()
    mean = torch.stack([part.mean((0, 2, 3)) for part in images.chunk(num_parts)]).mean(0)
    torch.testing.assert_close(layer.running_mean, momentum * mean.detach())
    assert layer.momentum == momentum


class Memory:
    """A device that has no memory for some passes of the network."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: Callable[[int, Network], bool]) -> None:
        self.passes = 0
        self._fails = fails
        raw, memory = Network.raw, self

        def pass_or_fail(network: Network, images: torch.Tensor) -> list[torch.Tensor]:
            memory.passes += 1
            if memory._fails(memory.passes, network):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            return raw(network, images)

        monkeypatch.setattr(Network, "raw", pass_or_fail)


JOB: dict[str, Any] = {"precision": "fp64", "epochs": 2, "evaluation": {"every_epochs": 9}}


def train(job: JobSpec) -> RunDirectory:
    run = check_job(job).run
    run_worker(job, WorkerGroup(), evaluate_apart=True)
    return run


def newest(run: RunDirectory) -> Any:
    return CheckpointStore(run.storage.child("checkpoints")).newest()


def samples(run: RunDirectory) -> list[str]:
    """Return the last record of what the network saw in each micro-batch."""
    keys = sorted(entry.key for entry in run.storage.list("samples/"))
    return [line for key in keys for line in run.storage.get(key).decode().splitlines()]


@pytest.mark.parametrize("failing_pass", [1, 6, 11])
def test_a_step_without_memory_resumes_with_the_same_samples_to_the_same_end(
    failing_pass: int, small_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = train(small_job(name="undisturbed", **JOB))
    Memory(monkeypatch, lambda number, network: number == failing_pass)
    run = train(small_job(name="tight", **JOB))
    (event,) = [event for event in run.events() if event["kind"] == "out_of_memory"]
    assert event["step"] == (failing_pass - 1) // 2 and "memory: small" in event["measure"]
    one, other = newest(undisturbed), newest(run)
    assert one.step == other.step == 8 and one.state["run"] == other.state["run"]
    for file in one.tensors:
        for name, tensor in one.tensors[file].items():
            torch.testing.assert_close(other.tensors[file][name], tensor, rtol=1e-6, atol=1e-9)
    assert samples(run) == samples(undisturbed)


def test_where_that_is_not_enough_images_pass_in_parts_down_to_one(
    small_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def needs_parts(number: int, network: Network) -> bool:
        saving = network.memory_saving
        return number > 3 and (saving is None or saving.num_parts < 4)

    Memory(monkeypatch, needs_parts)
    run = train(small_job(name="tight", **JOB))
    keys = [event["key"] for event in run.events() if event["kind"] == "out_of_memory"]
    assert keys == [f"out_of_memory/small-{parts}.json" for parts in (1, 2, 4)]
    assert newest(run).step == 8
    assert train(small_job(name="tight", **JOB | {"epochs": 2})).status() == "FINISHED"


def test_workers_that_fail_in_the_same_step_take_one_measure(small_job: MakeJob) -> None:
    """The second one finds the record of the first, and must not take it for what was not enough."""
    job = small_job()
    run, model = check_job(job).run, build_model(trained_table(job), num_classes=3)
    for rank in range(2):
        take_less(job, run, WorkerGroup(rank=rank, world_size=2), MemoryError(), model)
    assert [entry.key for entry in run.storage.list("out_of_memory/")] == ["out_of_memory/small-1.json"]
    save_memory(job, run, WorkerGroup(), model)
    for _ in range(2):
        take_less(job, run, WorkerGroup(), MemoryError(), model)
    assert {entry.key for entry in run.storage.list("out_of_memory/")} == {
        f"out_of_memory/small-{parts}.json" for parts in (1, 2)
    }


def test_an_evaluation_without_memory_passes_fewer_images(small_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no reason to train another way."""
    job = small_job(evaluation={"batch_size": 8})
    model = build_model(trained_table(job), num_classes=len(check_job(job).train.classes)).eval()
    lead, most = Network.lead, 3
    sizes: list[int] = []

    def pass_or_fail(network: Network, images: torch.Tensor) -> list[torch.Tensor]:
        sizes.append(len(images))
        if len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return lead(network, images)

    whole = Validation(job, WorkerGroup())(model)
    monkeypatch.setattr(Network, "lead", pass_or_fail)
    parts = Validation(job, WorkerGroup())(model)
    assert whole is not None and parts is not None and sizes == [8, 4, 2, 2, 2, 2]
    assert {name: parts[name] for name in ("AP", "AP50")} == {name: whole[name] for name in ("AP", "AP50")}
    most = 0
    with pytest.raises(WorkError, match=r"of 1 image at a time.*smaller evaluation\.batch_size"):
        Validation(job, WorkerGroup())(model)


class Exchange(WorkerGroup):
    """One of two workers that are threads of this process."""

    meeting: ClassVar[threading.Barrier] = threading.Barrier(2, timeout=60)
    given: ClassVar[dict[int, torch.Tensor]] = {}

    def all_of(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        self.given[self.rank] = tensor.clone()
        self.meeting.wait()
        parts = [self.given[rank] for rank in range(2)]
        self.meeting.wait()
        return parts

    def sum(self, tensor: torch.Tensor) -> None:
        tensor.copy_(torch.stack(self.all_of(tensor)).sum(0))

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor | None:
        parts = self.all_of(rows)
        return torch.cat(parts) if self.is_first else None


def test_where_one_worker_has_too_little_memory_every_image_is_evaluated_once(
    small_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which images a worker takes depends on how many it takes at a time: all take fewer."""
    job = small_job(evaluation={"batch_size": 4})
    model = build_model(trained_table(job), num_classes=len(check_job(job).train.classes)).eval()
    lead = Network.lead
    seen: dict[str, list[int]] = {}

    def pass_or_fail(network: Network, images: torch.Tensor) -> list[torch.Tensor]:
        name = threading.current_thread().name
        if name == "rank 1" and len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        seen.setdefault(name, []).append(len(images))
        return lead(network, images)

    alone = Validation(job, WorkerGroup())(model)
    monkeypatch.setattr(Network, "lead", pass_or_fail)
    with ThreadPoolExecutor(2) as pool:

        def evaluate(rank: int) -> Any:
            threading.current_thread().name = f"rank {rank}"
            return Validation(job, Exchange(rank, 2))(model)

        together, nothing = pool.map(evaluate, range(2))
    assert nothing is None and alone is not None and together is not None
    assert [together[name] for name in ("AP", "AP50", "AP75")] == [alone[name] for name in ("AP", "AP50", "AP75")]
    assert seen["rank 0"][-2:] == [2, 2] and set(seen["rank 1"]) == {2}


def test_a_run_that_cannot_take_less_ends_with_the_cure(small_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    Memory(monkeypatch, lambda number, network: True)
    with pytest.raises(
        WorkError, match=r"although images pass through the network one by one.*smaller data\.image_size"
    ):
        train(small_job(name="tight", **JOB | {"memory": "small"}))


def test_another_error_is_no_want_of_memory(small_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("shape '[1]' is invalid")

    monkeypatch.setattr(DetectionLoss, "__call__", broken)
    with pytest.raises(RuntimeError, match="is invalid"):
        train(small_job(**JOB))


@given(
    st.sets(st.integers(1, 256), min_size=1, max_size=10),
    st.integers(0, 1000),
    st.floats(0.3, 3.0),
    st.integers(1, 20_000),
    st.booleans(),
)
def test_the_largest_micro_batch_that_fits_is_found_whatever_the_forecast_is_worth(
    sizes: set[int], fixed: int, error: float, room: int, says_how_much: bool
) -> None:
    """The forecast is wrong by a factor and knows nothing of the process; a failed trial may not say by how much."""
    tried: list[int] = []

    def spare(size: int) -> int | None:
        assert size not in tried, "no size is tried twice"
        tried.append(size)
        left = room - fixed - int(100 * error * size)
        return left if left >= 0 or says_how_much else None

    fitting = [size for size in sizes if fixed + int(100 * error * size) <= room]
    if not fitting:
        with pytest.raises(UserError, match="not even"):
            largest_that_fits(sorted(sizes), lambda size: 100 * size, spare)
        return
    found, left = largest_that_fits(sorted(sizes), lambda size: 100 * size, spare)
    assert found == max(fitting) and left == room - fixed - int(100 * error * found)
