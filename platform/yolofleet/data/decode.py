"""Image bytes -> RGB array, safe against any input.

The format is detected from the content, never from a name. The header is read first, and an image with more pixels than
the limit is refused before anything is allocated for it. Plain JPEGs go through libjpeg-turbo in its strict mode, which
reports damaged data that other decoders turn into half-grey images; all other formats go through Pillow. Both release
the interpreter lock while they decode, so threads are enough to feed a trainer.

Unusual images are converted: grey is repeated over three channels; 16-bit grey is scaled to 8 bits (``v >> 8``);
palettes are expanded; alpha is dropped (the colour below it is kept); CMYK is converted; of an animation the first
frame is taken. Levels whose range cannot be known (floating point, more than 16 bits) are refused, not guessed.

Pixels are decoded into memory that is used again: fresh pages cost a training sample a quarter of its time.
"""

from __future__ import annotations

import io
import math
import sys
import threading
from collections.abc import Callable

import numpy as np
import simplejpeg
from numpy.typing import NDArray
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

DEFAULT_MAX_PIXELS = 100_000_000
EXIF_ORIENTATION_TAG = 0x0112

_TRANSPOSES = {  # EXIF orientation -> what brings the stored image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BACK = {Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90}
"""The inverse of a transposition; the others are their own inverse."""
_REFERENCES_OF_A_FREE_BUFFER = 3  # the pool's list, the loop variable, and the argument of getrefcount
_ROUNDING_BYTES = 1 << 16
_MOST_WASTE = 2.0


class BufferPool:
    """Hands out uint8 arrays, and takes them back by itself when nothing refers to them any more.

    An array (or a tensor, or any view) made of a buffer holds a reference to it, so a buffer is free exactly when the
    pool alone knows it. Safe among threads.

    Args:
        most_bytes: Most bytes of all arrays that the pool keeps; further ones are allocated as usual.
    """

    def __init__(self, most_bytes: int = 1 << 30) -> None:
        self._most_bytes = most_bytes
        self._buffers: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def take(self, *shape: int) -> NDArray[np.uint8]:
        """Return an array of a shape; its bytes are not initialised."""
        size = math.prod(shape)
        with self._lock:
            for buffer in self._buffers:
                fits = size <= buffer.size <= _MOST_WASTE * size + _ROUNDING_BYTES
                if fits and sys.getrefcount(buffer) <= _REFERENCES_OF_A_FREE_BUFFER:
                    return buffer[:size].reshape(shape)
            buffer = np.empty(-(-size // _ROUNDING_BYTES) * _ROUNDING_BYTES, dtype=np.uint8)
            self._forget_for(buffer.size)
            if sum(other.size for other in self._buffers) + buffer.size <= self._most_bytes:
                self._buffers.append(buffer)
            return buffer[:size].reshape(shape)

    def _forget_for(self, size: int) -> None:
        """Forget the oldest buffers, in use or of sizes that are not asked for any more, to make room."""
        total = sum(buffer.size for buffer in self._buffers)
        while self._buffers and total + size > self._most_bytes:
            total -= self._buffers.pop(0).size


class ImageError(UserError):
    """These bytes are not an image that can be used; ``reason`` is a short word to count it by."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def decode_image(
    data: bytes,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    annotated_size: tuple[int, int] | None = None,
    buffers: BufferPool | None = None,
) -> NDArray[np.uint8]:
    """Decode an image.

    Args:
        data: The file's bytes, in any of JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF.
        max_pixels: Larger images are refused from their header.
        annotated_size: (width, height) that the annotations speak of. It decides whether an EXIF orientation that swaps
            the sides is applied: only if the turned image fits it and the stored one does not. None shows the
            image upright, as a viewer does.
        buffers: Where to take the memory from.

    Returns:
        (height, width, 3) uint8, RGB, contiguous.

    Raises:
        ImageError: Damaged, not an image, or too large.
    """
    width, height = image_size(data, max_pixels=max_pixels)
    pixels = _decode_stored(data, (height, width), buffers)
    if annotated_size is not None and (annotated_size == (width, height) or annotated_size != (height, width)):
        return pixels
    orientation = exif_orientation(data)
    if orientation == 1 or (annotated_size is not None and orientation < 5):
        return pixels
    return np.ascontiguousarray(Image.fromarray(pixels).transpose(_TRANSPOSES[orientation]))


def image_size(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[int, int]:
    """Return the stored (width, height), read from the header alone.

    Raises:
        ImageError: No image, a damaged header, or more pixels than allowed.
    """
    if not data:
        raise ImageError("image_empty", "the file is empty (0 bytes)")
    if _is_jpeg(data):
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError as error:
            raise ImageError("image_damaged", f"damaged JPEG header: {error}") from error
    else:
        width, height = _stored_size(_open(data))
    if width * height > max_pixels:
        raise ImageError(
            "image_too_large", f"{width}x{height} is {width * height:,} pixels, more than the limit of {max_pixels:,}"
        )
    if width < 1 or height < 1:
        raise ImageError("image_damaged", f"the header says {width}x{height}")
    return int(width), int(height)


def exif_orientation(data: bytes) -> int:
    """Return the EXIF orientation 1..8; 1 (upright) where there is none or it makes no sense."""
    if _is_jpeg(data) and b"Exif\0\0" not in data[: 1 << 16]:
        return 1
    try:
        orientation = _open(data).getexif().get(EXIF_ORIENTATION_TAG, 1)
    except Exception:
        return 1  # a damaged EXIF block, in whatever way it fails, says nothing about the pixels
    return orientation if orientation in _TRANSPOSES else 1


def image_extension(data: bytes) -> str:
    """Return the usual extension of the content's format ("jpg", "png", ...), whatever the file was called.

    Raises:
        ImageError: No known format.
    """
    return _format_of(data)[0]


def _is_jpeg(data: bytes) -> bool:
    return data[:3] == b"\xff\xd8\xff"


def _decode_stored(data: bytes, size: tuple[int, int], buffers: BufferPool | None) -> NDArray[np.uint8]:
    if _is_jpeg(data) and simplejpeg.decode_jpeg_header(data)[2] not in ("CMYK", "YCCK"):
        try:
            memory = None if buffers is None else buffers.take(*size, 3)
            pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", strict=True, buffer=memory)
        except ValueError as error:
            raise ImageError("image_damaged", f"damaged JPEG: {error}") from error
        return pixels
    image = _open(data)
    try:
        orientation = _turned_by_loading(image)
        image.load()
        stored = image if orientation == 1 else image.transpose(_BACK.get(turn := _TRANSPOSES[orientation], turn))
        return np.ascontiguousarray(_to_rgb(stored), dtype=np.uint8)
    except ImageError:
        raise
    except Exception as error:  # parsers fail in many ways on damaged bytes; all of them mean the same
        raise ImageError("image_damaged", f"damaged {image.format}: {type(error).__name__}: {error}") from error


def _turned_by_loading(image: Image.Image) -> int:
    """Return the EXIF orientation that Pillow applies by itself: that of a TIFF, whose ``size`` is the turned one."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 1
    orientation = image.tag_v2.get(EXIF_ORIENTATION_TAG, 1)
    return orientation if orientation in _TRANSPOSES else 1


def _stored_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    return (height, width) if _turned_by_loading(image) >= 5 else (width, height)


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode == "F":
        raise ImageError("image_unknown", "floating-point levels have no known range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min(initial=0) < 0 or levels.max(initial=0) > 0xFFFF:
            raise ImageError("image_unknown", "levels of more than 16 bits; save the image with 8 or 16 bits")
        if image.mode != "I;16" and levels.max(initial=0) < 256:
            levels <<= 8  # 8-bit levels in a wide container
        grey = np.clip(levels >> 8, 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "RGBX"):
        return np.asarray(image.convert("RGBA"), dtype=np.uint8)[:, :, :3]
    return np.asarray(image.convert("RGB"), dtype=np.uint8)


def _open(data: bytes) -> Image.Image:
    """Read a header. The plug-in is named here, so that no other of Pillow's parsers ever sees foreign bytes."""
    name, plugin = _format_of(data)
    try:
        return plugin(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise ImageError("image_too_large", f"{name}: {error}") from error
    except Exception as error:  # parsers fail in many ways on damaged bytes; all of them mean the same
        raise ImageError("image_damaged", f"damaged {name} header: {type(error).__name__}: {error}") from error


def _format_of(data: bytes) -> tuple[str, Callable[[io.BytesIO], Image.Image]]:
    if _is_jpeg(data):
        return "jpg", JpegImagePlugin.JpegImageFile
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png", PngImagePlugin.PngImageFile
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp", WebPImagePlugin.WebPImageFile
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif", GifImagePlugin.GifImageFile
    if data[:2] == b"BM":
        return "bmp", BmpImagePlugin.BmpImageFile
    if data[:4] in (b"II*\0", b"MM\0*"):
        return "tiff", TiffImagePlugin.TiffImageFile
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis"):
        return "avif", AvifImagePlugin.AvifImageFile
    start = data[:24].decode("ascii", errors="replace")
    raise ImageError("image_unknown", f"not an image of a known format; it starts with {start!r}")
