"""Training at several scales: the image size of a step, drawn from the seed and the step alone."""

from __future__ import annotations

from dataclasses import dataclass

from yolofleet.data.randomness import Purpose, keyed_generator


@dataclass(frozen=True)
class MultiScale:
    """The image size of every step; all workers draw the same.

    Attributes:
        seed: Seed of the run.
        image_size: The job's image size in pixels.
        stride: The model's largest stride; every size is a multiple of it.
        share: How far sizes lie from the job's, as a share of it; 0 always gives the job's. Published: 0.5.
    """

    seed: int
    image_size: int
    stride: int
    share: float

    def at(self, step: int) -> int:
        """Return the size of a step, as published: uniform in whole pixels, then rounded down to a multiple."""
        if self.share == 0:
            return self.image_size
        low, high = round((1 - self.share) * self.image_size), round((1 + self.share) * self.image_size)
        drawn = int(keyed_generator(self.seed, Purpose.IMAGE_SIZE, step).integers(low, high + self.stride))
        return max(self.stride, drawn // self.stride * self.stride)
