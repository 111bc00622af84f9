"""From a job to its datasets and its training stream."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from yolofleet.data.augment_settings import AugmentationSettings
from yolofleet.data.cache import CacheSettings
from yolofleet.data.dataset import ShardDataset
from yolofleet.data.stream import TrainingStream
from yolofleet.specs.hyperparameters import Hyperparameters
from yolofleet.specs.job import DataSpec, JobSpec
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


def training_stream(job: JobSpec, dataset: ShardDataset, schedule: Schedule) -> TrainingStream:
    """Return the job's endless training stream; its last part is plain images where the recipe says so."""
    full = augmentation(schedule.hyperparameters)
    plain = replace(full, mosaic=0.0, mixup=0.0, paste_in=0.0)
    return TrainingStream(
        dataset,
        seed=job.seed,
        image_size=job.data.image_size,
        global_batch_size=job.global_batch_size,
        micro_batch_size=job.micro_batch_size,
        augmentation=lambda step: plain if schedule.closes_mosaic(step) else full,
        num_threads=job.data.loader_threads,
    )
