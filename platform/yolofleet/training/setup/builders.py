"""From a job to the parts of its training: the model's table and frozen blocks, the loss, datasets, training stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from yolofleet.core.errors import UserError
from yolofleet.core.text import did_you_mean
from yolofleet.data.anchors import image_weights, survey_boxes
from yolofleet.data.cache_folder import CacheSettings
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.loader import choose_loader
from yolofleet.data.order import Deal
from yolofleet.data.stream import TrainingStream
from yolofleet.data.verification import open_verified
from yolofleet.evaluation.detector import select_device
from yolofleet.losses import DetectionLoss, scaled_gains
from yolofleet.models.network import Network
from yolofleet.models.wiring import wire
from yolofleet.models.zoo import resolve, zoo_names, zoo_table
from yolofleet.specs.assignment import ASSIGNERS, AssignmentSpec
from yolofleet.specs.data import DataSpec
from yolofleet.specs.hyperparameters import Hyperparameters
from yolofleet.specs.job import JobSpec
from yolofleet.specs.model import ModelTable
from yolofleet.training.loop.schedule import MultiScale, Schedule


def check_block_names(table: ModelTable, names: Sequence[str]) -> None:
    """Refuse names that are no block of the model.

    Raises:
        UserError: Names the block, the nearest and all others.
    """
    known = [block.name for block in wire(table).blocks]
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) or "."
            raise UserError(f"freeze: model {table.name} has no block '{name}'{hint} Its blocks: {', '.join(known)}")


def freeze_blocks(model: Network, names: Sequence[str]) -> None:
    """Freeze blocks of a model in training mode, before its optimiser is built: they get no gradient.

    Args:
        model: The model; frozen blocks stay in evaluation mode, so they normalise by their running statistics.
        names: Names of its blocks, checked before.
    """
    for name in names:
        model.blocks[name].requires_grad_(False).eval()


def trained_table(job: JobSpec) -> ModelTable:
    """Return the table of the model as it is trained.

    With an assigner that does not use the auxiliary heads (``none``) they are not built at all: nothing would train
    them, and workers would wait in vain for the gradients of their parameters.

    Raises:
        UserError: The model is not known, or the assigner needs auxiliary heads that it does not have.
    """
    table = resolve(job.model)
    assigner = job.assignment.assigner
    chosen = ASSIGNERS.get(assigner or "coarse_to_fine")
    if not chosen.uses_auxiliary:
        table = table.model_copy(update={"auxiliary": None})
    if job.assignment.constraint and (table.auxiliary is None or not chosen.has_coarse_set):
        guide = assigner or "none"
        raise UserError(
            f"assignment.constraint caps cells that only the coarse set holds, and assigner {guide} has no coarse set; "
            "use assigner coarse_to_fine with a model that has auxiliary heads, or leave the constraint off"
        )
    if assigner is not None and chosen.uses_auxiliary and table.auxiliary is None:
        able = [name for name in zoo_names() if zoo_table(name).auxiliary is not None]
        without = " (model.auxiliary is none)" if job.model.auxiliary == "none" else ""
        raise UserError(
            f"assignment.assigner {assigner} needs auxiliary heads, and {table.name} has none{without}; use assigner "
            f"none, or a model that has them: {', '.join(able)}"
        )
    return table


def build_loss(
    model: Network,
    hyperparameters: Hyperparameters,
    image_size: int,
    assignment: AssignmentSpec | None = None,
    class_counts: Sequence[int] | None = None,
) -> DetectionLoss:
    """Return the loss that fits the model's heads, with gains scaled as published.

    Args:
        model: The model that is trained.
        hyperparameters: Gains and the loss's other numbers.
        image_size: Side of the training images in pixels.
        assignment: How boxes find their cells; by default as published for the model.
        class_counts: Boxes of each class in the training set, for ``class_balance``.
    """
    chosen = assignment or AssignmentSpec()
    return DetectionLoss(
        anchors=model.anchors,
        strides=model.strides,
        num_classes=model.num_classes,
        hyperparameters=scaled_gains(hyperparameters.document(), model.num_classes, len(model.strides), image_size),
        assigner=chosen.assigner or ("coarse_to_fine" if model.num_auxiliary_levels else "none"),
        matching=chosen.matching,
        constraint=chosen.constraint,
        auxiliary_weight=chosen.auxiliary_weight,
        relaxation=chosen.relaxation,
        class_weights=class_weights(class_counts, hyperparameters.class_balance) if class_counts else None,
    )


def class_weights(class_counts: Sequence[int], balance: float) -> tuple[float, ...] | None:
    """Return the weight of each class's boxes in the class term: frequency ** -balance, 1 for the average box.

    The published implementation derives inverse frequencies too, but only to draw images.

    Args:
        class_counts: Boxes of each class.
        balance: 0 gives all boxes the same weight (None is returned), 1 gives all classes the same total.
    """
    total = sum(class_counts)
    if balance == 0 or total == 0:
        return None
    raw = [(total / count) ** balance if count else 0.0 for count in class_counts]
    mean = sum(weight * count for weight, count in zip(raw, class_counts, strict=True)) / total
    return tuple(weight / mean if weight else 1.0 for weight in raw)  # 1 is never used


def open_dataset(data: DataSpec, url: str, *, verify: bool = False) -> ShardDataset:
    """Open one of the job's datasets, with the job's cache or the node's own; check its files if that is asked for."""
    cache = CacheSettings(fetchers=None if data.fetchers == "auto" else data.fetchers)
    if data.cache is not None:
        cache = replace(cache, path=Path(data.cache.path), max_bytes=data.cache.max_bytes)
    cache = cache.on_this_node()
    return open_verified(url, cache) if verify else ShardDataset(url, cache)


