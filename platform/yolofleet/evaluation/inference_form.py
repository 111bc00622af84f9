"""The form of a network that an evaluation computes with: in half precision, and over several scales of each image.

Half precision is what the published figures were computed in, on a GPU: weights, images and every layer's output are
float16, while boxes are decoded in float32, so that a position of 1,000 px is not rounded to a whole pixel. On a CPU
the outputs of the layers are rounded likewise, so it shows what half precision costs in AP; there it is slower.

Test-time augmentation passes each image three times, as the published option does: as it is, at 0.83 of its size and
mirrored, and at 0.67 of its size. The predictions of all three enter one suppression.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from yolofleet.core.errors import UserError
from yolofleet.data.letterbox import PADDING_GREY

Precision = Literal["fp32", "fp16"]
Model = TypeVar("Model", bound=nn.Module)
SCALES: tuple[tuple[float, bool], ...] = ((1.0, False), (0.83, True), (0.67, False))
"""Scale and whether the image is mirrored, of each pass of test-time augmentation."""


def inference_form(model: nn.Module, *, precision: Precision = "fp32", augment: bool = False) -> nn.Module:
    """Return a network as an evaluation computes with it; the original is left as it is.

    Args:
        model: Gives decoded predictions (B, N, 5 + C) in evaluation mode.
        precision: fp32 takes the weights as they are, fp16 a copy of them in half precision.
        augment: Whether each image passes at several scales.

    Raises:
        UserError: Half precision is asked of a network without weights of its own, such as an ONNX file.
    """
    form = half_precision(model) if precision == "fp16" else model
    return AugmentedNetwork(form) if augment else form


def half_precision(model: Model) -> Model:
    """Return a copy of a network in half precision; its anchors stay in float32, for boxes are decoded in it.

    Raises:
        UserError: It has no weights of its own, such as an ONNX file.
    """
    if next(model.parameters(), None) is None:
        raise UserError("half precision needs the weights in torch: this network is a file that computes in float32")
    half = copy.deepcopy(model).half()
    if isinstance(anchors := getattr(model, "anchors", None), Tensor):
        half.anchors = anchors.detach().clone()
    return half


class AugmentedNetwork(nn.Module):
    """A network that sees each image at several scales, once mirrored (test-time augmentation).

    Attributes:
        network: The network itself.
        strides: Its strides in pixels a cell.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.strides: Sequence[int] = network.strides  # type: ignore[assignment]

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) in 0..1 to the decoded predictions of all passes (B, N, 5 + C), in pixels of H, W."""
        width = images.shape[3]
        passes = []
        for scale, mirrored in SCALES:
            seen, horizontal, vertical = self._scaled(images.flip(3) if mirrored else images, scale)
            decoded = self.network(seen).clone()  # (B, n, 5 + C)
            decoded[..., 0:4:2] /= horizontal
            decoded[..., 1:4:2] /= vertical
            if mirrored:
                decoded[..., 0] = width - decoded[..., 0]
            passes.append(decoded)
        return torch.cat(passes, 1)

    def _scaled(self, images: Tensor, scale: float) -> tuple[Tensor, float, float]:
        """Return images at a scale, padded to whole strides on the right and at the bottom, and the exact factors."""
        if scale == 1:
            return images, 1.0, 1.0
        height, width = images.shape[2:]
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        small = functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
        stride = max(self.strides)
        right, bottom = (math.ceil(side / stride) * stride - side for side in reversed(size))
        padded = functional.pad(small, (0, right, 0, bottom), value=PADDING_GREY / 255)
        return padded, size[1] / width, size[0] / height
