"""A training step of the package on one device, as `gpu.py` measures it: the real loop over a batch in memory."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

import torch

from yolofleet.data.micro_batch import MicroBatch
from yolofleet.models import build_model
from yolofleet.models.memory import training_memory
from yolofleet.models.modules import lay_channels_innermost
from yolofleet.models.profile import profile
from yolofleet.models.wiring import wire
from yolofleet.models.zoo import zoo_table
from yolofleet.specs.job import JobSpec
from yolofleet.training.checkpoint.run_state import RunState
from yolofleet.training.loop import train as loop
from yolofleet.training.loop.milestones import Milestones
from yolofleet.training.loop.non_finite import FiniteGuard
from yolofleet.training.loop.pace import Pace
from yolofleet.training.loop.progress import LossTerms
from yolofleet.training.loop.schedule import Schedule
from yolofleet.training.loop.trainer import Learner, Meters, Trainer, WorkerData
from yolofleet.training.loop.update import MicroBatchStatistics, Precision, WeightAverage, build_optimizer
from yolofleet.training.loop.worker_group import WorkerGroup
from yolofleet.training.setup.builders import build_loss
from yolofleet.training.strategies.strategy import Replicated

NUM_CLASSES = 80
BOXES_PER_IMAGE = 7
"""COCO's mean is 7.3."""
NUM_STEPS = 10**6
"""Of the run that a step belongs to: nothing is logged or saved in between."""


class Silent:
    """Stands for the parts of a run that keep records."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained."""

    model: str
    image_size: int
    batch_size: int
    precision: str = "bf16"
    compile: Literal["off", "model", "full"] = "off"

    @property
    def recipe(self) -> str:
        """The published recipe of the model."""
        return "tiny" if self.model == "yolov7-tiny" else "p6" if zoo_table(self.model).auxiliary else "p5"

    def job(self) -> JobSpec:
        """Return the job."""
        document: dict[str, Any] = {
            "name": "gpu",
            "model": {"name": self.model},
            "data": {"train": "none", "val": "none", "image_size": self.image_size},
            "recipe": self.recipe,
            "precision": self.precision,
            "global_batch_size": self.batch_size,
            "micro_batch_size": self.batch_size,
        }
        return JobSpec.parse(document, source="gpu.py")

    def flops(self) -> float:
        """Return the operations of a step: a backward pass costs two forward passes."""
        return 3e9 * profile(zoo_table(self.model), image_size=self.image_size).gflops * self.batch_size

    def forecast(self) -> Any:
        """Return the forecast of the memory of a step."""
        size = (self.image_size, self.image_size)
        precision: Any = self.precision
        return training_memory(
            wire(zoo_table(self.model)),
            num_classes=NUM_CLASSES,
            size=size,
            micro_batch_size=self.batch_size,
            precision=precision,
        )

    def floor_seconds(self, product_flops: float, copy_bytes: float) -> float:
        """Return the least time of a step: its operations at the product's rate, and its maps at the copy's.

        What the forward pass keeps is written and read once, and so is its gradient.
        """
        return self.flops() / product_flops + 4 * int(self.forecast().activations) / copy_bytes

    def batch(self, device: torch.device, seed: int = 0) -> MicroBatch:
        """Return a batch: images on the device, boxes on the host, as the loader gives them."""
        draw = torch.Generator().manual_seed(seed)
        shape = (self.batch_size, 3, self.image_size, self.image_size)
        images = torch.randint(256, shape, dtype=torch.uint8, generator=draw).to(device)
        number = self.batch_size * BOXES_PER_IMAGE
        image = torch.arange(self.batch_size).repeat_interleave(BOXES_PER_IMAGE)
        label = torch.randint(NUM_CLASSES, (number,), generator=draw)
        centre = torch.rand(number, 2, generator=draw) * 0.8 + 0.1
        size = torch.rand(number, 2, generator=draw) ** 2 * 0.4 + 0.02
        targets = torch.cat([image[:, None], label[:, None], centre, size], 1).float()
        return MicroBatch(0, 0, images, targets, tuple(map(str, range(self.batch_size))))


