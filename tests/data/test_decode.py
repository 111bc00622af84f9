from __future__ import annotations

import io
import resource
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from yolofleet.data.decode import decode_image, exif_orientation, image_extension, image_size
from yolofleet.data.image_formats import ImageError

REFUSED = {
    "truncated.jpg": "image_damaged",
    "truncated_header.jpg": "image_damaged",
    "zero_bytes.jpg": "image_empty",
    "text.jpg": "image_unknown",
    "html_error_page.jpg": "image_unknown",
    "bitflips.jpg": "image_damaged",
    "bomb_30000.png": "image_too_large",
    "bomb_65500.jpg": "image_too_large",
    "bomb_12000_1bit.png": "image_too_large",
}
SIZES = {"one_px.png": (1, 1), "wide_4000x20.jpg": (4000, 20), "tall_3x3000.png": (3, 3000)}


def image_files(test_data: Path) -> list[Path]:
    return sorted((test_data / "hostile" / "images").iterdir())


def encoded(pixels: np.ndarray, image_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format, **options)
    return buffer.getvalue()


def test_every_hostile_image_is_read_or_refused_with_its_reason(test_data: Path) -> None:
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in image_files(test_data):
        data = path.read_bytes()
        if path.name in REFUSED:
            with pytest.raises(ImageError) as refusal:
                decode_image(data)
            assert refusal.value.reason == REFUSED[path.name], path.name
        else:
            pixels = decode_image(data)
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3, path.name
            assert pixels.flags.c_contiguous
            if path.name in SIZES:
                assert pixels.shape[1::-1] == SIZES[path.name]
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib
    assert grown_kib < 200 * 1024, "an image that claims gigapixels must not be allocated"


@pytest.mark.parametrize(
    "name", ["cmyk.jpg", "palette.png", "palette_transparent.png", "alpha.png", "photo.webp", "bitmap.bmp"]
)
def test_unusual_encodings_of_one_image_keep_its_colours(test_data: Path, name: str) -> None:
    folder = test_data / "hostile" / "images"
    plain = decode_image((folder / "png_named.jpg").read_bytes())
    other = decode_image((folder / name).read_bytes())
    difference = np.abs(other.reshape(-1, 3).mean(axis=0) - plain.reshape(-1, 3).mean(axis=0))
    assert difference.max() < 3, "inverted, clipped or palette numbers instead of colours"


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    levels = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    pixels = decode_image(encoded(levels))
    assert (pixels[:, :, 0] == levels >> 8).all() and (pixels[:, :, 0] == pixels[:, :, 2]).all()


def test_alpha_is_dropped_and_the_colour_below_is_kept() -> None:
    rgba = np.full((4, 5, 4), (200, 10, 30, 0), dtype=np.uint8)
    assert (decode_image(encoded(rgba)) == (200, 10, 30)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_an_image_that_is_shown_upright(orientation: int) -> None:
    stored = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)  # 4 wide, 6 high
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, exif=exif)
    assert exif_orientation(data) == orientation
    upright = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    if orientation != 1:
        from PIL import ImageOps

        upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert (decode_image(data) == upright).all(), "without annotations an image is shown upright"
    assert (decode_image(data, upright=False) == stored).all(), "annotations of the stored image"
    turned = decode_image(data, upright=(6, 4))
    assert turned.shape == ((4, 6, 3) if orientation >= 5 else (6, 4, 3))


def test_the_content_decides_the_format(test_data: Path) -> None:
    folder = test_data / "hostile" / "images"
    assert image_extension((folder / "jpeg_named.png").read_bytes()) == "jpg"
    assert image_extension((folder / "png_named.jpg").read_bytes()) == "png"


def test_the_pixel_limit_can_be_moved() -> None:
    data = encoded(np.zeros((10, 20, 3), dtype=np.uint8))
    assert image_size(data, max_pixels=200) == (20, 10)
    with pytest.raises(ImageError, match="20x10 is 200 pixels, more than the limit of 199"):
        image_size(data, max_pixels=199)


def test_random_bytes_behind_every_signature_never_do_more_than_refuse() -> None:
    generator = np.random.default_rng(0)
    signatures = [b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"RIFF\0\0\0\0WEBP"]
    for signature in signatures:
        for _ in range(25):
            noise = generator.integers(0, 256, size=int(generator.integers(0, 400)), dtype=np.uint8).tobytes()
            with pytest.raises(ImageError):
                decode_image(signature + noise, max_pixels=10_000)


