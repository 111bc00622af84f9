"""Charts: every point once and in its place, whatever the values and names are."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import pytest

from yolofleet.evaluation.published import COSTS, FAMILIES, OTHERS, published_results, published_series
from yolofleet.reports.charts import Axis, Mark, Series, chart, parallel, thin
from yolofleet.reports.page import text_cell


def data_of(drawn: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json">(.*?)</script>', drawn)
    return dict(json.loads(text))


@pytest.mark.parametrize(
    "points", [[(0.0, 5.0)], [(0.0, 0.0), (1e6, 1e-9)], [(1.0, float("inf")), (2.0, 3.0)], [(3.0, -7.0)] * 4]
)
def test_lines_stay_inside_their_frame_and_names_cannot_change_the_page(points: list[tuple[float, float]]) -> None:
    series = [Series(name="</script><b>", points=points), Series(name="other", points=points)]
    drawn = chart(series, title="a<b", x_name="x", marks=[Mark(x=points[0][0], text="<i>")])
    assert "a&lt;b" in drawn and "<b>" not in drawn and "<i>" not in drawn and "nan" not in drawn
    for numbers in re.findall(r'points="([^"]*)"', drawn):
        for x, y in re.findall(r"([\d.-]+),([\d.-]+)", numbers):
            assert 0 <= float(x) <= 1000 and 0 <= float(y) <= 1000
    assert data_of(drawn)["series"][0]["n"] == "</script><b>"


def test_an_axis_of_whole_numbers_has_whole_ticks() -> None:
    def ticks(end: float) -> list[str]:
        drawn = chart([Series(name="a", points=[(0.0, 1.0), (end, 2.0)])], title="a", x_name="step")
        return re.findall(r'class="tick x"[^>]*>([^<]*)<', drawn)

    assert ticks(2.0) == ["0", "1", "2"] and "0.5" in ticks(1.5)


def test_nothing_to_draw_is_no_chart() -> None:
    assert chart([Series(name="a", points=[(-1.0, 2.0)])], title="a", x_name="x", x_log=True) == ""


def test_a_logarithmic_axis_places_equal_factors_at_equal_distances() -> None:
    series = [Series(name="a", points=[(10.0, 1.0), (100.0, 2.0), (1000.0, 3.0)], shape="steps")]
    drawn = chart(series, title="a", x_name="x", x_log=True)
    (path,) = re.findall(r'class="dot"[^>]* d="([^"]*)"', drawn)
    xs, ys = zip(*((float(x), float(y)) for x, y in re.findall(r"M([\d.]+) ([\d.]+)h0", path)), strict=True)
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2) and ys[0] > ys[1] > ys[2]
    (line,) = re.findall(r'<polyline[^>]* points="([^"]*)"', drawn)
    assert len(line.split()) == 5  # a step has a corner between two points


@pytest.mark.parametrize("cost", COSTS)
def test_every_published_result_with_a_cost_is_a_point(cost: str) -> None:
    ours = Series(name="measured here", points=[(10.0, 40.0)], texts=["<mine>"], shape="dots")
    data = data_of(chart([*published_series(cost), ours], title="AP", x_name=COSTS[cost], x_log=True))
    known = [result for result in published_results() if result.ap and getattr(result, cost) is not None]
    said = [text for series in data["series"][:-1] for text in series["t"]]
    assert len(said) == len(known) >= 46
    assert all(any(text.startswith(result.model) for text in said) for result in known)
    families = {result.family for result in known}
    assert sorted(s["n"] for s in data["series"]) == sorted(
        [*(name for name in (*FAMILIES, OTHERS) if name in families), "measured here"]
    )


def test_a_long_series_is_thinned_to_its_ends_and_between() -> None:
    points = [(float(x), 0.0) for x in range(100_000)]
    kept = thin(points, 50)
    assert len(kept) == 50 and (kept[0], kept[-1]) == (points[0], points[-1])
    assert {round(b[0] - a[0]) // 10 for a, b in pairwise(kept)} == {204}


def test_parallel_coordinates_lay_the_best_trial_on_top() -> None:
    axes = [Axis(name=name, positions=[0.0, 1.0, None], ticks=[(0.0, "low")]) for name in ("a", "b")]
    data = data_of(parallel(axes, ["worst", "best", "none"], [0.0, 1.0, 0.5], title="all"))
    assert [series["n"] for series in data["series"]] == ["worst", "none", "best"]
    assert data["series"][1]["p"] == []


def test_a_text_is_sorted_by_its_number_also_with_an_exponent() -> None:
    texts = ["-", "-2e-05", "1e-05", "0.5", "9876", "1.118e+04", "12e3 steps"]
    keys = [text_cell(text).sort for text in texts]
    assert keys == sorted(keys, key=lambda key: -1e301 if key is None else float(key)) and len({*keys}) == len(texts)
    assert text_cell("everything").sort is None
