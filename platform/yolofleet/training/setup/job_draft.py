"""A first job for a dataset on a machine: model, image size, batch and epochs that are sensible, each with its reason.

Everything is chosen from facts: how many images there are and how large their boxes, what a model computes and keeps
(its profile), and what the machine has. Few images need more passes and fewer blended samples; small boxes need a
larger image; memory bounds the micro-batch; without a GPU, hours bound the passes.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolofleet.core.byte_sizes import format_bytes
from yolofleet.core.cores import num_cores
from yolofleet.core.text import plural, visible
from yolofleet.data.anchors import GOOD_RECALL, Sizes, survey_boxes
from yolofleet.data.dataset import ShardDataset
from yolofleet.models.memory import training_memory
from yolofleet.models.profile import cost
from yolofleet.models.wiring import ModelGraph, wire
from yolofleet.models.zoo import resolve
from yolofleet.specs.job import JobSpec
from yolofleet.specs.model import ModelChoice
from yolofleet.specs.yaml_document import write_yaml
from yolofleet.training.setup.preparation import MOST_SAMPLES_SURVEYED, choose_anchors, table_anchors

GPU_MODELS: tuple[dict[str, Any], ...] = ({"name": "yolov7"}, {"name": "yolov7-tiny"})
CPU_MODELS: tuple[dict[str, Any], ...] = (
    {"name": "yolov7-tiny"},
    {"name": "yolov7-tiny", "transition_width": 0.5, "hidden_width": 0.5},
)
GPU_SIDES, CPU_SIDES = (640, 1280), (320, 640)
"""Side of the image that is usual, and the largest for small boxes."""
LEAST_BOX_PIXELS = 8.0
"""Nine of ten boxes should have sides of so many pixels at least."""
USED_MEMORY_SHARE = 0.6
"""Share of the memory that the forecast may fill; the rest is for workspaces, the loader and the system."""
LEAST_MICRO_BATCH = 8
"""Batch statistics of fewer images are poor, so a smaller model is taken first."""
FEW_IMAGES = 1000
MOST_EPOCHS, FEWEST_EPOCHS, LEAST_STEPS = 300, 10, 1500
CPU_GFLOPS_A_CORE = 30.0
"""What a core trains at, roughly; the forecast of hours says "about"."""
CPU_HOURS = 8.0
SHORT_RUN_STEPS = 20_000
PUBLISHED_BATCH, PUBLISHED_RATE = 64, 0.01


@dataclass(frozen=True)
class Machine:
    """What training may use."""

    gpu_bytes: tuple[int, ...]
    """Memory of each GPU."""
    num_cores: int
    memory_bytes: int

    @staticmethod
    def here() -> Machine:
        """Return this machine."""
        import torch

        gpus = tuple(torch.cuda.get_device_properties(n).total_memory for n in range(torch.cuda.device_count()))
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Machine(gpus, num_cores(), memory)

    def sentence(self) -> str:
        """Return what it has, in a few words."""
        cores = plural(self.num_cores, "core")
        if not self.gpu_bytes:
            return f"no GPU, {cores}, {format_bytes(self.memory_bytes)} of memory"
        return f"{plural(len(self.gpu_bytes), 'GPU')} of {format_bytes(min(self.gpu_bytes))}, {cores}"


@dataclass(frozen=True)
class DataFacts:
    """What the choice depends on."""

    num_train: int
    num_classes: int
    sizes: Sizes
    """(n, 2) boxes as shares of their image's longer side."""
    longer_side: int
    """Median of the longer sides of the images, in pixels."""

    @staticmethod
    def survey(dataset: ShardDataset) -> DataFacts:
        """Measure a training set; only annotations are read."""
        step = 1 + len(dataset) // 500
        sides = [
            max(record.width, record.height) for _, record in map(dataset.read_record, range(0, len(dataset), step))
        ]
        sizes = survey_boxes(dataset, MOST_SAMPLES_SURVEYED).sizes
        return DataFacts(len(dataset), len(dataset.classes), sizes, int(np.median(sides)))


@dataclass(frozen=True)
class JobDraft:
    """A job, and why it is so."""

    document: dict[str, Any]
    reasons: dict[str, str]
    """A sentence or two for a key of the document."""
    forecast: str
    """How long it takes, roughly; empty where that is not known."""

    def text(self, heading: str) -> str:
        """Return the job as commented YAML, under a heading; it is checked as `train` will check it.

        Raises:
            SpecError: A name or a path of the user does not fit.
        """
        JobSpec.parse(self.document, source="the job")
        lines = _comment(heading)
        for key, value in self.document.items():
            lines += _comment(self.reasons[key]) if key in self.reasons else []
            lines.append(write_yaml({key: value}).rstrip("\n"))
        return "\n".join([*lines, *_comment(self.reasons.get("", ""))]) + "\n"


