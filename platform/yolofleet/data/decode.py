"""Image bytes -> RGB array, safe against any input.

The format is detected from the content, never from a name. The header is read first, and an image with more pixels than
the limit is refused before anything is allocated for it. Plain JPEGs go through libjpeg-turbo in its strict mode, which
reports damaged data that other decoders turn into half-grey images, WebP through OpenCV, all other formats through
Pillow. All release the interpreter lock while they decode, so threads are enough to feed a trainer.

Unusual images are converted: grey is repeated over three channels; 16-bit grey is scaled to 8 bits (``v >> 8``);
palettes are expanded; alpha is dropped (the colour below it is kept); CMYK is converted; of an animation the first
frame is taken. Levels whose range cannot be known (floating point, more than 16 bits) are refused, not guessed.

Pixels are decoded into memory that is used again: fresh pages cost a training sample a quarter of its time. Decoding
takes at most three times the bytes of the image's pixels: Pillow's own images are turned into RGB a band at a time.

A network needs far fewer pixels than some images have. Such an image is decoded at a reduced size (`reduction`), so the
images of a micro-batch take a bounded amount of memory, however well their files are compressed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image, TiffImagePlugin

from yolofleet.core.text import plural
from yolofleet.data.image_formats import BufferPool, ImageError, format_of, is_jpeg, open_image

DEFAULT_MAX_PIXELS = 100_000_000
EXIF_ORIENTATION_TAG = 0x0112

FULL_PIXELS = 1 << 22
"""Images of up to 4 million pixels are always decoded in full."""
MOST_REDUCTION = 8
BAND_PIXELS = 1 << 20
_MOST_BYTES_PER_PIXEL = 8
_METADATA_BYTES = 1 << 20
_MOST_SEGMENTS = 1000

_TURNS = {  # EXIF orientation -> what brings the stored image upright: swap its sides, then flip rows, flip columns
    2: (False, 1, -1),
    3: (False, -1, -1),
    4: (False, -1, 1),
    5: (True, 1, 1),
    6: (True, 1, -1),
    7: (True, -1, -1),
    8: (True, -1, 1),
}
_BACK = {6: 8, 8: 6}
"""The inverse of an orientation; the others are their own inverse."""


def reduction(width: int, height: int, needed_side: int) -> int:
    """Return the factor 1, 2, 4 or 8 by which an image is decoded smaller than it is, in training and evaluation.

    It depends on the image and the network's input alone, so an image is the same at any world size and in any order.
    It is halved as long as it has more than 4 million pixels and its longer side stays at least twice the side that is
    needed. So what is kept has at most 4 million pixels, or a longer side of less than four times the needed one.
    """
    factor = 1
    while (
        factor < MOST_REDUCTION
        and width * height > FULL_PIXELS * factor**2
        and max(width, height) >= 2 * factor * 2 * needed_side
    ):
        factor *= 2
    return factor


def decode_image(
    data: bytes,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    upright: bool | tuple[int, int] = True,
    buffers: BufferPool | None = None,
) -> NDArray[np.uint8]:
    """Decode an image.

    Args:
        data: The file's bytes, in any of JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF.
        max_pixels: Larger images are refused from their header.
        upright: Whether the EXIF orientation is applied, as viewers do; or the (width, height) of a record of an older
            shard, which does not say it. The size turns an image only if its turned sides fit it and the stored do not.
        buffers: Where to take the memory from.

    Returns:
        (height, width, 3) uint8, RGB, contiguous.

    Raises:
        ImageError: Damaged, not an image, or too large.
    """
    return decode_reduced(data, max_pixels=max_pixels, upright=upright, buffers=buffers)[0]


def decode_reduced(
    data: bytes,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    upright: bool | tuple[int, int] = True,
    buffers: BufferPool | None = None,
    needed_side: int | None = None,
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decode an image as `decode_image` does, a far too large one at a reduced size.

    Returns:
        The pixels, and (width, height) of the image in full, the way up that the pixels are.
    """
    width, height = image_size(data, max_pixels=max_pixels)
    factor = 1 if needed_side is None else reduction(width, height, needed_side)
    with buffers.room_for(width * height) if buffers else nullcontext():
        pixels = _decode_stored(data, (height, width), factor, buffers)
    is_size = isinstance(upright, tuple)
    may_turn = upright == (height, width) != (width, height) if is_size else upright
    orientation = exif_orientation(data) if may_turn else 1
    if orientation == 1 or (is_size and orientation < 5):
        return pixels, (width, height)
    return _turn(pixels, orientation), (height, width) if orientation >= 5 else (width, height)


