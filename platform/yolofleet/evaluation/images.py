"""Reader of one image, from a path, bytes, base64 text or an array, as (H, W, 3) uint8 RGB.

Images come from strangers: size is checked before anything is decoded, and every error names the image.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from yolofleet.core.errors import UserError
from yolofleet.core.redaction import redact
from yolofleet.data.decode import DEFAULT_MAX_PIXELS, check_file_size, decode_image
from yolofleet.data.image_formats import ImageError

ImageInput = str | Path | bytes | bytearray | memoryview | NDArray[np.uint8]

LONGEST_PATH = 4096  # no file system takes more: a longer text can only be base64


class ImageReadError(UserError):
    """An image cannot be read; the message says which and why."""


def read_image(image: ImageInput, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> NDArray[np.uint8]:
    """Read one image.

    Args:
        image: A path, the bytes of an image file, base64 text of such bytes (plain or as a `data:` URL), or an array
            (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) uint8, RGB, alpha dropped. Text that names an existing file is a
            path.
        max_pixels: Larger images are refused from their header, before anything is decoded.

    Returns:
        (H, W, 3) uint8 RGB, upright.

    Raises:
        ImageReadError: It cannot be read, is not an image, is damaged or is too large.
    """
    given: object = image  # whatever a caller without a type checker passes
    if isinstance(given, np.ndarray):
        return _check_array(given, max_pixels)
    if isinstance(given, bytes | bytearray | memoryview):
        return _decode(bytes(given), "image bytes", max_pixels)
    if isinstance(given, Path) or (isinstance(given, str) and _is_file(given)):
        return _decode(_read(Path(given), max_pixels), str(given), max_pixels)
    if isinstance(given, str):
        return _decode(_from_base64(given), "base64 image", max_pixels)
    cure = "; numpy.asarray(IMAGE.convert('RGB')) is one" if hasattr(given, "convert") else ""  # Pillow's
    raise ImageReadError(f"an image is a path, bytes, base64 text or an array, not {type(given).__name__}{cure}")


def _check_array(array: NDArray[np.uint8], max_pixels: int) -> NDArray[np.uint8]:
    if array.dtype != np.uint8:
        raise ImageReadError(f"an image array holds uint8 values 0 to 255, not {array.dtype}")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        raise ImageReadError(f"an image array is (height, width, 3) RGB, not {array.shape}")
    if array.shape[0] * array.shape[1] > max_pixels:
        raise ImageReadError(
            f"an image of {array.shape[1]}x{array.shape[0]} is above the limit of {max_pixels:,} pixels"
        )
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return np.ascontiguousarray(array[:, :, :3])


def _is_file(text: str) -> bool:
    if len(text) > LONGEST_PATH or "\0" in text:
        return False
    try:
        return Path(text).exists()
    except OSError:  # a name that no file can have
        return False


def _read(path: Path, max_pixels: int) -> bytes:
    try:
        if path.exists() and not path.is_file():
            kind = "folder" if path.is_dir() else "device or pipe"
            raise ImageReadError(f"{path} is a {kind}, not an image")
        check_file_size(path.stat().st_size, max_pixels)
        return path.read_bytes()
    except ImageError as error:
        raise ImageReadError(f"{path}: {error}") from error
    except OSError as error:
        raise ImageReadError(f"cannot read {path}: {error.strerror or error}") from error


def _from_base64(text: str) -> bytes:
    body = text
    if text.startswith("data:"):
        header, _, body = text.partition(",")
        if not header.endswith(";base64"):
            raise ImageReadError(f"a data URL must be base64, not {redact(header[:2000])[:60]!r}")
    try:
        data = base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageReadError(f"no such file, and no base64 image: {redact(text[:2000])[:60]!r}") from error
    if not data or (body is text and len(text) < 100):  # the smallest image files are longer: this was meant as a path
        raise ImageReadError(f"no such file: {redact(text[:2000])[:100]!r}")
    return data


def _decode(data: bytes, source: str, max_pixels: int) -> NDArray[np.uint8]:
    try:
        return decode_image(data, max_pixels=max_pixels)
    except ImageError as error:
        raise ImageReadError(f"{source}: {error}") from error
