"""One training sample from the pictures of its micro-batch: mosaic, warp, mixup, flip, colour.

Equal in distribution to the published augmentation, with two differences in the order of work: partners come from
the same micro-batch, so every picture is decoded once a step instead of four times, and pictures are drawn straight
into the output. A sample's random numbers come from one generator, keyed by the sample's place in the stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from yolofleet.data.augment_settings import AugmentationSettings
from yolofleet.data.colour import draw_colour
from yolofleet.data.geometry import (
    LEAST_AREA_SHARE,
    LEAST_AREA_SHARE_POLYGON,
    clip_boxes,
    draw_warp,
    move_boxes,
    worth_keeping,
)
from yolofleet.data.mosaic import Layout, alone, draw_partners, mosaic_of_four, mosaic_of_nine
from yolofleet.data.picture import Picture
from yolofleet.data.render import Placement, render

__all__ = ["AugmentationSettings", "Augmenter", "Targets"]

MIXUP_BETA = 8.0
CUT_PIXELS = 0.01


@dataclass(frozen=True)
class Targets:
    """Boxes of a sample: (n, 4) x1, y1, x2, y2 in output pixels, and (n,) class indices."""

    boxes: NDArray[np.float64]
    classes: NDArray[np.int64]

    def normalised(self, side: int) -> NDArray[np.float32]:
        """Return (n, 5) class, centre x, centre y, width, height as shares of the side."""
        centres = (self.boxes[:, :2] + self.boxes[:, 2:]) / 2
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        return np.concatenate([self.classes[:, None], centres / side, sides / side], axis=1).astype(np.float32)


class Augmenter:
    """Augments the samples of one micro-batch, one after the other, into buffers that it keeps."""

    def __init__(self, settings: AugmentationSettings, side: int) -> None:
        self._settings = settings
        self._side = side
        self._image = np.empty((side, side, 3), dtype=np.uint8)
        self._second = np.empty((side, side, 3), dtype=np.uint8)

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
        found = [_targets_of(placement, pictures[placement.picture]) for placement in placements]
        return _joined(found)

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
        return _joined([targets, other])

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


def _targets_of(placement: Placement, picture: Picture) -> Targets:
    """Return the targets of a picture where it lies: moved, clipped, and only those of which enough is left."""
    if not len(picture.boxes):
        return Targets(picture.boxes, picture.classes)
    x1, y1, x2, y2 = placement.visible
    seen = clip_boxes(picture.boxes, (x1, y1), (x2, y2))
    left, top, right, bottom = placement.region
    after = clip_boxes(move_boxes(seen, placement.matrix), (left, top), (right, bottom))
    has_polygon = picture.outlines.has_polygon
    if has_polygon.any():
        whole = move_boxes(picture.boxes, placement.matrix)
        is_cut = (np.abs(after - whole) > CUT_PIXELS).any(axis=1) | (not placement.is_upright)
        touched = (after[:, 2:] > after[:, :2]).all(axis=1)
        objects = np.flatnonzero(is_cut & touched & has_polygon)
        tight = picture.outlines.seen_boxes(objects, placement.matrix, placement.region)
        low, high = np.maximum(tight[:, :2], after[objects, :2]), np.minimum(tight[:, 2:], after[objects, 2:])
        after[objects] = np.concatenate([low, high], axis=1)  # a turned cell cuts, too: within both
    least_share = np.where(has_polygon, LEAST_AREA_SHARE_POLYGON, LEAST_AREA_SHARE)
    kept = worth_keeping(seen * (placement.scale * 2), after, least_share)
    return Targets(after[kept], picture.classes[kept])


def _joined(parts: list[Targets]) -> Targets:
    if not parts:
        return Targets(np.empty((0, 4)), np.empty(0, dtype=np.int64))
    return Targets(np.concatenate([part.boxes for part in parts]), np.concatenate([part.classes for part in parts]))
