"""Charts of AP against a cost: every published result once, measured points apart from them."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from yolofleet.evaluation.published import COSTS, FAMILIES, OTHERS, published_groups, published_results
from yolofleet.evaluation.scatter import Dot, Group, scatter


@pytest.mark.parametrize("cost", COSTS)
def test_every_published_result_with_a_cost_is_a_diamond(cost: str) -> None:
    ours = Group(name="measured here", colour="#000", dots=[Dot(x=10, y=40, name="<mine>", label="mine")])
    chart = scatter([*published_groups(cost), ours], x_name=COSTS[cost], y_name="AP in percent")
    drawn = ElementTree.fromstring(chart[: chart.index("</svg>") + len("</svg>")])
    titles = [title.text for title in drawn.iterfind(".//path/title")]
    known = [result for result in published_results() if result.ap and getattr(result, cost) is not None]
    assert len(titles) == len(known) >= 46
    assert all(any(str(text).startswith(result.model) for text in titles) for result in known)
    assert [title.text for title in drawn.iterfind(".//circle/title")] == ["<mine>"]
    legend = re.findall(r"</i>([^<]*)</span>", chart)
    assert legend == [*(name for name in (*FAMILIES, OTHERS) if name in {r.family for r in known}), "measured here"]


def test_points_stand_by_their_cost_and_ap() -> None:
    dots = [Dot(x=10.0**power, y=power, name=str(power)) for power in (1, 2, 3)]
    chart = scatter([Group(name="a", colour="#000", dots=dots, line="steps")], x_name="x", y_name="y")
    centres = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', chart)]
    assert centres[1][0] - centres[0][0] == pytest.approx(centres[2][0] - centres[1][0], abs=0.2)
    assert centres[0][1] > centres[1][1] > centres[2][1]
    (line,) = re.findall(r'<polyline points="([^"]*)"', chart)
    assert len(line.split()) == 5  # a step has a corner between two points
