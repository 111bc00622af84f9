"""Learning rate, momentum and averaging decay as pure functions of the step, so that a restart needs no state of them.

Warm-up is linear in the step: the biases fall from ``warmup_bias_lr`` to the schedule, everything else rises from 0,
and momentum rises from ``warmup_momentum``. The cosine (or line) is a function of the epoch begun, as published.

Where the epochs of a finished run were raised, the steps before keep the schedule that they were trained by, and those
after follow the one of a run that had the raised epochs from its start. There is no second warm-up.

The image size of a step, where training is at several scales, is drawn from the seed and the step alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from yolofleet.data.order import Purpose, keyed_generator
from yolofleet.specs.hyperparameters import Augmentation, Hyperparameters
from yolofleet.specs.job import JobSpec

NOMINAL_BATCH_SIZE = 64
"""The batch that the published weight decay is meant for."""


@dataclass(frozen=True)
class StepSettings:
    """What the optimiser uses in one step."""

    learning_rate: float
    bias_learning_rate: float
    momentum: float


@dataclass(frozen=True)
class EarlierPlan:
    """The length that a run was planned for, before its epochs were raised."""

    epochs: float
    """Its epochs then."""
    num_steps: int
    """Their steps."""
    until_step: int
    """The step from which the next plan holds."""


EARLIER_EPOCHS = "earlier_epochs"
"""Fact of a run: what its `EarlierPlan` objects hold, oldest first, as [epochs, until_step]."""


@dataclass(frozen=True)
class Schedule:
    """The schedule of one run."""

    hyperparameters: Hyperparameters
    """Peak values and shapes."""
    num_steps: int
    """Steps of the whole run."""
    steps_per_epoch: float
    """Steps of one pass over the training set; need not be a whole number."""
    earlier: tuple[EarlierPlan, ...] = ()
    """Plans of before the epochs were raised, oldest first."""

    @classmethod
    def of_run(cls, job: JobSpec, num_samples: int, facts: Mapping[str, Any]) -> Schedule:
        """Return the schedule of a job's run.

        Args:
            job: What is trained.
            num_samples: Samples of the training set.
            facts: Those of the run directory, which know of earlier epochs.
        """
        earlier = tuple(
            EarlierPlan(epochs, job.model_copy(update={"epochs": epochs}).num_steps(num_samples), int(until_step))
            for epochs, until_step in facts.get(EARLIER_EPOCHS, [])
        )
        steps_per_epoch = num_samples / job.global_batch_size
        return cls(job.resolved_hyperparameters(), job.num_steps(num_samples), steps_per_epoch, earlier)

    def planned_steps(self, step: int) -> int:
        """Return the steps of the whole run as they were planned when a step (the first is 0) was due."""
        return next((plan.num_steps for plan in self.earlier if step < plan.until_step), self.num_steps)

    @property
    def recipe_warmup_steps(self) -> int:
        """Steps of the recipe's warm-up, at least its minimum."""
        recipe = self.hyperparameters
        wanted = max(round(recipe.warmup_epochs * self.steps_per_epoch), recipe.warmup_min_steps)
        return wanted if recipe.warmup_epochs > 0 else 0

    @property
    def warmup_steps(self) -> int:
        """Steps of the warm-up: the recipe's, at most the share of the run that it allows."""
        return min(self.recipe_warmup_steps, math.floor(self.planned_steps(0) * self.hyperparameters.warmup_most_share))

    def factor(self, epoch: float, num_steps: int | None = None) -> float:
        """Return the share of lr0 in an epoch: 1 at the start, ``lrf`` at the end, of a run of so many steps."""
        progress = min(1.0, epoch * self.steps_per_epoch / (num_steps or self.num_steps))
        lrf = self.hyperparameters.lrf
        if self.hyperparameters.schedule == "linear":
            return (1 - progress) * (1 - lrf) + lrf
        return (1 + math.cos(math.pi * progress)) / 2 * (1 - lrf) + lrf

    def at(self, step: int) -> StepSettings:
        """Return the settings of a step (the first is 0)."""
        recipe = self.hyperparameters
        peak = recipe.lr0 * self.factor(math.floor(step / self.steps_per_epoch), self.planned_steps(step))
        warmup = self.warmup_steps
        if step > warmup or warmup == 0:
            return StepSettings(peak, peak, recipe.momentum)
        share = step / warmup
        first_momentum = recipe.warmup_momentum if recipe.optimizer == "sgd" else recipe.momentum
        return StepSettings(
            learning_rate=share * peak,
            bias_learning_rate=recipe.warmup_bias_lr + share * (peak - recipe.warmup_bias_lr),
            momentum=first_momentum + share * (recipe.momentum - first_momentum),
        )

    def closes_mosaic(self, step: int) -> bool:
        """Return whether the step lies in the last part of the run, which is trained on single images."""
        return step >= self.planned_steps(step) * (1 - self.hyperparameters.close_mosaic_share)

    def first_single_images(self, start: int, end: int) -> int | None:
        """Return the first step from ``start`` to before ``end`` that is trained on single images; None without one."""
        parts = [(plan.until_step, plan.num_steps) for plan in self.earlier] + [(end, self.num_steps)]
        for until, planned in parts:
            first = max(start, math.ceil(planned * (1 - self.hyperparameters.close_mosaic_share)))
            if first < min(until, end):
                return first
            start = max(start, until)
        return None

    @cached_property
    def _single_images(self) -> Augmentation:
        return self.hyperparameters.without_composition()

    def augmentation_at(self, step: int) -> Augmentation:
        """Return the augmentation of a step."""
        return self._single_images if self.closes_mosaic(step) else self.hyperparameters


def averaging_decay(hyperparameters: Hyperparameters, updates: int) -> float:
    """Return the decay of the weight average at its update number ``updates`` (the first is 1)."""
    return hyperparameters.ema_decay * (1 - math.exp(-updates / hyperparameters.ema_ramp_steps))


def scaled_weight_decay(hyperparameters: Hyperparameters, global_batch_size: int) -> float:
    """Return the weight decay for a global batch: losses are summed over it, so the decay grows with it.

    AdamW's decay is no part of the gradient and stays as it is.
    """
    if hyperparameters.optimizer == "adamw":
        return hyperparameters.weight_decay
    return hyperparameters.weight_decay * global_batch_size / NOMINAL_BATCH_SIZE


@dataclass(frozen=True)
class MultiScale:
    """The image size of every step; all workers draw the same."""

    seed: int
    """Seed of the run."""
    image_size: int
    """The job's image size in pixels."""
    stride: int
    """The model's largest stride; every size is a multiple of it."""
    share: float
    """How far sizes lie from the job's, as a share of it; 0 always gives the job's. Published: 0.5."""

    @property
    def limit(self) -> int:
        """No step's size is above it."""
        return round((1 + self.share) * self.image_size) + self.stride

    def at(self, step: int) -> int:
        """Return the size of a step, as published: uniform in whole pixels, then rounded down to a multiple."""
        if self.share == 0:
            return self.image_size
        low, high = round((1 - self.share) * self.image_size), round((1 + self.share) * self.image_size)
        drawn = int(keyed_generator(self.seed, Purpose.IMAGE_SIZE, step).integers(low, high + self.stride))
        return max(self.stride, drawn // self.stride * self.stride)
