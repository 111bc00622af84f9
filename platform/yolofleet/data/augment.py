"""One training sample from the images of its micro-batch: mosaic, warp, mixup, colour, pasted objects, flip.

Equal in distribution to the published augmentation, with two differences in the order of work: partners come from
the same micro-batch, so every image is decoded once a step instead of four times, and images are drawn straight
into the output. A sample's random numbers come from one generator, keyed by the sample's position in the stream.

Steps of one's own (`AugmentationStep`) follow the built-in ones. All built-in random numbers are drawn before theirs,
so adding a step changes nothing else about a sample.

Colour and flips can be left to a device, for a whole micro-batch at once (`Finish`). Their parameters are drawn with
all others of a sample, so what comes out is still a pure function of the sample's position, and equal to what the host
makes of it but for the rounding to whole levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from yolofleet.core.errors import UserError
from yolofleet.core.text import plural
from yolofleet.data.geometry import Targets, draw_warp, join_targets, visible_targets
from yolofleet.data.image_formats import BufferPool
from yolofleet.data.mosaic import Layout, draw_partners, mosaic_of_four, mosaic_of_nine, render, single_image
from yolofleet.data.records import LabelledImage
from yolofleet.specs.hyperparameters import Augmentation, AugmentationStep

if TYPE_CHECKING:
    from torch import Tensor

MIXUP_BETA = 8.0
PASTE_SIZE_SHARES = (0.75,) * 2 + (0.5,) * 4 + (0.25,) * 4 + (0.125,) * 4 + (0.0625,) * 6
"""Largest side of each rectangle that is tried for a pasted object, as a share of the image's side."""
PASTE_SKIPPED_SHARE = 0.2
MOST_HIDDEN_SHARE = 0.3
LEAST_ROOM_PIXELS = 20
LEAST_SIDE_PIXELS = 10
LEAST_MASK_PIXELS = 20

_YIQ_FROM_RGB = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_RGB_FROM_YIQ = np.linalg.inv(_YIQ_FROM_RGB)


@dataclass(frozen=True)
class Finish:
    """What is left to do with the images of a micro-batch."""

    colours: NDArray[np.float32]
    """(B, 3, 3) colour matrix of each image, for RGB columns."""
    flips: NDArray[np.bool_]
    """(B, 2) whether each image is turned upside down, and whether it is mirrored."""

    @staticmethod
    def nothing(num_images: int) -> Finish:
        """Return what changes no image."""
        return Finish(np.tile(np.eye(3, dtype=np.float32), (num_images, 1, 1)), np.zeros((num_images, 2), dtype=bool))


