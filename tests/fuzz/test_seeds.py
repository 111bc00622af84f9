"""Every seed and a few hundred changed ones go through their readers: the short form of ``make fuzz``."""

from __future__ import annotations

import random

import pytest

from fuzz.run import FOLDER, READERS, LimitError, load_targets, peak_bytes, resident_bytes, run_case, seeds

NUM_CHANGED = 300
TARGETS = load_targets()
PIECES = (
    b"\0", b"\xff", b"\n", b" ", b"-", b"0", b"9" * 30, b"1e308", b"NaN", b"null", b"true", b'"', b"{", b"[" * 50, b"]",
    b"}", b"\xef\xbb\xbf", b"\\ud800", b"../", b"/", b"*a", b"&a", b"<a>" * 20,
)  # fmt: skip


def test_every_reader_has_a_target_and_seeds() -> None:
    assert set(READERS) <= set(TARGETS)
    assert {folder.name for folder in (FOLDER / "seeds").glob("*/")} <= set(TARGETS), "a folder of seeds has no target"
    for reader in TARGETS:
        assert len(seeds(reader)) >= 3, f"{reader}: write at least three seeds into tests/fuzz/seeds/{reader}/"


@pytest.mark.parametrize("reader", sorted(TARGETS))
def test_a_reader_takes_its_seeds_and_changed_ones(reader: str) -> None:
    for data in seeds(reader):
        run_case(TARGETS[reader], data)
    for data in changed(seeds(reader), NUM_CHANGED):
        try:
            run_case(TARGETS[reader], data)
        except Exception as error:
            error.add_note(f"the case is {data!r}")
            raise


def test_a_case_that_grows_or_raises_is_found() -> None:
    # Only a new peak of the process is seen, and other tests may have left a high one.
    num_bytes = (300 << 20) + max(0, peak_bytes() - resident_bytes())
    with pytest.raises(LimitError, match="memory grew by"):
        run_case(lambda data: bytearray(num_bytes).__imul__(1) and None, b"")
    with pytest.raises(KeyError):
        run_case(lambda data: {}[data], b"")


def changed(sources: list[bytes], count: int) -> list[bytes]:
    """Return seeds with a few bytes changed, the same ones every time."""
    choose = random.Random(18)
    cases = []
    for _ in range(count):
        data = bytearray(choose.choice(sources))
        for _ in range(choose.randint(1, 4)):
            start = choose.randint(0, len(data))
            end = min(len(data), start + choose.choice((1, 2, 8, 64)))
            piece = choose.choice(
                (
                    choose.choice(PIECES),
                    choose.randbytes(1),
                    bytes(data[start:end]) * 2,
                    choose.choice(sources)[start:end],
                )
            )
            data[start : choose.choice((start, end))] = piece
        cases.append(bytes(data))
    return cases
