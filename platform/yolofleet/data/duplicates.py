"""Exact and near duplicates among images, mirrored ones included, in time linear in the number of images.

Every image leaves a fingerprint: the digest of its file, a difference hash (whose bits also give those of its mirror
images) and a thumbnail of 16x16 pixels, 0.8 kB in all. Images with equal digests are exact duplicates. For the others,
the hashes are sorted as numbers, many times, each time with their bits in another order: two hashes that differ in few
bits lie close together in some of the orders. Only neighbours are compared, so the work does not depend on how images
cluster (a thousand black frames are as cheap as a thousand different images). A pair counts if its hashes and its
thumbnails agree. Equal images that were encoded anew, scaled or mirrored do; frames of a video in which little moves do
as well; cut-outs, turns by a right angle and strong changes of colour do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

THUMBNAIL_SIDE = 16
REDUCED_SIDE = 32
FINGERPRINT = np.dtype(
    [("digest", "S16"), ("hash", np.uint64), ("thumbnail", np.uint8, (THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3))]
)
"""The digest of the file, the hash and the thumbnail of the image."""
MOST_BITS = 16
"""Hashes of 64 bits may differ in so many; those of unrelated photographs differ in 32 on average."""
NOISE_LEVELS, CONTRAST_SHARE = 1.0, 0.15
"""Thumbnails may differ (RMS, in grey levels) by NOISE_LEVELS and this share of the contrast. Encoding anew and scaling
change 0.02 to 0.15 of the contrast; the nearest of different photographs differ by 0.6 and more."""
ROTATION_BITS = 8
NUM_NEIGHBOURS = 8
GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_AT_ONCE = 4096

Pairs = NDArray[np.int64]
"""(p, 3) each: two positions of images, and how the second is mirrored (bit 0: left to right, bit 1: upside down)."""


def reduce_image(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return what a fingerprint needs of an image (height, width, 3): all of it, averaged down to 32x32 pixels."""
    while min(pixels.shape[:2]) >= 2 * REDUCED_SIDE:  # halving is four times as fast as averaging at once
        height, width = pixels.shape[:2]
        pixels = cv2.resize(pixels, (width // 2, height // 2), interpolation=cv2.INTER_LINEAR)
    reduced = cv2.resize(pixels, (REDUCED_SIDE, REDUCED_SIDE), interpolation=cv2.INTER_AREA)
    return np.asarray(reduced, dtype=np.uint8)


def fingerprints_of(digests: Sequence[bytes], reduced: Sequence[NDArray[np.uint8]]) -> NDArray[Any]:
    """Return (n,) rows of `FINGERPRINT` from the SHA-256 digests of files and their reduced images."""
    rows = np.zeros(len(reduced), FINGERPRINT)
    if not len(rows):
        return rows
    rows["digest"] = digests
    stack = np.stack(reduced).astype(np.float32)
    rows["thumbnail"] = np.round(_averaged(_averaged(stack, THUMBNAIL_SIDE, axis=1), THUMBNAIL_SIDE, axis=2))
    # The hash compares neighbours in 8 rows of 9. Stretched to all levels, hardly two of them are equal, so a mirror
    # image has just the opposite bits.
    levels = _averaged(_averaged(stack @ GREY, 8, axis=1), 9, axis=2)  # (n, 8, 9)
    levels -= levels.min(axis=(1, 2), keepdims=True)
    levels *= 255 / np.maximum(levels.max(axis=(1, 2), keepdims=True), 1e-6)
    bits = [imagehash.dhash(Image.fromarray(image)).hash for image in levels.astype(np.uint8)]
    rows["hash"] = np.packbits(bits, axis=2).reshape(-1, 8).view(np.uint64)[:, 0]
    return rows


def _averaged(images: NDArray[np.float32], size: int, axis: int) -> NDArray[np.float32]:
    """Return images with one axis averaged down to a size, that need not divide it."""
    edges = np.linspace(0, images.shape[axis], size + 1)
    cells = np.arange(images.shape[axis])
    shares = np.clip(np.minimum(cells + 1, edges[1:, None]) - np.maximum(cells, edges[:-1, None]), 0, None)
    shares /= shares.sum(axis=1, keepdims=True)
    return np.moveaxis(np.tensordot(images, shares.astype(np.float32), axes=(axis, 1)), -1, axis)


@dataclass(frozen=True)
class DuplicateGroup:
    """Images that show the same."""

    images: tuple[int, ...]
    """Their positions, rising; two or more."""
    is_exact: bool
    """Whether all files have the same bytes."""
    is_mirrored: bool
    """Whether some are mirror images of others."""


def find_duplicates(fingerprints: NDArray[Any]) -> list[DuplicateGroup]:
    """Return the groups of duplicates, in the order of their first images.

    Args:
        fingerprints: (n,) rows of `FINGERPRINT`.
    """
    _, first, content = np.unique(fingerprints["digest"], return_index=True, return_inverse=True)
    distinct = np.sort(first)  # one image for each content of a file
    pairs = find_pairs(fingerprints[distinct])
    pairs[:, :2] = distinct[pairs[:, :2]]
    parents = first[content]  # every image points to the first with the same bytes, and that to another near it
    mirrored_of: dict[int, bool] = {}

    def root(image: int) -> int:
        while parents[image] != image:
            parents[image] = image = int(parents[parents[image]])
        return image

    for one, other, _ in pairs.tolist():
        low, high = sorted((root(one), root(other)))
        parents[high] = low
    for one, _, orientation in pairs.tolist():
        mirrored_of[root(one)] = mirrored_of.get(root(one), False) or orientation != 0
    members: dict[int, list[int]] = {}
    lonely = np.bincount(content)[content] == 1
    lonely[pairs[:, :2]] = False
    for image in np.flatnonzero(~lonely).tolist():
        members.setdefault(root(image), []).append(image)
    return [
        DuplicateGroup(tuple(images), number not in mirrored_of, mirrored_of.get(number, False))
        for number, images in sorted(members.items())
    ]


def find_pairs(fingerprints: NDArray[Any]) -> Pairs:
    """Return the pairs of images whose hashes and thumbnails agree, each pair once."""
    hashes = _hashes_of_views(fingerprints["hash"])
    found = np.empty(0, dtype=np.int64)
    if len(fingerprints) > 1:
        for order in _bit_orders(hashes):
            found = np.union1d(found, _neighbours(order, hashes))
    images = len(fingerprints)
    pairs = np.stack([found // 4 // images, found // 4 % images, found % 4], axis=1)
    if len(pairs):
        pairs = _agreeing(pairs, fingerprints["thumbnail"])
    _, kept = np.unique(pairs[:, :2], axis=0, return_index=True)  # of a symmetric image the plain view is the first
    return np.asarray(pairs[kept], dtype=np.int64)


def _hashes_of_views(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return (4 n,) the hashes of each image as it is, mirrored, upside down, and both.

    A byte of the hash is a row of the image. Mirrored, the bits of a row are in reverse, and each is the opposite:
    what was lighter than its left neighbour is darker. Upside down, the rows are in reverse.
    """
    rows = hashes[:, None].view(np.uint8)  # (n, 8)
    mirrored = ~np.packbits(np.unpackbits(rows, axis=1, bitorder="little"), axis=1).view(np.uint64)
    both = np.concatenate([hashes[:, None], mirrored], axis=1)
    return np.ascontiguousarray(np.concatenate([both, both.byteswap()], axis=1).reshape(-1))


def _bit_orders(hashes: NDArray[np.uint64]) -> Iterator[NDArray[np.uint64]]:
    """Yield the hashes with their bits in other orders: rotations of rows by columns, and of a fixed shuffle."""
    shuffled = np.empty_like(hashes)
    order = np.random.default_rng(0).permutation(64)
    for start in range(0, len(hashes), 1 << 16):  # eight times the memory while the bits are apart
        part = slice(start, start + (1 << 16))
        bits = np.unpackbits(hashes[part, None].view(np.uint8), axis=1)
        shuffled[part] = np.ascontiguousarray(np.packbits(bits[:, order], axis=1)).view(np.uint64)[:, 0]
    for layout in (hashes, shuffled):
        for turn in range(0, 64, ROTATION_BITS):
            yield (layout << np.uint64(turn)) | (layout >> np.uint64((64 - turn) % 64))


def _neighbours(order: NDArray[np.uint64], hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the pairs of near hashes that lie close together in an order, each pair and mirroring as one number."""
    ranked = np.argsort(order, kind="stable")
    num_images = len(hashes) // 4
    found = []
    for distance in range(1, NUM_NEIGHBOURS + 1):
        one, other = ranked[:-distance], ranked[distance:]
        near = np.bitwise_count(hashes[one] ^ hashes[other]) <= MOST_BITS
        one, other = one[near], other[near]
        low, high = np.minimum(one, other), np.maximum(one, other)
        different = low // 4 != high // 4
        # Two views agree just where one image agrees with the other seen through both mirrorings, one after the other.
        keys = (low // 4 * num_images + high // 4) * 4 + (low % 4 ^ high % 4)
        found.append(keys[different])
    return np.concatenate(found)


def _agreeing(pairs: Pairs, thumbnails: NDArray[np.uint8]) -> Pairs:
    """Return those of the pairs whose thumbnails agree."""
    parts = [thumbnails[start : start + _AT_ONCE] for start in range(0, len(thumbnails), _AT_ONCE)]
    means = np.concatenate([part.mean(axis=(1, 2), dtype=np.float32) for part in parts])  # (n, 3)
    contrasts = np.concatenate([np.sqrt(part.var(axis=(1, 2), dtype=np.float32).mean(axis=1)) for part in parts])
    most = NOISE_LEVELS + CONTRAST_SHARE * contrasts[pairs[:, :2]].min(axis=1)
    # Images whose mean colours differ by more differ by more in all; that leaves few to compare in full.
    likely = ((means[pairs[:, 0]] - means[pairs[:, 1]]) ** 2).mean(axis=1) <= most**2
    pairs, most = pairs[likely], most[likely]
    agree = np.zeros(len(pairs), dtype=np.bool_)
    for start in range(0, len(pairs), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        one, other = (thumbnails[pairs[part, side]].astype(np.float32) for side in (0, 1))  # (p, 16, 16, 3)
        is_mirrored, is_turned = pairs[part, 2] % 2 == 1, pairs[part, 2] // 2 == 1
        other[is_mirrored] = other[is_mirrored, :, ::-1]
        other[is_turned] = other[is_turned, ::-1]
        agree[part] = ((one - other) ** 2).mean(axis=(1, 2, 3)) <= most[part] ** 2
    return pairs[agree]
