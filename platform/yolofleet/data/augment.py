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
        settings = self._settings
        is_mosaic = generator.random() < settings.mosaic
        targets = self._composed(own, pictures, is_mosaic, generator, self._image)
        if is_mosaic and generator.random() < settings.mixup:
            targets = self._mixed(targets, pictures, generator)
        self._coloured(generator)
        if generator.random() < settings.paste_in:
            targets = paste_objects(self._image, targets, pictures, generator)
        cv2.split(self._image, list(planes))
        return self._flipped(targets, planes, generator)

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

    def _coloured(self, generator: np.random.Generator) -> None:
        colour = draw_colour(self._settings, generator)
        if colour is not None:  # into the other buffer: OpenCV is slower in place
            self._image, self._second = cv2.transform(self._image, colour, dst=self._second), self._image

    def _flipped(self, targets: Targets, planes: NDArray[np.uint8], generator: np.random.Generator) -> Targets:
        """Flip the finished planes in place (one by one is three times faster than all channels together)."""
        upside_down, mirrored = generator.random(2) < (self._settings.flipud, self._settings.fliplr)
        x1, y1, x2, y2 = targets.boxes.T
        if mirrored:
            rows = planes.reshape(-1, self._side)
            cv2.flip(rows, 1, dst=rows)
            x1, x2 = self._side - x2, self._side - x1
        if upside_down:
            for plane in planes:
                cv2.flip(plane, 0, dst=plane)
            y1, y2 = self._side - y2, self._side - y1
        return Targets(np.stack([x1, y1, x2, y2], axis=1), targets.classes)