@dataclass(frozen=True)
class Step:
    """The package's step."""

    trainer: Trainer
    batches: Iterator[MicroBatch]
    rows: list[dict[str, Any]] = field(default_factory=list)

    @staticmethod
    def of(case: Case, device: torch.device, batches: Iterator[MicroBatch] | None = None) -> Step:
        """Build model, loss and optimiser; the batches are one and the same unless given."""
        job, group = case.job(), WorkerGroup(device=device)
        hyperparameters, precision = job.resolved_hyperparameters(), Precision(case.precision, device)
        torch.manual_seed(0)
        model = build_model(case.model, NUM_CLASSES).to(device).train()
        lay_channels_innermost(model)
        optimizer = build_optimizer(model, hyperparameters, job.global_batch_size)
        statistics = MicroBatchStatistics(model)
        average = WeightAverage(model, hyperparameters, statistics.running)
        loss = build_loss(model, hyperparameters, case.image_size)
        if case.compile != "off":
            model.compile()
        if case.compile == "full":
            loss.compile()
        silent: Any = Silent()
        trainer = Trainer(
            job=job,
            run=silent,
            group=group,
            learner=Learner(
                model, average, loss, precision, statistics, Replicated(model, optimizer, precision, group)
            ),
            data=WorkerData(silent, range(1), silent, silent),
            schedule=Schedule(hyperparameters, NUM_STEPS, NUM_STEPS / 300),
            milestones=Milestones(NUM_STEPS, NUM_STEPS, NUM_STEPS, Fraction(NUM_STEPS)),
            state=RunState(),
            store=silent,
            guard=FiniteGuard(group, NUM_STEPS),
            stopping=None,
            meters=Meters(LossTerms(group), Pace(group), None),
        )
        return Step(trainer, batches or itertools.repeat(case.batch(device)))

    def __call__(self) -> None:
        """Do a step."""
        loop._do_step(self.trainer, self.batches, self.rows.append)

    def finish(self) -> None:
        """Read what became of the last step."""
        loop._settle(self.trainer, self.rows.append)
        if self.trainer.state.num_updates == 0:
            raise RuntimeError("no step was finite")

    def stages(self, clock: StageClock) -> None:
        """Do a step in the order of the loop, with a mark after each stage."""
        learner, batch = self.trainer.learner, next(self.batches)
        learner.statistics.begin_step()
        clock.begin()
        with learner.precision.context():
            images = learner.precision.images(batch.images)
            clock.mark("images")
            predictions = learner.strategy.network(images)
        clock.mark("forward")
        result = learner.loss(predictions, batch.targets, (images.shape[2], images.shape[3]))
        clock.mark("loss")
        learner.strategy.backward(result.total)
        clock.mark("backward")
        learner.statistics.add_micro_batch()
        finite = learner.strategy.gradient_norm().isfinite()
        clock.mark("gradient norm")
        learner.statistics.finish_step(1, accept=finite)
        clock.mark("batch norm")
        learner.strategy.step(finite)
        clock.mark("optimiser")
        learner.average.update(1)
        clock.mark("average")


class StageClock:
    """Time between marks, on the device's own clock."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str, Any]] = []
        self.rounds: list[dict[str, float]] = []

    def begin(self) -> None:
        """Begin a round."""
        self._marks = []
        self.mark("")

    def mark(self, name: str) -> None:
        """End a stage."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((name, event))
        else:
            self._marks.append((name, time.perf_counter()))

    def end(self) -> None:
        """End a round; waits for the device."""
        synchronise(self._device)
        pairs = itertools.pairwise(self._marks)
        if self._device.type == "cuda":
            self.rounds.append({name: before.elapsed_time(after) / 1e3 for (_, before), (name, after) in pairs})
        else:
            self.rounds.append({name: after - before for (_, before), (name, after) in pairs})

    def medians(self) -> dict[str, float]:
        """Return each stage's median seconds."""
        return {name: float(torch.tensor([found[name] for found in self.rounds]).median()) for name in self.rounds[0]}


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_call(work: Callable[[], object], device: torch.device, *, warm_up: int, rounds: int) -> float:
    """Return the seconds of a call, over some calls without a wait in between."""
    for _ in range(warm_up):
        work()
    synchronise(device)
    began = time.perf_counter()
    for _ in range(rounds):
        work()
    synchronise(device)
    return (time.perf_counter() - began) / rounds


def ceilings(device: torch.device, *, small: bool) -> tuple[float, float]:
    """Return operations a second of a large bf16 product, and bytes a second of a large copy, read and written."""
    side = 512 if small else 8192
    kind = torch.float32 if device.type == "cpu" else torch.bfloat16
    left, right = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    product = 2 * side**3 / seconds_per_call(lambda: left @ right, device, warm_up=3, rounds=3 if small else 20)
    source = torch.empty(side * side * (4 if small else 16), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = seconds_per_call(lambda: target.copy_(source), device, warm_up=3, rounds=3 if small else 20)
    return product, 2 * source.numel() / copied
