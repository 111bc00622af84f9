"""What augmentation does, as numbers. Names and meaning are those of the published recipe files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """Strengths and shares of every augmentation; the defaults are the published recipe of the large models."""

    mosaic: float = 1.0
    """Share of samples that are made of several images."""
    mosaic9_share: float = 0.2
    """Share of the mosaics that hold nine images; the others hold four."""
    mixup: float = 0.15
    """Share of the mosaics that are blended with a second one."""
    paste_in: float = 0.15
    """Share of samples into which objects with polygons are pasted."""
    degrees: float = 0.0
    """Rotation by up to this angle either way."""
    translate: float = 0.2
    """Shift by up to this share of the output size either way."""
    scale: float = 0.9
    """Size change, uniform between 1 - scale and 1.1 + scale."""
    shear: float = 0.0
    """Shear by up to this angle either way, on both axes."""
    perspective: float = 0.0
    """Perspective terms of up to this size, per pixel."""
    hsv_h: float = 0.015
    """Hue shift by up to this share of the circle either way."""
    hsv_s: float = 0.7
    """Saturation gain, uniform between 1 - hsv_s and 1 + hsv_s."""
    hsv_v: float = 0.4
    """Brightness gain, uniform between 1 - hsv_v and 1 + hsv_v."""
    flipud: float = 0.0
    """Share of samples turned upside down."""
    fliplr: float = 0.5
    """Share of samples mirrored."""

    @staticmethod
    def none() -> AugmentationSettings:
        """Return settings that change nothing: the image alone, letterboxed."""
        return AugmentationSettings(
            mosaic=0, mosaic9_share=0, mixup=0, paste_in=0, translate=0, scale=0, hsv_h=0, hsv_s=0, hsv_v=0, fliplr=0
        )

    @property
    def keeps_shape(self) -> bool:
        """Whether every image is only moved and scaled (by 1 to 1.1 at least), never turned or sheared."""
        return self.degrees == 0 and self.shear == 0 and self.perspective == 0

    @property
    def keeps_size(self) -> bool:
        """Whether images are neither moved nor scaled nor turned: then the output is the letterboxed image."""
        return self.keeps_shape and self.translate == 0 and self.scale == 0
