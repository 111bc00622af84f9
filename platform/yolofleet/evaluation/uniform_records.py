"""Result records that a tool wrote one like the other, read without an object for each: half a million are common.

Where every number is replaced by the same sign, such a file is its first record again and again. That is compared as a
whole, so nothing but numbers is left to read, and numpy reads those. A file that differs anywhere, or breaks JSON's
grammar, is left to the reader of any JSON, which says what is wrong.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from yolofleet.evaluation.result_records import FIELDS, LARGEST, ResultColumns, field_keys, make_columns

BLOCK_BYTES = 2**19
"""Read at a time: what is made of it fits a processor's cache. A smaller file takes no time anyway."""
MOST_KEYS = 8
SPACE, DIGIT, ZERO, POINT, EXPONENT, PLUS, MINUS = range(7)
KINDS = np.zeros(256, np.uint8)
for signs, kind in ((b"123456789", DIGIT), (b"0", ZERO), (b".", POINT), (b"eE", EXPONENT), (b"+", PLUS), (b"-", MINUS)):
    KINDS[list(signs)] = kind
FOLLOWS = np.zeros(64, bool)
"""What may follow what in JSON's numbers, as 8 x kind + next kind; numpy refuses a second point or exponent."""
for kinds, others in (
    ((SPACE,), (SPACE, DIGIT, ZERO, MINUS)),
    ((DIGIT, ZERO), (SPACE, DIGIT, ZERO, POINT, EXPONENT)),
    ((POINT, PLUS, MINUS), (DIGIT, ZERO)),
    ((EXPONENT,), (DIGIT, ZERO, PLUS, MINUS)),
):
    FOLLOWS[[8 * kind + other for kind in kinds for other in others]] = True
STRUCTURE = frozenset(b"{}[],: \t\r\n0")


class NotAlikeError(Exception):
    """The records are not written alike, or not as JSON."""


def read_uniform(data: bytes) -> ResultColumns | None:
    """Read a list of records with the same keys in the same order, whole numbers for ids, and boxes of four numbers.

    Returns:
        The columns that `read_columns` gives of the same records; None where the file is another one.
    """
    begin, end, last = data.find(b"{"), data.find(b"}") + 1, data.rfind(b"}") + 1
    second = data.find(b"{", end)
    around = data[: max(begin, 0)].strip(), data[end : max(second, 0)].strip(), data[last:].strip()
    if len(data) < BLOCK_BYTES or around != (b"[", b",", b"]"):
        return None
    try:
        first = json.loads(data[begin:end])
        sizes, keys = {key: np.size(value) for key, value in first.items()}, field_keys(first)
        if [np.shape(first[keys[field]]) for field in FIELDS] != [(), (), (4,), ()] or len(sizes) > MOST_KEYS:
            return None
        blocks = list(_blocks(data, begin, end, second, last, sizes))
    except (NotAlikeError, AttributeError, KeyError, RecursionError, ValueError):
        return None
    values = np.concatenate([block for block, _ in blocks])
    starts = dict(zip(sizes, np.cumsum([0, *sizes.values()]).tolist(), strict=False))
    ids = [starts[keys["image_id"]], starts[keys["category_id"]]]
    are_ids = all(are_whole[:, ids].all() for _, are_whole in blocks) and (np.abs(values[:, ids]) < 2**53).all()
    if not are_ids or not (np.abs(values) < LARGEST).all():
        return None
    images, categories = values[:, ids].astype(np.int64).T.tolist()
    box, score = starts[keys["bbox"]], starts[keys["score"]]
    boxes = np.ascontiguousarray(values[:, box : box + 4])
    return make_columns(keys, images, categories, boxes, values[:, score].copy(), has_whole_ids=True)


def _blocks(
    data: bytes, begin: int, end: int, second: int, last: int, sizes: dict[str, int]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    """Yield the numbers of some records (D, N), and whether each is written as a whole number.

    Args:
        data: The file.
        begin: Where its first record begins.
        end: Where that ends.
        second: Where the second one begins.
        last: Where the last one ends.
        sizes: Numbers under each key of a record.

    Raises:
        NotAlikeError: A record differs from the first one in more than its numbers.
    """
    marks = {json.dumps(key).encode(): bytes([number]) for number, key in enumerate(sizes, start=1)}
    record, between = b"", data[end:second]
    while begin < last:
        block = data[begin:end]
        for key, mark in marks.items():
            if mark in block:  # JSON does not have this byte
                raise NotAlikeError
            block = block.replace(key, mark)
        outline, numbers, are_whole = _read_numbers(block)
        if not record and set(outline) - STRUCTURE - set(b"".join(marks.values())):
            raise NotAlikeError
        count, rest = divmod(len(numbers), sum(sizes.values()))
        if rest or not count or outline != (between + record if record else outline) * count:
            raise NotAlikeError
        record = record or outline
        yield numbers.reshape(count, -1), are_whole.reshape(count, -1)
        begin, end = end, data.find(b"}", min(end + BLOCK_BYTES, last - 1)) + 1


def _read_numbers(block: bytes) -> tuple[bytes, NDArray[np.float64], NDArray[np.bool_]]:
    """Return a text with a zero in place of each number, the numbers, and whether each is written as a whole one."""
    signs, kinds = np.frombuffer(block, np.uint8), np.frombuffer(block.translate(KINDS.tobytes()), np.uint8)
    begins = np.flatnonzero((kinds[1:] != SPACE) & (kinds[:-1] == SPACE)) + 1
    digits = begins + (kinds[begins] == MINUS)
    has_leading_zero = (kinds[digits] == ZERO) & ((kinds[digits + 1] == ZERO) | (kinds[digits + 1] == DIGIT))
    if (
        kinds[0] != SPACE
        or not len(begins)
        or has_leading_zero.any()
        or not FOLLOWS[np.uint8(8) * kinds[:-1] + kinds[1:]].all()
    ):
        raise NotAlikeError
    with warnings.catch_warnings(action="error"):  # numpy warns where it stops before the end
        try:
            numbers = np.fromstring(np.where(kinds == SPACE, np.uint8(32), signs).tobytes(), sep=" ")
        except DeprecationWarning as error:
            raise NotAlikeError from error
    are_whole = ~np.logical_or.reduceat((kinds == POINT) | (kinds == EXPONENT), begins)
    is_kept = kinds == SPACE
    is_kept[begins] = True
    outline = np.where(kinds == SPACE, signs, np.uint8(ord("0")))[is_kept].tobytes()
    return outline, numbers, are_whole