def training_stream(
    job: JobSpec,
    dataset: ShardDataset,
    schedule: Schedule,
    deal: Deal | None = None,
    sample_weights: Callable[[], NDArray[np.float64]] | None = None,
) -> TrainingStream:
    """Return the job's endless training stream; its last part is plain images where the recipe says so.

    Args:
        job: What is trained.
        dataset: The training set.
        schedule: Its schedule, which says when mosaics end.
        deal: The deal that the run keeps; that of a fresh run unless given.
        sample_weights: Reads the sample weights that the run keeps; computed unless given. Called only where the
            recipe draws images by weight.
    """
    share = schedule.hyperparameters.image_weights
    weights = None
    if share > 0:
        weights = (sample_weights or (lambda: dataset_weights(dataset, share)))()
    stride = wire(trained_table(job)).max_stride
    sizes = MultiScale(job.seed, job.data.image_size, stride, schedule.hyperparameters.multi_scale)
    return TrainingStream(
        dataset,
        seed=job.seed,
        image_size=job.data.image_size,
        global_batch_size=job.global_batch_size,
        micro_batch_size=job.resolved_micro_batch_size,
        augmentation=schedule.augmentation_at,
        num_threads=job.data.loader_threads,
        loader=choose_loader(job.data.loader, job.data.loader_threads, job.data.image_size),
        image_size_at=sizes.at,
        largest_image_size=sizes.limit,
        max_pixels=job.data.max_pixels,
        deal=deal or chosen_deal(job.data, dataset),
        num_steps=schedule.num_steps,
        sample_weights=weights,
        augment_on=job.data.augment_on,
    )


def chosen_deal(data: DataSpec, dataset: ShardDataset) -> Deal:
    """Return how a fresh run deals its shards: once where a node's cache cannot hold them all, unless the job says."""
    if data.deal != "auto":
        return data.deal
    num_bytes = sum(entry.bytes for entry in dataset.manifest.shards)
    return "fixed" if num_bytes > dataset.cache_settings.max_bytes else "epoch"  # wherever they lie: they may be moved


def dataset_weights(dataset: ShardDataset, share: float) -> NDArray[np.float64]:
    """Return how often each sample is drawn an epoch; reads every annotation of the dataset."""
    return image_weights(survey_boxes(dataset), len(dataset.classes), share)


def driver_device(job: JobSpec) -> torch.device:
    """Return the device for what the command itself computes: it may run where the workers' GPUs are not."""
    return torch.device("cpu") if job.cluster.gpus_per_worker == 0 else select_device("auto", "device")