def test_every_cut_of_an_image_is_refused_or_whole() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, size=(40, 50, 3), dtype=np.uint8)
    for image_format in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"):
        data = encoded(pixels, image_format)
        for length in range(0, len(data) - 2, max(1, len(data) // 40)):
            try:
                assert decode_image(data[:length]).shape == pixels.shape
            except ImageError:
                continue
            assert image_format in ("BMP", "TIFF", "GIF") or length > 0.95 * len(data)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF"])
def test_every_orientation_in_every_format_is_turned_upright_or_left_as_annotated(
    orientation: int, image_format: str
) -> None:
    """The formats agree, though the TIFF reader below turns images by itself."""
    stored = np.zeros((24, 40, 3), dtype=np.uint8)
    stored[:12, :20] = (250, 250, 250)  # a bright corner tells every orientation from the others
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = io.BytesIO()
    Image.fromarray(stored).save(data, image_format, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(_with_orientation(stored, orientation)))
    shown = decode_image(data.getvalue())
    assert shown.shape == upright.shape and np.abs(shown.astype(int) - upright).mean() < 5
    kept = decode_image(data.getvalue(), upright=(40, 24))
    assert kept.shape == stored.shape and np.abs(kept.astype(int) - stored).mean() < 5
    assert image_size(data.getvalue()) == (40, 24), "the stored size"
    if orientation >= 5:
        turned = decode_image(data.getvalue(), upright=(24, 40))
        assert np.abs(turned.astype(int) - upright).mean() < 5


def _with_orientation(pixels: NDArray[np.uint8], orientation: int) -> Image.Image:
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    return image


@pytest.mark.parametrize(
    "levels",
    [np.full((8, 8), np.nan), np.full((8, 8), np.inf), np.random.default_rng(0).random((8, 8)), np.full((8, 8), 2**20)],
)
def test_levels_without_a_known_range_are_refused_not_guessed(levels: NDArray[Any]) -> None:
    data = io.BytesIO()
    kind = np.int32 if levels.dtype.kind == "i" else np.float32
    Image.fromarray(levels.astype(kind)).save(data, "TIFF")
    with pytest.raises(ImageError, match="8 or 16 bits"):
        decode_image(data.getvalue())


@pytest.mark.parametrize(("num_bits", "photometric", "order"), [(16, 1, "<"), (16, 0, "<"), (16, 1, ">"), (12, 1, "<")])
def test_a_tiff_of_grey_levels_says_how_many_bits_they_have_and_which_end_is_black(
    num_bits: int, photometric: int, order: str
) -> None:
    """Dark frames of a sequence stay dark: the levels in a file do not decide how it is read."""
    levels = np.array([[0, 1, 255, 1 << (num_bits - 1)], [3, 7, 200, (1 << num_bits) - 1]])
    if num_bits == 16:
        strip = levels.astype(f"{order}u2").tobytes()
    else:  # two levels in three bytes, from the highest bit on
        pairs = levels.reshape(-1, 2)
        strip = bytes(byte for a, b in pairs.tolist() for byte in (a >> 4, (a & 15) << 4 | b >> 8, b & 255))
    entries = [(256, 4, 4), (257, 4, 2), (258, 3, num_bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8),
               (277, 3, 1), (278, 4, 2), (279, 4, len(strip))]  # fmt: skip
    short = {"<": "HHIHH", ">": "HHIHH"}[order]
    table = b"".join(
        struct.pack(f"{order}{short}", tag, kind, 1, value, 0)
        if kind == 3
        else struct.pack(f"{order}HHII", tag, kind, 1, value)
        for tag, kind, value in entries
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(strip))
    data = head + strip + struct.pack(f"{order}H", len(entries)) + table + bytes(4)
    expected = (levels if photometric else (1 << num_bits) - 1 - levels) >> (num_bits - 8)
    assert decode_image(data)[:, :, 0].tolist() == expected.tolist()


def test_avif_is_read() -> None:
    data = io.BytesIO()
    Image.new("RGB", (32, 16), (200, 30, 60)).save(data, "AVIF", quality=95)
    pixels = decode_image(data.getvalue())
    assert pixels.shape == (16, 32, 3) and np.abs(pixels.astype(int) - (200, 30, 60)).max() < 8


def tiff_of_bands(bands: int, *, floating: bool = False) -> bytes:
    """A plain TIFF, 4 pixels wide and 2 high, of 8-bit or of 32-bit floating-point bands."""
    pixels = np.full(8 * bands, 9, np.float32 if floating else np.uint8).tobytes()
    values = {256: [4], 257: [2], 258: [32 if floating else 8] * bands, 259: [1], 262: [2 if bands > 2 else 1]}
    values |= {273: [0], 277: [bands], 278: [2], 279: [len(pixels)], 284: [1]}
    values |= ({338: [0] * (bands - 3)} if bands > 3 else {}) | {339: [3 if floating else 1] * bands}
    start = 8 + 2 + 12 * len(values) + 4
    values[273] = [start + sum(2 * len(found) for found in values.values() if len(found) > 2)]
    entries, longer = b"", b""
    for tag, found in values.items():
        data = struct.pack(f"<{len(found)}H", *found)
        if len(found) > 2:
            data, longer = struct.pack("<I", start + len(longer)), longer + data
        entries += struct.pack("<HHI4s", tag, 3, len(found), data)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(values)) + entries + bytes(4) + longer + pixels


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (tiff_of_bands(2), "a TIFF of 2 bands of integer levels; save it as RGB with 8 bits"),
        (tiff_of_bands(3, floating=True), "a TIFF of 3 bands of floating-point levels"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image, as phones save them; convert it to JPEG"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "a HEIC image"),
    ],
)
def test_formats_that_are_not_read_are_told_by_name(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message) as refusal:
        decode_image(data)
    assert refusal.value.reason == "image_unknown"


@pytest.mark.parametrize("big", [False, True])
def test_big_tiff_is_read(big: bool) -> None:
    data = io.BytesIO()
    Image.new("RGB", (30, 20), (200, 30, 60)).save(data, "TIFF", big_tiff=big)
    assert (data.getvalue()[2] == 43) == big
    assert (decode_image(data.getvalue()) == (200, 30, 60)).all()


def test_bands_that_are_left_out_are_told() -> None:
    from yolofleet.data.annotation import build_record
    from yolofleet.data.check import check_image
    from yolofleet.data.problems import ProblemLog

    problems = ProblemLog()
    checked = check_image(build_record(1, "a.tif", (4, 2), []), tiff_of_bands(5), problems)
    assert checked is not None and checked.pixels.shape == (2, 4, 3)
    assert problems.counts == {"image_bands_left_out": 1}
