"""The formats of images, known by their first bytes: each has one parser, and no other ever sees its bytes.

A format that is not read is named, so that its user knows what to convert.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from yolofleet.core.errors import UserError

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_SAMPLES_PER_PIXEL, _SAMPLE_FORMAT, _FLOATING = 277, 339, 3


class ImageError(UserError):
    """These bytes are not an image that can be used; ``reason`` is a short word to count it by."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def is_jpeg(data: bytes) -> bool:
    """Return whether bytes begin as a JPEG does."""
    return data[:3] == b"\xff\xd8\xff"


def open_image(data: bytes) -> Image.Image:
    """Read a header. The plug-in is named here, so that no other of Pillow's parsers ever sees foreign bytes."""
    name, plugin = format_of(data)
    try:
        return plugin(io.BytesIO(data))
    except SyntaxError as error:
        if name == "tiff" and "pixel mode" in str(error):  # what Pillow says of pixels that it does not read
            raise ImageError("image_unknown", _kind_of_tiff(data)) from error
        raise ImageError("image_damaged", f"damaged {name} header: {error}") from error
    except Image.DecompressionBombError as error:
        raise ImageError("image_too_large", f"{name}: {error}") from error
    except Exception as error:  # parsers fail in many ways on damaged bytes; all of them mean the same
        raise ImageError("image_damaged", f"damaged {name} header: {type(error).__name__}: {error}") from error


def tiff_bands(data: bytes) -> int:
    """Return how many bands a TIFF has; 0 where its header does not say it."""
    return int(_tiff_tags(data).get(_SAMPLES_PER_PIXEL, 0))


def _kind_of_tiff(data: bytes) -> str:
    tags = _tiff_tags(data)
    levels = "floating-point" if _FLOATING in np.ravel(tags.get(_SAMPLE_FORMAT, 1)) else "integer"
    return f"a TIFF of {tags.get(_SAMPLES_PER_PIXEL, 1)} bands of {levels} levels; save it as RGB with 8 bits"


def _tiff_tags(data: bytes) -> dict[int, Any]:
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[:16] if data[2:3] == b"+" or data[3:4] == b"+" else data[:8])
    source = io.BytesIO(data)
    try:
        source.seek(tags.next)
        tags.load(source)
        return {tag: tags[tag] for tag in (_SAMPLES_PER_PIXEL, _SAMPLE_FORMAT) if tag in tags}
    except Exception:  # parsers fail in many ways on damaged bytes
        return {}


def format_of(data: bytes) -> tuple[str, Callable[[io.BytesIO], Image.Image]]:
    """Return the usual extension of the bytes' format, and its parser."""
    if is_jpeg(data):
        return "jpg", JpegImagePlugin.JpegImageFile
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png", PngImagePlugin.PngImageFile
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp", WebPImagePlugin.WebPImageFile
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif", GifImagePlugin.GifImageFile
    if data[:2] == b"BM":
        return "bmp", BmpImagePlugin.BmpImageFile
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):  # the latter two are BigTIFF
        return "tiff", TiffImagePlugin.TiffImageFile
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS and b"avif" not in data[16:64]:
        raise ImageError("image_unknown", "a HEIC image, as phones save them; convert it to JPEG")
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis"):
        return "avif", AvifImagePlugin.AvifImageFile
    start = data[:24].decode("ascii", errors="replace")
    raise ImageError("image_unknown", f"not an image of a known format; it starts with {start!r}")
