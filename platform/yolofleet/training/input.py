"""From a job to its datasets and its training stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yolofleet.data.augment_settings import AugmentationSettings
from yolofleet.data.cache import CacheSettings
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.image_weights import image_weights
from yolofleet.data.stream import TrainingStream
from yolofleet.data.survey import survey_boxes
from yolofleet.models.wiring import wire
from yolofleet.specs.hyperparameters import Hyperparameters
from yolofleet.specs.job import DataSpec, JobSpec
from yolofleet.training.model import trained_table
from yolofleet.training.multi_scale import MultiScale
from yolofleet.training.schedule import Schedule


def open_dataset(data: DataSpec, url: str) -> ShardDataset:
    """Open one of the job's datasets, with the job's cache."""
    cache = None
    if data.cache is not None:
        cache = CacheSettings(path=Path(data.cache.path), max_bytes=data.cache.max_bytes)
    return ShardDataset(url, cache)


def augmentation(hyperparameters: Hyperparameters) -> AugmentationSettings:
    """Return the augmentation that the hyper-parameters describe."""
    return AugmentationSettings(
        mosaic=hyperparameters.mosaic,
        mosaic9_share=hyperparameters.mosaic9_share,
        mixup=hyperparameters.mixup,
        paste_in=hyperparameters.paste_in,
        degrees=hyperparameters.degrees,
        translate=hyperparameters.translate,
        scale=hyperparameters.scale,
        shear=hyperparameters.shear,
        perspective=hyperparameters.perspective,
        hsv_h=hyperparameters.hsv_h,
        hsv_s=hyperparameters.hsv_s,
        hsv_v=hyperparameters.hsv_v,
        flipud=hyperparameters.flipud,
        fliplr=hyperparameters.fliplr,
    )


def training_stream(
    job: JobSpec,
    dataset: ShardDataset,
    schedule: Schedule,
    sample_weights: Callable[[], NDArray[np.float64]] | None = None,
) -> TrainingStream:
    """Return the job's endless training stream; its last part is plain images where the recipe says so.

    Args:
        job: What is trained.
        dataset: The training set.
        schedule: Its schedule, which knows the steps that close the mosaic.
        sample_weights: Reads the sample weights where the run keeps them; they are computed unless given. Asked only
            where the recipe draws images by weight.
    """
    share = schedule.hyperparameters.image_weights
    weights = None
    if share > 0:
        weights = (sample_weights or (lambda: dataset_weights(dataset, share)))()
    full = augmentation(schedule.hyperparameters)
    plain = replace(full, mosaic=0.0, mixup=0.0, paste_in=0.0)
    stride = wire(trained_table(job)).max_stride
    sizes = MultiScale(job.seed, job.data.image_size, stride, schedule.hyperparameters.multi_scale)
    return TrainingStream(
        dataset,
        seed=job.seed,
        image_size=job.data.image_size,
        global_batch_size=job.global_batch_size,
        micro_batch_size=job.micro_batch_size,
        augmentation=lambda step: plain if schedule.closes_mosaic(step) else full,
        num_threads=job.data.loader_threads,
        image_size_at=sizes.at,
        sample_weights=weights,
    )


def dataset_weights(dataset: ShardDataset, share: float) -> NDArray[np.float64]:
    """Return how often each sample is drawn an epoch; reads every annotation of the dataset."""
    return image_weights(survey_boxes(dataset), len(dataset.classes), share)