def check_file_size(size_bytes: int, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
    """Refuse a file by its size, before it is read: no image needs more bytes for the pixels that it may have.

    Raises:
        ImageError: It is too large.
    """
    most = _METADATA_BYTES + _MOST_BYTES_PER_PIXEL * max_pixels
    if size_bytes > most:
        raise ImageError(
            "image_too_large",
            f"the file has {plural(size_bytes, 'byte')}, more than {max_pixels:,} pixels need ({most:,})",
        )


def image_size(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[int, int]:
    """Return the stored (width, height), read from the header alone.

    Raises:
        ImageError: No image, a damaged header, or more pixels than allowed.
    """
    if not data:
        raise ImageError("image_empty", "the file is empty (0 bytes)")
    if is_jpeg(data):
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError as error:
            raise ImageError("image_damaged", f"damaged JPEG header: {error}") from error
    else:
        width, height = _stored_size(open_image(data))
    if width * height > max_pixels:
        raise ImageError(
            "image_too_large",
            f"{width}x{height} is {plural(width * height, 'pixel')}, more than the limit of {max_pixels:,}",
        )
    if width < 1 or height < 1:
        raise ImageError("image_damaged", f"the header says {width}x{height}")
    return int(width), int(height)


def exif_orientation(data: bytes) -> int:
    """Return the EXIF orientation 1..8; 1 (upright) where there is none or it makes no sense."""
    if is_jpeg(data) and not _may_hold_exif(data):
        return 1
    try:
        orientation = open_image(data).getexif().get(EXIF_ORIENTATION_TAG, 1)
    except Exception:
        return 1  # a damaged EXIF block, in whatever way it fails, says nothing about the pixels
    return orientation if orientation in _TURNS else 1


def _may_hold_exif(data: bytes) -> bool:
    """Return whether a JPEG has an EXIF block, or segments in which one is not easily found.

    It may stand behind a colour profile, whose segments have 64 KiB each.
    """
    start = 2
    for _ in range(_MOST_SEGMENTS):
        marker = data[start : start + 2]
        if marker[:1] != b"\xff" or marker[1:] in (b"", b"\xff"):
            return True
        if marker in (b"\xff\xda", b"\xff\xd9"):  # the pixels begin, or the image ends
            return False
        if marker == b"\xff\xe1" and data[start + 4 : start + 10] == b"Exif\0\0":
            return True
        start += 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    return True


def image_extension(data: bytes) -> str:
    """Return the usual extension of the content's format ("jpg", "png", ...), whatever the file was called.

    Raises:
        ImageError: No known format.
    """
    return format_of(data)[0]


def _decode_stored(data: bytes, size: tuple[int, int], factor: int, buffers: BufferPool | None) -> NDArray[np.uint8]:
    """Decode an image of a size (height, width), not turned, with its sides divided by a factor and rounded up."""
    height, width = (-(-side // factor) for side in size)
    kind, _ = format_of(data)
    if kind == "jpg" and simplejpeg.decode_jpeg_header(data)[2] not in ("CMYK", "YCCK"):
        try:
            memory = None if buffers is None else buffers.take(height, width, 3)
            pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
                data, "RGB", strict=True, buffer=memory, min_height=height, min_width=width
            )
        except ValueError as error:
            raise ImageError("image_damaged", f"damaged JPEG: {error}") from error
        return pixels
    full = _decode_webp(data) if kind == "webp" else _decode_by_pillow(data)
    if factor == 1:
        return full
    memory = None if buffers is None else buffers.take(height, width, 3)
    return np.asarray(cv2.resize(full, (width, height), dst=memory, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _decode_webp(data: bytes) -> NDArray[np.uint8]:
    """Decode by OpenCV: the library is the same as Pillow's, the memory a third."""
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    except cv2.error as error:
        raise ImageError("image_damaged", f"damaged webp: {error.err}") from error
    if pixels is None:
        raise ImageError("image_damaged", "damaged webp")
    return np.asarray(pixels, dtype=np.uint8)


def _decode_by_pillow(data: bytes) -> NDArray[np.uint8]:
    image = open_image(data)
    try:
        if isinstance(image, AvifImagePlugin.AvifImageFile):  # an image of Pillow's beside the frame would be too much
            frame = np.frombuffer(image._decoder.get_frame(0)[0], dtype=np.uint8)
            return np.ascontiguousarray(frame.reshape(image.height, image.width, -1)[:, :, :3])
        orientation = _turned_by_loading(image)
        image.load()
        pixels = _to_rgb(image)
    except ImageError:
        raise
    except Exception as error:  # parsers fail in many ways on damaged bytes; all of them mean the same
        raise ImageError("image_damaged", f"damaged {image.format}: {type(error).__name__}: {error}") from error
    del image
    return pixels if orientation == 1 else _turn(pixels, _BACK.get(orientation, orientation))


def _turn(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return an image of an EXIF orientation upright."""
    swaps, rows, columns = _TURNS[orientation]
    return np.ascontiguousarray((pixels.transpose(1, 0, 2) if swaps else pixels)[::rows, ::columns])


def _turned_by_loading(image: Image.Image) -> int:
    """Return the EXIF orientation that Pillow applies by itself: that of a TIFF, whose ``size`` is the turned one."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 1
    orientation = image.tag_v2.get(EXIF_ORIENTATION_TAG, 1)
    return orientation if orientation in _TURNS else 1


def _stored_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    return (height, width) if _turned_by_loading(image) >= 5 else (width, height)


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Return a loaded image as RGB, converted a band at a time: a converted copy of all of it would be too much."""
    if image.mode == "F":
        raise ImageError("image_unknown", "floating-point values have no known range; save the image with 8 or 16 bits")
    shift, mask = _level_shift(image) if image.mode.startswith("I") else (None, 0)
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for top, band in _bands(image):
        target = pixels[top : top + band.height]
        if shift is not None:
            target[:] = ((np.asarray(band) ^ mask) >> shift)[:, :, None]
        elif image.mode in ("RGBA", "LA", "PA", "RGBX"):
            target[:] = np.asarray(band.convert("RGBA"))[:, :, :3]
        else:
            target[:] = np.asarray(band.convert("RGB"))
    return pixels


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield the first row and the pixels of bands that make up an image."""
    num_rows = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, num_rows):
        yield top, image.crop((0, top, image.width, min(top + num_rows, image.height)))


def _level_shift(image: Image.Image) -> tuple[int, int]:
    """Return by how many bits grey levels of up to 16 bits are shifted to have 8, and a mask that inverts them before.

    Only a TIFF says how many of 16 bits its levels have, and may count them from white on, as X-rays do.
    """
    high = 0
    for _, band in _bands(image):
        levels = np.asarray(band)
        high = max(high, int(levels.max()))
        if levels.min() < 0 or high > 0xFFFF:
            raise ImageError("image_unknown", "levels of more than 16 bits; save the image with 8 or 16 bits")
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.mode.startswith("I;16"):
        (num_bits, *_), is_inverted = image.tag_v2.get(258, (16,)), image.tag_v2.get(262) == 0
        return max(num_bits - 8, 0), (1 << num_bits) - 1 if is_inverted else 0
    return (0 if image.mode == "I" and high < 256 else 8), 0  # 8-bit levels may lie in a wide container