class Augmenter:
    """Augments the samples of one micro-batch, one after the other, in buffers that it keeps."""

    def __init__(self, settings: Augmentation, side: int, buffers: BufferPool | None = None) -> None:
        buffers = buffers or BufferPool()
        self._settings = settings
        self._side = side
        self._image = buffers.take(side, side, 3)
        self._second = buffers.take(side, side, 3)

    def augment(
        self,
        own: int,
        images: list[LabelledImage],
        generator: np.random.Generator,
        planes: NDArray[np.uint8],
        finish: Finish | None = None,
    ) -> Targets:
        """Make one sample.

        Args:
            own: Number of the sample's own image in ``images``.
            images: All images of the micro-batch.
            generator: The sample's random numbers.
            planes: (3, side, side) where the RGB image is written.
            finish: Takes what can be done with the image later; None: all is done here.
        """
        settings = self._settings
        is_mosaic = generator.random() < settings.mosaic
        targets = self._compose(own, images, is_mosaic, generator, self._image)
        if is_mosaic and generator.random() < settings.mixup:
            targets = self._mix(targets, images, generator)
        colour, pastes = draw_colour(settings, generator), generator.random() < settings.paste_in
        if colour is not None and finish is not None and not pastes and not settings.extra_augmentations:
            finish.colours[own] = colour
        elif colour is not None:  # into the other buffer: OpenCV is slower in place
            self._image, self._second = cv2.transform(self._image, colour, dst=self._second), self._image
        if pastes:
            targets = paste_objects(self._image, targets, images, generator)
        upside_down, mirrored = generator.random(2) < (settings.flipud, settings.fliplr)
        for step in settings.extra_augmentations:
            if generator.random() < step.share:
                targets = self._apply_step(step, targets, generator)
        cv2.split(self._image, list(planes))
        if finish is None:
            flip_planes(planes, upside_down=upside_down, mirrored=mirrored)
        else:
            finish.flips[own] = upside_down, mirrored
        x1, y1, x2, y2 = targets.boxes.T
        if mirrored:
            x1, x2 = self._side - x2, self._side - x1
        if upside_down:
            y1, y2 = self._side - y2, self._side - y1
        return Targets(np.stack([x1, y1, x2, y2], axis=1), targets.classes)

    def _compose(
        self,
        own: int,
        images: list[LabelledImage],
        is_mosaic: bool,
        generator: np.random.Generator,
        output: NDArray[np.uint8],
    ) -> Targets:
        layout = self._draw_layout(own, images, is_mosaic, generator)
        warp, scale = draw_warp(self._settings, layout.size, self._side, generator)
        placements = render(layout, images, warp, scale, output)
        return visible_targets(placements, images)

    def _draw_layout(
        self, own: int, images: list[LabelledImage], is_mosaic: bool, generator: np.random.Generator
    ) -> Layout:
        sizes = [image.size for image in images]
        if not is_mosaic:
            return single_image(own, sizes, self._side)
        is_nine = generator.random() < self._settings.mosaic9_share
        partners = draw_partners(own, len(images), 9 if is_nine else 4, generator)
        make_layout = mosaic_of_nine if is_nine else mosaic_of_four
        return make_layout(partners, sizes, self._side, generator)

    def _mix(self, targets: Targets, images: list[LabelledImage], generator: np.random.Generator) -> Targets:
        """Blend with a second mosaic around a random image; both keep all their targets, as published."""
        share = generator.beta(MIXUP_BETA, MIXUP_BETA)
        second = self._compose(int(generator.integers(len(images))), images, True, generator, self._second)
        cv2.addWeighted(self._image, share, self._second, 1.0 - share, 0.0, dst=self._image)
        return join_targets([targets, second])

    def _apply_step(self, step: AugmentationStep, targets: Targets, generator: np.random.Generator) -> Targets:
        image, boxes, classes = step.apply(self._image, targets.boxes, targets.classes, generator)
        boxes, classes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4), np.asarray(classes, dtype=np.int64)
        if image.shape != self._image.shape or image.dtype != np.uint8 or classes.shape != (len(boxes),):
            raise UserError(
                f"augmentation '{step.name}' returned an image {image.shape} of {image.dtype}, "
                f"{plural(len(boxes), 'box')} and classes {classes.shape}; it must return an image "
                f"{self._image.shape} of uint8 and a class a box"
            )
        if image is not self._image:
            np.copyto(self._image, image)
        boxes = np.clip(boxes, 0.0, float(self._side))
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)  # false for NaN
        return Targets(boxes[has_area], classes[has_area])


def flip_planes(planes: NDArray[np.uint8], *, upside_down: bool, mirrored: bool) -> None:
    """Flip (3, side, side) in place (one by one is three times faster than all channels together)."""
    if mirrored:
        rows = planes.reshape(-1, planes.shape[2])
        cv2.flip(rows, 1, dst=rows)
    if upside_down:
        for plane in planes:
            cv2.flip(plane, 0, dst=plane)


def draw_colour(settings: Augmentation, generator: np.random.Generator) -> NDArray[np.float32] | None:
    """Draw a (3, 3) colour matrix for RGB columns; None where the settings change nothing."""
    hue, saturation, brightness = generator.uniform(-1.0, 1.0, size=3)
    if settings.hsv_h == settings.hsv_s == settings.hsv_v == 0:
        return None
    # The published gain moves a hue by a share of itself: over all hues by half the circle on average, hence pi.
    return colour_matrix(
        hue * settings.hsv_h * math.pi, 1 + saturation * settings.hsv_s, 1 + brightness * settings.hsv_v
    )


def colour_matrix(hue_radians: float, saturation_gain: float, brightness_gain: float) -> NDArray[np.float32]:
    """Return the (3, 3) matrix that turns hue, scales saturation and scales brightness of RGB columns.

    Ten times cheaper than a trip through HSV with lookup tables. Hue is a rotation of the chroma plane of YIQ,
    saturation scales that plane, brightness scales everything; OpenCV clips to 0..255 as the published tables do. It
    is not bit-equal to HSV, whose hue gain is proportional to the hue (so red never changes) and whose saturation
    keeps the largest channel; it is the same family, as strong.
    """
    cosine, sine = saturation_gain * math.cos(hue_radians), saturation_gain * math.sin(hue_radians)
    chroma = np.array([[1.0, 0.0, 0.0], [0.0, cosine, -sine], [0.0, sine, cosine]])
    return np.asarray(brightness_gain * _RGB_FROM_YIQ @ chroma @ _YIQ_FROM_RGB, dtype=np.float32)


