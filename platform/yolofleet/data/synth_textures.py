"""Backgrounds and fillings of the synthetic pictures: colours and patterns that say nothing about a class."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

LEAST_CONTRAST = 80.0
"""Smallest distance, in grey levels, between an object's colour and what lies around it."""


def background(height: int, width: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Return (height, width, 3) uint8: a gradient between two near colours, soft blotches, stripes, fine noise."""
    first = generator.uniform(30, 225, size=3)
    second = np.clip(first + generator.uniform(-50, 50, size=3), 0, 255)
    angle = generator.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:height, 0:width]
    along = (np.cos(angle) * x + np.sin(angle) * y) / max(height, width)
    share = (along - along.min()) / max(float(np.ptp(along)), 1e-6)
    pixels = first + (second - first) * share[:, :, None]
    coarse = generator.normal(0, 1, size=(max(2, height // 24), max(2, width // 24), 3)).astype(np.float32)
    pixels += generator.uniform(3, 14) * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    if generator.random() < 0.3:
        pixels += _pattern(height, width, generator)[:, :, None] * generator.uniform(-15, 15, size=3)
    pixels += generator.normal(0, generator.uniform(1, 4), size=(height, width, 1))
    return np.asarray(np.clip(pixels, 0, 255), dtype=np.uint8)


def textured(pixels: NDArray[np.uint8], mask: NDArray[np.bool_], generator: np.random.Generator) -> None:
    """Fill a mask with a random colour that stands out from its surroundings, plain or with a pattern."""
    if not mask.any():
        return
    height, width = mask.shape
    ring = cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool) & ~mask
    around = pixels[ring if ring.any() else mask].mean(axis=0)
    colour = generator.uniform(0, 255, size=3)
    while np.abs(colour - around).mean() < LEAST_CONTRAST:
        colour = generator.uniform(0, 255, size=3)
    filling = np.broadcast_to(colour, (height, width, 3)).copy()
    if generator.random() < 0.6:
        filling += _pattern(height, width, generator)[:, :, None] * generator.uniform(-30, 30, size=3)
    filling += generator.normal(0, 4, size=(height, width, 1))
    soft = cv2.GaussianBlur(mask.astype(np.float32), (3, 3), 0)[:, :, None]  # softened edges, as a lens draws them
    pixels[:] = np.clip(pixels * (1 - soft) + filling * soft, 0, 255).astype(np.uint8)


def _pattern(height: int, width: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Return (height, width) in -1..1: stripes, a chequerboard or dots, at a random angle and pitch."""
    pitch, angle = generator.uniform(5, 16), generator.uniform(0, np.pi)
    y, x = np.mgrid[0:height, 0:width]
    along = (np.cos(angle) * x + np.sin(angle) * y) / pitch * 2 * np.pi
    across = (np.cos(angle) * y - np.sin(angle) * x) / pitch * 2 * np.pi
    kind = int(generator.integers(3))
    if kind == 0:
        return np.asarray(np.sign(np.sin(along)))
    if kind == 1:
        return np.asarray(np.sign(np.sin(along) * np.sin(across)))
    return np.asarray(np.where(np.sin(along) + np.sin(across) > 0.8, 1.0, -1.0))
