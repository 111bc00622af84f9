"""One training sample from the pictures of its micro-batch: mosaic, warp, mixup, colour, pasted objects, flip.

Equal in distribution to the published augmentation, with two differences in the order of work: partners come from
the same micro-batch, so every picture is decoded once a step instead of four times, and pictures are drawn straight
into the output. A sample's random numbers come from one generator, keyed by the sample's place in the stream.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from yolofleet.data.augment_settings import AugmentationSettings
from yolofleet.data.buffers import BufferPool
from yolofleet.data.colour import draw_colour
from yolofleet.data.geometry import draw_warp
from yolofleet.data.mosaic import Layout, alone, draw_partners, mosaic_of_four, mosaic_of_nine
from yolofleet.data.paste import paste_objects
from yolofleet.data.picture import Picture
from yolofleet.data.render import render
from yolofleet.data.targets import Targets, joined, seen_targets

__all__ = ["AugmentationSettings", "Augmenter", "Targets"]

MIXUP_BETA = 8.0


class Augmenter:
    """Augments the samples of one micro-batch, one after the other, into buffers that it keeps."""

    def __init__(self, settings: AugmentationSettings, side: int, buffers: BufferPool | None = None) -> None:
        buffers = buffers or BufferPool()
        self._settings = settings
        self._side = side
        self._image = buffers.take(side, side, 3)
        self._second = buffers.take(side, side, 3)

    def augment(
        self, own: int, pictures: list[Picture], generator: np.random.Generator, planes: NDArray[np.uint8]
    ) -> Targets:
        """Make one sample.

        Args:
            own: The sample's own picture, by its number in ``pictures``.
            pictures: All pictures of the micro-batch.
            generator: The sample's random numbers.
            planes: (3, side, side) where the RGB image is written.
        """
        settings, image = self._settings, self._image
        is_mosaic = generator.random() < settings.mosaic
        targets = self._composed(own, pictures, is_mosaic, generator, image)
        if is_mosaic and generator.random() < settings.mixup:
            targets = self._mixed(targets, pictures, generator)
        colour = draw_colour(settings, generator)
        if colour is not None:
            cv2.transform(image, colour, dst=image)
        if generator.random() < settings.paste_in:
            targets = paste_objects(image, targets, pictures, generator)
        targets = self._flipped(targets, generator)
        cv2.split(self._image, list(planes))
        return targets

    def _composed(
        self,
        own: int,
        pictures: list[Picture],
        is_mosaic: bool,
        generator: np.random.Generator,
        image: NDArray[np.uint8],
    ) -> Targets:
        layout = self._layout(own, pictures, is_mosaic, generator)
        warp, scale = draw_warp(self._settings, layout.size, self._side, generator)
        placements = render(layout, pictures, warp, scale, image)
        return seen_targets(placements, pictures)

    def _layout(self, own: int, pictures: list[Picture], is_mosaic: bool, generator: np.random.Generator) -> Layout:
        sizes = [picture.size for picture in pictures]
        if not is_mosaic:
            return alone(own, sizes, self._side)
        is_nine = generator.random() < self._settings.mosaic9_share
        chosen = draw_partners(own, len(pictures), 9 if is_nine else 4, generator)
        make = mosaic_of_nine if is_nine else mosaic_of_four
        return make(chosen, sizes, self._side, generator)

    def _mixed(self, targets: Targets, pictures: list[Picture], generator: np.random.Generator) -> Targets:
        """Blend with a second mosaic around a random picture; both keep all their targets, as published."""
        share = generator.beta(MIXUP_BETA, MIXUP_BETA)
        other = self._composed(int(generator.integers(len(pictures))), pictures, True, generator, self._second)
        cv2.addWeighted(self._image, share, self._second, 1.0 - share, 0.0, dst=self._image)
        return joined([targets, other])

    def _flipped(self, targets: Targets, generator: np.random.Generator) -> Targets:
        upside_down, mirrored = generator.random(2) < (self._settings.flipud, self._settings.fliplr)
        if not (upside_down or mirrored):
            return targets
        code = -1 if upside_down and mirrored else (0 if upside_down else 1)
        self._image, self._second = cv2.flip(self._image, code, dst=self._second), self._image
        x1, y1, x2, y2 = targets.boxes.T
        if mirrored:
            x1, x2 = self._side - x2, self._side - x1
        if upside_down:
            y1, y2 = self._side - y2, self._side - y1
        return Targets(np.stack([x1, y1, x2, y2], axis=1), targets.classes)
