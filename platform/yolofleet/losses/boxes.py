"""Ground-truth boxes, decoded boxes and their overlap."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from yolofleet.losses.levels import is_readable, send

EPSILON = 1e-7
SMALLEST_BUCKET, LARGEST_BUCKET = 8, 256
"""Boxes an image that tables of fixed shape have room for: a power of two."""


@dataclass(frozen=True)
class Boxes:
    """The ground truth of a micro-batch, ordered by image; N boxes."""

    image: Tensor
    """(N,) image index."""
    label: Tensor
    """(N,) class index."""
    xywh: Tensor
    """(N, 4) centre and size as shares of the image."""
    row: Tensor
    """(N,) the box's row in the caller's targets."""
    alive: Tensor
    """(N,) whether the box takes part; on a CPU all do, since the others are left out."""
    per_image: int | None = None
    """How many of them each image has, those that take no part among them; None: as many as it has boxes."""

    def __len__(self) -> int:
        return self.image.shape[0]

    def to(self, device: torch.device) -> Boxes:
        """Copy to another device without waiting."""
        image, label, xywh, row, alive = (
            send(field, device) for field in (self.image, self.label, self.xywh, self.row, self.alive)
        )
        return Boxes(image, label, xywh, row, alive, self.per_image)

    def padded(self, num_images: int) -> Boxes | None:
        """Return as many boxes for each image, a power of two, for tables of few shapes.

        None where an image has more than 256, or where counting them would wait for a device.
        """
        if not is_readable(self.image):
            return None
        counts = self.image.bincount(minlength=num_images)
        room = max(SMALLEST_BUCKET, 1 << (int(counts.max()) - 1).bit_length())
        if room > LARGEST_BUCKET:
            return None
        position = torch.arange(len(self)) + (room * torch.arange(num_images) - counts.cumsum(0) + counts)[self.image]

        def spread(field: Tensor, nothing: float) -> Tensor:
            return field.new_full((num_images * room, *field.shape[1:]), nothing).index_copy_(0, position, field)

        return Boxes(
            image=torch.arange(num_images).repeat_interleave(room),
            label=spread(self.label, 0),
            xywh=spread(self.xywh, 0.5),
            row=spread(self.row, -1),
            alive=spread(self.alive, False),
            per_image=room,
        )


def read_boxes(targets: Tensor, num_images: int, num_classes: int, dtype: torch.dtype, keep_degenerate: bool) -> Boxes:
    """Order targets by image and leave out boxes without an area or with a NaN or infinite coordinate.

    Args:
        targets: (N, 6) image index, class index, cx, cy, w, h; the box as shares of the image.
        num_images: Images in the micro-batch.
        num_classes: Classes of the detector.
        dtype: Floating type to compute in.
        keep_degenerate: Let boxes without an area take part, as in the published implementation.

    Raises:
        ValueError: Targets are not a tensor (N, 6), or an image or class index is out of range. (Indices on a device
            end in the device's own assertion: reading them here would make the host wait.)
    """
    if not isinstance(targets, Tensor) or targets.ndim != 2 or targets.shape[1] != 6:
        given = f"a tensor {tuple(targets.shape)}" if isinstance(targets, Tensor) else f"a {type(targets).__name__}"
        raise ValueError(f"targets must be (N, 6): image, class, cx, cy, w, h; they are {given}")
    order = torch.argsort(targets.detach()[:, 0], stable=True)
    targets = targets.detach().index_select(0, order)
    image, label = targets[:, 0].long(), targets[:, 1].long()
    xywh = targets[:, 2:].to(dtype)
    alive = torch.ones_like(order, dtype=torch.bool)
    if not keep_degenerate:
        total = xywh.sum(1)
        alive = (xywh[:, 2:].amin(1) > 0) & (total - total == 0)  # infinity and NaN leave no 0
    if not is_readable(targets):
        # Values under a mask must be finite too: NaN x 0 is NaN.
        return Boxes(image, label, torch.where(alive[:, None], xywh, 0.5), order, alive)
    _check_range(image, num_images, "image", order)
    _check_range(label, num_classes, "class", order)
    if alive.all():
        return Boxes(image, label, xywh, order, alive)
    return Boxes(image[alive], label[alive], xywh[alive], order[alive], alive[alive])


def _check_range(index: Tensor, limit: int, noun: str, rows: Tensor) -> None:
    outside = (index < 0) | (index >= limit)
    if outside.any():
        first = int(outside.int().argmax())
        raise ValueError(
            f"target row {int(rows[first])} has {noun} index {int(index[first])}; "
            f"the {noun} indices here are 0 to {limit - 1}"
        )


def decode_centre(share: Tensor) -> Tensor:
    """Decode a box's centre (..., 2) from the sigmoid of x and y: -0.5 to 1.5 cells from its cell's corner."""
    return share * 2.0 - 0.5


def decode_size(share: Tensor, anchor: Tensor) -> Tensor:
    """Decode a box's size (..., 2) from the sigmoid of width and height: at most four anchors."""
    return (share * 2.0).square() * anchor


class BoxFit(NamedTuple):
    """CIoU (n,), at most 1, and the aspect trade-off alpha (n,) used in it, without gradient."""

    quality: Tensor
    alpha: Tensor


def complete_iou(first: Tensor, second: Tensor, alpha: Tensor | None = None) -> BoxFit:
    """Compute CIoU (Zheng et al. 2020, "Distance-IoU loss"): overlap less centre distance less difference of aspect.

    As in the published implementation, heights are raised by 1e-7, and so are the union and the enclosing diagonal;
    boxes without an area give a finite value and gradient.

    Args:
        first: (n, 4) cx, cy, w, h of the predictions.
        second: (n, 4) cx, cy, w, h of the ground truth.
        alpha: (n,) trade-off of the aspect term; by default computed from the boxes. It carries no gradient.
    """
    both = torch.stack([first, second])  # (2, n, 4)
    centre, half = both[..., :2], both[..., 2:] / 2
    low, high = centre - half, centre + half  # (2, n, 2)
    size = high - low
    width, height = size[..., 0], size[..., 1] + EPSILON  # (2, n)

    overlap = (high.amin(0) - low.amax(0)).clamp(min=0)
    intersection = overlap[:, 0] * overlap[:, 1]
    iou = intersection / ((width * height).sum(0) - intersection + EPSILON)

    diagonal = (high.amax(0) - low.amin(0)).square().sum(1) + EPSILON
    distance = (low + high).diff(dim=0)[0].square().sum(1) / 4
    aspect = (4 / math.pi**2) * torch.atan(width / height).diff(dim=0)[0].square()
    if alpha is None:
        with torch.no_grad():
            alpha = aspect / (aspect - iou + (1 + EPSILON))
    return BoxFit(iou - (distance / diagonal + alpha * aspect), alpha)