def paste_objects(
    image: NDArray[np.uint8], targets: Targets, images: list[LabelledImage], generator: np.random.Generator
) -> Targets:
    """Paste cut-out objects of the micro-batch into an image, in place (published as "paste-in").

    Objects with polygons are scaled into a randomly drawn rectangle, and pasted where they hide little of others.

    Args:
        image: (side, side, 3) uint8.
        targets: The targets of the image.
        images: Images of the micro-batch; only their objects with polygons are used.
        generator: The sample's random numbers.

    Returns:
        The targets, with those of the pasted objects.
    """
    sources = [
        (number, int(index))
        for number, labelled in enumerate(images)
        for index in np.flatnonzero(labelled.outlines.has_polygon)
    ]
    if not sources:
        return targets
    side = image.shape[0]
    for share in PASTE_SIZE_SHARES:
        if generator.random() < PASTE_SKIPPED_SHARE:
            continue
        most = max(LEAST_ROOM_PIXELS, round(side * share))
        width, height = (int(value) for value in generator.integers(LEAST_ROOM_PIXELS, most + 1, size=2))
        left = int(generator.integers(0, max(1, side - width + 1)))
        top = int(generator.integers(0, max(1, side - height + 1)))
        number, index = sources[int(generator.integers(len(sources)))]
        room = np.array([left, top, min(left + width, side), min(top + height, side)], dtype=np.float64)
        if _largest_hidden_share(room, targets.boxes) >= MOST_HIDDEN_SHARE:
            continue
        box = _paste(image, images[number], index, room)
        if box is not None:
            targets = join_targets([targets, Targets(box[None], images[number].classes[index : index + 1])])
    return targets


def _largest_hidden_share(room: NDArray[np.float64], boxes: NDArray[np.float64]) -> float:
    """Return the largest share of any box that the room covers."""
    if not len(boxes):
        return 0.0
    low, high = np.maximum(room[:2], boxes[:, :2]), np.minimum(room[2:], boxes[:, 2:])
    covered = np.maximum(high - low, 0.0).prod(axis=1)
    return float((covered / np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), 1e-9)).max())


def _paste(
    image: NDArray[np.uint8], labelled: LabelledImage, index: int, room: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Paste an object at the top left of its room, as large as fits; returns its box, or None if too little is left."""
    x1, y1 = (int(value) for value in np.floor(labelled.boxes[index, :2]))
    x2, y2 = (int(value) for value in np.ceil(labelled.boxes[index, 2:]))
    left, top, right, bottom = (int(value) for value in room)
    gain = min((right - left) / (x2 - x1), (bottom - top) / (y2 - y1))
    width, height = max(1, round((x2 - x1) * gain)), max(1, round((y2 - y1) * gain))
    width, height = min(width, right - left), min(height, bottom - top)
    if min(width, height) <= LEAST_SIDE_PIXELS:
        return None
    mask = np.zeros((height, width), dtype=np.uint8)
    gains = (width / (x2 - x1), height / (y2 - y1))
    polygons = labelled.outlines.polygons(index)
    cv2.fillPoly(mask, [np.round((points - (x1, y1)) * gains - 0.5).astype(np.int32) for points in polygons], 1)
    inside = mask.astype(bool)
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if inside.sum() <= LEAST_MASK_PIXELS or min(np.ptp(rows), np.ptp(columns)) + 1 <= LEAST_SIDE_PIXELS:
        return None
    cut = cv2.resize(labelled.pixels[y1:y2, x1:x2], (width, height))
    image[top : top + height, left : left + width][inside] = cut[inside]
    return np.array([left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1], dtype=np.float64)


def finished(images: Tensor, finish: Finish | None) -> Tensor:
    """Do what is left to do with (B, 3, H, W) RGB in 0..1, on their device and without waiting for it."""
    if finish is None:
        return images
    import torch  # here, because loader processes make no tensors and start four times as fast

    def sent(array: NDArray[np.generic]) -> Tensor:
        tensor = torch.from_numpy(array)
        return (tensor.pin_memory() if images.is_cuda else tensor).to(images.device, non_blocking=True)

    images = torch.einsum("bij,bjhw->bihw", sent(finish.colours).to(images.dtype), images).clamp_(0.0, 1.0)
    flips = sent(finish.flips)[..., None, None, None]  # (B, 2, 1, 1, 1)
    for number, dimension in enumerate((2, 3)):
        if finish.flips[:, number].any():
            images = torch.where(flips[:, number], images.flip(dimension), images)
    return images
