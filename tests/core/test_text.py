"""Parts of messages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolofleet.core.byte_sizes import format_bytes, parse_bytes
from yolofleet.core.text import and_more, did_you_mean, first_line, nearest, one_line, share_text, wrap_words


def test_the_nearest_name_is_offered_and_nothing_where_none_is_alike() -> None:
    known = ["epochs", "precision", "storage"]
    assert nearest("epoch", known) == "epochs"
    assert did_you_mean("precission", known) == "; did you mean 'precision'?"
    assert nearest("zzz", known) is None
    assert did_you_mean("zzz", known) == ""


def test_a_long_list_is_cut_and_counted() -> None:
    assert and_more(["a", "b"], 2) == "a, b"
    assert and_more(["a", "b", "c", "d"], 2) == "a, b and 2 more"
    assert and_more(["a", "b", "c"], 1, separator="; ") == "a and 2 more"


def test_errors_are_one_line() -> None:
    assert one_line("a\n  b\tc") == "a b c"
    assert one_line(ValueError()) == "ValueError"
    assert len(one_line("x" * 500, 100)) == 100
    assert first_line(ValueError("first\nsecond")) == "first"
    assert first_line(ValueError()) == "ValueError"


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("5", 5), ("1.5 GB", 1_500_000_000), ("512MiB", 2**29), ("3 kb", 3000), ("1TB", 10**12)]
)
def test_sizes_are_read(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["", "fast", "-1", "1 XB", "1e9", "٣MB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_bytes(text)


def test_sizes_are_written() -> None:
    assert [format_bytes(n) for n in (0, 999, 1000, 128_000_000, 2_140_000_000)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "128 MB",
        "2.1 GB",
    ]


@pytest.mark.parametrize(
    ("share", "words"),
    [(0, "0%"), (1, "100%"), (2 / 3, "67%"), (0.999, "99.9%"), (0.9999, "99.99%"), (0.0042, "0.4%"), (1e-9, "0.000%")],
)
def test_only_nothing_is_0_and_only_all_is_100_percent(share: float, words: str) -> None:
    assert share_text(share) == words


@pytest.mark.parametrize(
    ("score", "words"), [(0.9, "0.90"), (0.0031, "0.003"), (0.00042, "0.0004"), (0.996, "0.996"), (-3.0, "-3.00")]
)
def test_a_confidence_is_told_from_0_and_1(score: float, words: str) -> None:
    assert share_text(score, decimals=2, kind="f") == words


@given(st.text("ab \n", max_size=200), st.integers(20, 60))
def test_lines_are_wrapped_between_words_alone(text: str, width: int) -> None:
    shown = wrap_words(text, width)
    assert shown.split() == text.split()
    assert all(len(line) <= width or len(line.split()) == 1 for line in shown.split("\n"))
    assert shown == text or any(len(line) > width for line in text.split("\n"))


def test_a_wrapped_line_goes_on_below_its_second_column() -> None:
    line = "  training     loss 0.25, \x1b[31mbox\x1b[0m 0.5, class 0.22"
    assert wrap_words(line, 39).split("\n") == [
        "  training     loss 0.25, \x1b[31mbox\x1b[0m 0.5,",
        "               class 0.22",
    ]
    assert wrap_words("猫猫猫 猫猫猫 abc", 13) == "猫猫猫 猫猫猫\nabc"
