from __future__ import annotations

import hashlib
import io
from itertools import combinations

import cv2
import numpy as np
import pytest
from PIL import Image

from yolofleet.data import duplicates
from yolofleet.data.duplicates import FINGERPRINT, find_duplicates, fingerprints_of, reduce_image
from yolofleet.data.synth import draw_image

NUM_IMAGES = 150


def encoded(pixels: np.ndarray, quality: int = 85, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, kind, quality=quality)
    return buffer.getvalue()


def rows(files: list[bytes]) -> np.ndarray:
    decoded = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in files]
    digests = [hashlib.sha256(data).digest()[:16] for data in files]
    return fingerprints_of(digests, [reduce_image(pixels) for pixels in decoded])


def scaled(pixels: np.ndarray, gain: float) -> np.ndarray:
    return cv2.resize(pixels, None, fx=gain, fy=gain, interpolation=cv2.INTER_AREA)


CHANGES = {
    "encoded anew": lambda pixels: encoded(pixels, 40),
    "another format": lambda pixels: encoded(pixels, kind="PNG"),
    "half": lambda pixels: encoded(scaled(pixels, 0.5)),
    "larger": lambda pixels: encoded(scaled(pixels, 1.7)),
    "mirrored": lambda pixels: encoded(pixels[:, ::-1]),
    "upside down": lambda pixels: encoded(pixels[::-1]),
    "turned by 180 degrees": lambda pixels: encoded(pixels[::-1, ::-1]),
    "all at once": lambda pixels: encoded(scaled(pixels[:, ::-1], 0.6), 60),
}


@pytest.fixture(scope="module")
def drawn() -> list[np.ndarray]:
    return [draw_image(11, number, 128)[0] for number in range(NUM_IMAGES)]


@pytest.fixture(scope="module")
def files(drawn: list[np.ndarray]) -> list[bytes]:
    return [encoded(pixels) for pixels in drawn]


def test_different_images_are_no_duplicates(files: list[bytes]) -> None:
    assert find_duplicates(rows(files)) == []
    assert find_duplicates(rows(files[:1])) == [] == find_duplicates(rows([]))


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_copy_is_found_beside_its_original(drawn: list[np.ndarray], files: list[bytes], name: str) -> None:
    copied = range(0, NUM_IMAGES, 5)
    groups = find_duplicates(rows(files + [CHANGES[name](drawn[number]) for number in copied]))
    wanted = {(number, NUM_IMAGES + position) for position, number in enumerate(copied)}
    found = {group.images for group in groups}
    assert found <= wanted and len(found) >= 0.95 * len(wanted)
    mirrored = sum(group.is_mirrored for group in groups)
    assert mirrored >= len(found) - 2 if name.split()[0] in ("mirrored", "upside", "turned", "all") else mirrored <= 2
    assert not any(group.is_exact for group in groups)


def test_equal_files_are_exact_duplicates_and_join_near_ones(drawn: list[np.ndarray], files: list[bytes]) -> None:
    groups = find_duplicates(
        rows([files[0], files[1], files[0], files[2], CHANGES["half"](drawn[1]), files[1], files[0]])
    )
    assert [(group.images, group.is_exact) for group in groups] == [((0, 2, 6), True), ((1, 4, 5), False)]


def test_the_order_of_the_images_does_not_matter(drawn: list[np.ndarray], files: list[bytes]) -> None:
    everything = files + [change(drawn[number]) for number, change in enumerate(CHANGES.values())]
    order = np.random.default_rng(0).permutation(len(everything))
    plain = {frozenset(group.images) for group in find_duplicates(rows(everything))}
    turned = find_duplicates(rows([everything[position] for position in order]))
    assert {frozenset(int(order[image]) for image in group.images) for group in turned} == plain and plain


def test_plain_images_of_different_colours_stay_apart() -> None:
    levels = (0, 40, 80, 200)
    files = [encoded(np.full((60, 80, 3), level, np.uint8), quality) for level in levels for quality in (70, 95)]
    groups = {group.images for group in find_duplicates(rows(files))}
    for images in groups:
        assert all(first // 2 == second // 2 for first, second in combinations(images, 2))


def test_many_equal_frames_take_no_longer_than_different_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparisons grow with the number of images, not with its square."""
    compared = 0
    count = np.bitwise_count

    def counted(values: np.ndarray) -> np.ndarray:
        nonlocal compared
        compared += values.size
        return count(values)

    monkeypatch.setattr(duplicates.np, "bitwise_count", counted)
    work = {}
    for num in (500, 2000):
        compared = 0
        frames = np.zeros(num, FINGERPRINT)
        frames["digest"] = [str(number).encode() for number in range(num)]
        groups = find_duplicates(frames)
        assert [len(group.images) for group in groups] == [num]
        work[num] = compared
    assert work[2000] < 4.5 * work[500]
