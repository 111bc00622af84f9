"""What images come in: their formats, and the memory for their pixels.

A format is known by the first bytes: each has one parser, and no other ever sees its bytes. One that is not read is
named, so that its user knows what to convert. Memory is used again, and large images take it one at a time.
"""

from __future__ import annotations

import io
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
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
from yolofleet.core.text import plural

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


def has_more_frames(data: bytes) -> bool:
    """Return whether an image of a format with frames or pages has more than the first, as far as its header tells."""
    if is_jpeg(data):
        return False  # further images of a JPEG are previews
    try:
        return bool(getattr(open_image(data), "is_animated", False))
    except Exception:  # parsers fail in many ways on damaged bytes; the first frame was read
        return False


def tiff_bands(data: bytes) -> int:
    """Return how many bands a TIFF has; 0 where its header does not say it."""
    bands = _tiff_tags(data).get(_SAMPLES_PER_PIXEL)
    return bands if isinstance(bands, int) else 0


def _kind_of_tiff(data: bytes) -> str:
    levels = "floating-point" if _FLOATING in np.ravel(_tiff_tags(data).get(_SAMPLE_FORMAT, 1)) else "integer"
    return f"a TIFF of {plural(tiff_bands(data) or 1, 'band')} of {levels} levels; save it as RGB with 8 bits"


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


LARGE_PIXELS = 32_000_000
"""Of the images that are larger, a pool's users decode one at a time."""
_REFERENCES_OF_A_FREE_BUFFER = next(sys.getrefcount(buffer) for buffer in [np.empty(0, np.uint8)])
"""A list and a loop variable, as in `BufferPool.take`; before Python 3.14 the argument of getrefcount counts, too."""
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
        self._large = threading.Lock()

    @contextmanager
    def room_for(self, num_pixels: int) -> Iterator[None]:
        """Wait until no other large image is being decoded, where this one is large."""
        with self._large if num_pixels > LARGE_PIXELS else nullcontext():
            yield

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
