"""The prediction head: a 1x1 convolution a level, with implicit knowledge, and the decoding of its numbers to boxes.

Implicit knowledge (YOLOR; paper section 4.3): a learned vector, added to or multiplied with a feature map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

DEVIATION = 0.02


class ImplicitAdd(nn.Module):
    """Adds a learned value to each channel; starts near 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.empty(1, channels, 1, 1))
        nn.init.normal_(self.value, 0.0, DEVIATION)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return x + self.value


class ImplicitMultiply(nn.Module):
    """Multiplies each channel by a learned value; starts near 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.empty(1, channels, 1, 1))
        nn.init.normal_(self.value, 1.0, DEVIATION)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return x * self.value


OBJECTS_AT_START = 8.0
"""Objects expected in an image of 640 px, for the first objectness bias."""
PRIOR_IMAGE_SIZE = 640
CLASS_PRIOR = 0.6
BOX_AND_OBJECTNESS = 5


class Head(nn.Module):
    """Lead predictions, and in the training form those of the auxiliary head."""

    def __init__(
        self,
        lead_channels: Sequence[int],
        auxiliary_channels: Sequence[int],
        *,
        num_anchors: int,
        num_classes: int,
        strides: Sequence[int],
        implicit: bool,
    ) -> None:
        super().__init__()
        self.num_anchors = num_anchors
        out = num_anchors * (BOX_AND_OBJECTNESS + num_classes)
        self.lead = nn.ModuleList(nn.Conv2d(channels, out, 1) for channels in lead_channels)
        self.auxiliary = nn.ModuleList(nn.Conv2d(channels, out, 1) for channels in auxiliary_channels)
        self.add = nn.ModuleList(ImplicitAdd(channels) for channels in lead_channels if implicit)
        self.multiply = nn.ModuleList(ImplicitMultiply(out) for _ in lead_channels if implicit)
        for convs in (self.lead, self.auxiliary):
            for conv, stride in zip(convs, strides, strict=False):
                _start_biases(conv, num_anchors, num_classes, stride)

    def forward(self, lead: Sequence[Tensor], auxiliary: Sequence[Tensor]) -> list[Tensor]:
        """Predict.

        Args:
            lead: The lead levels' features, (B, C, H, W) each.
            auxiliary: Those of the auxiliary levels; none where only the lead head is wanted.

        Returns:
            Raw predictions (B, anchors, H, W, 5 + classes), lead levels first.
        """
        raw = []
        for level, x in enumerate(lead):
            has_implicit = len(self.add) > 0
            z = self.lead[level](self.add[level](x) if has_implicit else x)
            raw.append(self._by_anchor(self.multiply[level](z) if has_implicit else z))
        for level, x in enumerate(auxiliary):
            raw.append(self._by_anchor(self.auxiliary[level](x)))
        return raw

    def _by_anchor(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        x = x.view(batch, self.num_anchors, channels // self.num_anchors, height, width)
        return x.permute(0, 1, 3, 4, 2).contiguous()  # (B, anchors, H, W, 5 + classes)


def _start_biases(conv: nn.Module, num_anchors: int, num_classes: int, stride: int) -> None:
    """Start objectness and classes at their expected frequency, on top of the usual random bias."""
    assert isinstance(conv, nn.Conv2d) and conv.bias is not None
    with torch.no_grad():
        bias = conv.bias.view(num_anchors, -1)
        bias[:, 4] += math.log(OBJECTS_AT_START / (PRIOR_IMAGE_SIZE / stride) ** 2)
        bias[:, 5:] += math.log(CLASS_PRIOR / (num_classes - 0.99))


def decode(raw: Sequence[Tensor], anchors: Tensor, strides: Sequence[int]) -> Tensor:
    """Turn the lead levels' raw predictions into boxes and scores.

    Args:
        raw: One tensor (B, anchors, H, W, 5 + classes) a level.
        anchors: (levels, anchors, 2), width and height in pixels.
        strides: Pixels a cell, of each level.

    Returns:
        (B, boxes, 5 + classes): centre x, centre y, width, height in pixels, objectness, class scores; boxes are
        ordered by level, anchor, row, column.
    """
    return torch.cat([_decode_level(x, anchors[level], strides[level]) for level, x in enumerate(raw)], 1)


def _decode_level(raw: Tensor, anchors: Tensor, stride: int) -> Tensor:
    batch, num_anchors, height, width, num_values = raw.shape
    # Half precision would round a position of 1000 px to whole pixels, bfloat16 to steps of 4.
    raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
    scores = raw.sigmoid()
    rows = torch.arange(height, device=raw.device, dtype=raw.dtype)
    columns = torch.arange(width, device=raw.device, dtype=raw.dtype)
    corner = torch.stack((columns.expand(height, width), rows[:, None].expand(height, width)), -1)  # (H, W, 2)
    centre = (scores[..., 0:2] * 2 - 0.5 + corner) * stride
    size = (scores[..., 2:4] * 2) ** 2 * anchors.to(raw.dtype).view(1, num_anchors, 1, 1, 2)
    decoded = torch.cat((centre, size, scores[..., 4:]), -1)
    return decoded.view(batch, num_anchors * height * width, num_values)