def draft_job(
    facts: DataFacts,
    machine: Machine,
    *,
    name: str,
    data: Mapping[str, str],
    storage: str,
    model: dict[str, Any] | None = None,
    image_size: int | None = None,
) -> JobDraft:
    """Choose the settings of a job.

    Args:
        facts: The dataset.
        machine: Where it is trained.
        name: Name of the run.
        data: URLs of ``train`` and ``val``.
        storage: Where runs are kept.
        model: Which model, as a job says it; None chooses.
        image_size: Side of the network's input; None chooses.

    Raises:
        UserError: The model is not known, or the image size does not fit it.
    """
    has_gpu = bool(machine.gpu_bytes)
    choices = (model,) if model is not None else GPU_MODELS if has_gpu else CPU_MODELS
    global_batch = _global_batch(facts.num_train, has_gpu)
    num_workers = max(1, min(len(machine.gpu_bytes), global_batch // LEAST_MICRO_BATCH))
    for choice in choices:
        graph = wire(resolve(ModelChoice.parse(choice, source="--model")))
        side = image_size or _image_size(facts, graph, GPU_SIDES if has_gpu else CPU_SIDES)
        micro_batch, memory = _micro_batch(graph, facts, machine, side, global_batch // num_workers)
        hours_an_epoch = _cpu_hours(graph, facts, machine, side)
        epochs, hours = _epochs(facts.num_train, global_batch, None if has_gpu else hours_an_epoch)
        if micro_batch >= min(LEAST_MICRO_BATCH, global_batch) and (has_gpu or hours <= CPU_HOURS):
            break
    num_steps = max(1, round(epochs * facts.num_train / global_batch))
    hyperparameters = _hyperparameters(facts.num_train, global_batch, num_steps)
    anchors = choose_anchors(
        "auto",
        table_anchors(graph.table),
        facts.sizes * side,
        image_size=side,
        ratio_limit=4.0,
        seed=0,
    )
    is_fitted = anchors.source == "fitted"
    parameters = cost(graph, num_classes=facts.num_classes, size=(side, side)).parameters
    time = plural(hours, "hour", form=".0f") if hours >= 2 else plural(max(1, round(60 * hours)), "minute")
    forecast = "" if has_gpu else f"About {time} on {plural(machine.num_cores, 'core')}, roughly."
    document = {
        "name": name,
        "model": choice,
        "data": {**data, "image_size": side, "loader_threads": _loader_threads(machine)},
        "recipe": "tiny" if graph.table.name.startswith("yolov7-tiny") else "p6" if graph.max_stride > 32 else "p5",
        "hyperparameters": hyperparameters,
        "anchors": "auto" if is_fitted else "model",
        "epochs": epochs,
        "global_batch_size": global_batch,
        "micro_batch_size": micro_batch,
        **({"precision": "fp16"} if has_gpu else {}),
        "cluster": {
            "workers": num_workers,
            **({"gpus_per_worker": 1} if has_gpu else {}),
        },
        "evaluation": {"every_epochs": max(1, round(epochs / 20))},
        "storage": storage,
        "tracking": {"experiment": name},
    }
    reasons = {
        "model": f"{parameters / 1e6:.1f} M parameters. Chosen for {machine.sentence()}; 'yolofleet models list' "
        "shows the others.",
        "data": f"Images have {plural(facts.longer_side, 'pixel')} (median of the longer sides); nine of ten boxes "
        f"have sides of {plural(_small_share(facts) * side, 'pixel', form='.0f')} or more at image_size {side}. Small "
        f"boxes need a larger image_size; time and memory grow with its square.",
        "hyperparameters": "What differs from the published recipe: learning rate, warm-up and average for a run of "
        f"{plural(num_steps, 'step')} of {plural(global_batch, 'image')}"
        + ("; few images, so no mixup and less mosaic." if facts.num_train < FEW_IMAGES else "."),
        "anchors": f"The model's anchors reach {anchors.before.recall:.1%} of the boxes"
        + (f", fitted ones {anchors.after.recall:.1%}." if is_fitted else f"; {GOOD_RECALL:.0%} is good."),
        "epochs": f"{plural(facts.num_train, 'image')}: more images need fewer passes. {forecast}",
        "global_batch_size": f"A micro-batch needs about {format_bytes(memory)} on a worker, by the forecast. If it "
        "does not suffice, halve micro_batch_size; only the statistics of batch norm change.",
        "tracking": f"For the Model Registry add register_as: {name}",
    }
    if choice.keys() == {"name"}:
        reasons[""] = f"To start from published weights (docs/weights.md):\ninitial_weights: {choice['name']}.pt"
    return JobDraft(document, reasons, forecast)


def _global_batch(num_train: int, has_gpu: bool) -> int:
    """Few images get small batches, so that a pass has some steps."""
    if has_gpu and num_train >= 2 * FEW_IMAGES:
        return 64
    return 32 if has_gpu and num_train >= FEW_IMAGES // 2 else 16 if num_train >= 32 else 8


def _small_share(facts: DataFacts) -> float:
    """Return the smaller side of a small box (nine of ten are larger) as a share of its image's longer side."""
    return float(np.quantile(facts.sizes.min(axis=1), 0.1)) if len(facts.sizes) else 1.0


def _image_size(facts: DataFacts, graph: ModelGraph, sides: tuple[int, int]) -> int:
    """Return the usual side, larger for small boxes, but not larger than the images."""
    usual, largest = sides
    wanted = min(max(usual, LEAST_BOX_PIXELS / max(_small_share(facts), 1e-6)), largest, max(facts.longer_side, 64))
    return int(-(-wanted // graph.max_stride) * graph.max_stride)


def _micro_batch(graph: ModelGraph, facts: DataFacts, machine: Machine, side: int, most: int) -> tuple[int, int]:
    """Return the largest micro-batch whose forecast fits, at least 1, and that forecast in bytes."""
    has_gpu = bool(machine.gpu_bytes)
    room = USED_MEMORY_SHARE * (min(machine.gpu_bytes) if has_gpu else machine.memory_bytes)
    size = 1 << (min(most, 64 if has_gpu else LEAST_MICRO_BATCH).bit_length() - 1)
    while True:
        memory = training_memory(
            graph,
            num_classes=facts.num_classes,
            size=(side, side),
            micro_batch_size=size,
            precision="fp16" if has_gpu else "fp32",
            num_workers=max(1, len(machine.gpu_bytes)),
        ).total
        if memory <= room or size == 1:
            return size, memory
        size //= 2


def _cpu_hours(graph: ModelGraph, facts: DataFacts, machine: Machine, side: int) -> float:
    """Return about how long a pass over the images takes; the backward pass costs twice the forward pass."""
    gflops = 3 * cost(graph, num_classes=facts.num_classes, size=(side, side)).gflops
    return facts.num_train * gflops / (CPU_GFLOPS_A_CORE * machine.num_cores) / 3600


def _epochs(num_train: int, global_batch: int, hours_an_epoch: float | None) -> tuple[int, float]:
    """Return the passes over the images, and how long they take on a CPU."""
    wanted = MOST_EPOCHS * min(1.0, FEW_IMAGES / num_train) ** 0.3
    if hours_an_epoch is not None:
        wanted /= 3  # a smaller model on smaller images is done sooner
    wanted = max(wanted, min(LEAST_STEPS * global_batch / num_train, 2 * MOST_EPOCHS))
    if hours_an_epoch is not None:
        wanted = max(FEWEST_EPOCHS, min(wanted, CPU_HOURS / hours_an_epoch))
    epochs = int(wanted) if wanted < 20 else int(wanted) // 5 * 5
    return epochs, epochs * (hours_an_epoch or 0.0)


def _hyperparameters(num_train: int, global_batch: int, num_steps: int) -> dict[str, float]:
    values: dict[str, float] = {}
    if global_batch < PUBLISHED_BATCH:
        values["lr0"] = PUBLISHED_RATE * PUBLISHED_BATCH / global_batch
    if num_steps < SHORT_RUN_STEPS:
        values["warmup_min_steps"] = max(1, min(1000, num_steps // 10))
        values["ema_decay"] = 0.998 if num_steps < SHORT_RUN_STEPS / 8 else 0.999
        values["ema_ramp_steps"] = float(max(10, min(2000, num_steps // 6)))
    if num_train < FEW_IMAGES:
        values |= {"mosaic": 0.7, "mixup": 0.0, "paste_in": 0.0, "close_mosaic_share": 0.2}
    return values


def _loader_threads(machine: Machine) -> int:
    return max(2, min(12, machine.num_cores // len(machine.gpu_bytes) - 1)) if machine.gpu_bytes else 1


def _comment(text: str) -> list[str]:
    """Return lines of comment; whatever a text holds, it stays a comment."""
    return [
        f"# {part}"
        for line in text.splitlines()
        for part in textwrap.wrap(visible(line, 2000), 76, break_long_words=False, break_on_hyphens=False)
    ]
