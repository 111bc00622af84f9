"""Durations: what is written is read back, and a table's column holds any of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolofleet.core.durations import UNITS, format_duration, parse_duration


@pytest.mark.parametrize(("text", "seconds"), [("45s", 45), ("1.5h", 5400), (" 30d ", 2_592_000), ("2 w", 1_209_600)])
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1y", "1e3s", "nan s", "9999999999w", "1d2h", "９d"])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a duration.*e\.g\. 12h or 30d"):
        parse_duration(text)


@given(st.floats(0, 10**9))
def test_what_is_shown_is_short_and_rounded_down_by_less_than_a_unit(seconds: float) -> None:
    text = format_duration(seconds)
    assert len(text) <= 4
    if seconds < 999 * UNITS["w"]:
        assert 0 <= seconds - parse_duration(text) < UNITS[text[-1]] + 1
