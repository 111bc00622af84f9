"""The report of a paper's space: its numbers with the paper's digits, ours beside them, and the order of both."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from evaluation.published_tables import published_tables
from yolofleet.evaluation.published import FIGURES
from yolofleet.search.paper_report import paper_lines, paper_section
from yolofleet.search.paper_table import PaperTable
from yolofleet.search.results import results_of
from yolofleet.search.trials import Measurement, Observation, Trials
from yolofleet.specs.search import load_search

TABLES = sorted((Path(__file__).parents[2] / "search_spaces").glob("table*.yaml"))
DIGITS = {"table4": 2, "table5": 2}
Measured = Callable[[str, str, int], float]
"""Returns the AP that a trial measures, given its label, the figure and its seed."""


def report_of(path: Path, measured: Measured, seeds: int = 1) -> PaperTable:
    """The comparison of a space whose every variant has trained to its end."""
    spec = load_search(path).model_copy(update={"repeats": seeds})
    record = Trials(repeats=seeds)
    ((name, parameter),) = spec.parameters.items()
    figures = {"gflops": 1.0, "gflops_with_bias": 104.66, "parameters": 36.95e6, "training_petaflops": 1.0}
    for label in parameter.options:
        number = record.suggest(Observation({name: label}, figures)).number
        for seed in range(seeds):
            values = {f"val_{name}": measured(label, figure, seed) for figure, (_, name) in FIGURES.items()}
            record.measure(number, Measurement(seed, 1.0, 10, values, 5.0))
        record.end(number, "completed")
    paper = results_of(spec, record).paper
    assert paper is not None
    return paper


def printed_of(path: Path) -> dict[str, dict[str, float]]:
    """The paper's figures by the label of their row in the space."""
    paper = load_search(path).paper
    assert paper is not None
    rows = published_tables()[table_of(path)]
    return {
        row.label: {name: value for name, value in expected.items() if isinstance(value, float)}
        for row, expected in zip(paper.rows, rows, strict=True)
    }


def table_of(path: Path) -> str:
    """table3 of table3-compound-scaling.yaml."""
    return path.stem.partition("-")[0]


def lines_below(lines: list[str], label: str) -> dict[str, list[str]]:
    """The cells of the lines below a label, by their heads."""
    start = lines.index(f"  {label}") + 1
    found: dict[str, list[str]] = {}
    for line in lines[start:]:
        head, *cells = line.split()
        if not line.startswith("    "):
            break
        found[head] = cells
    return found


@pytest.mark.parametrize("path", TABLES, ids=table_of)
def test_every_row_is_printed_with_the_papers_digits_and_ours_beside_it(path: Path) -> None:
    printed, digits = printed_of(path), DIGITS.get(table_of(path), 1)
    table = report_of(path, lambda label, figure, seed: printed.get(label, {}).get(figure, 12.3456) / 100)
    lines = paper_lines(table)
    assert max(map(len, lines)) <= 80
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", paper_section(table).body, re.DOTALL)
    shown = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in rows]
    for label, figures in printed.items():
        expected = [f"{figures[name]:.{digits}f}" for name in FIGURES if name in figures]
        cost = [f"{figures[name]:.1f}{unit}" if name in figures else "-" for name, unit in COSTS]
        below = lines_below(lines, label)
        assert below["paper"] == expected + cost
        assert ["paper", *expected, *cost] in shown
        if any(variant.label == label and variant.entry for variant in table.variants):
            assert below["here"] == [*expected, "37.0M", "104.7G"]


COSTS = (("parameters", "M"), ("gflops", "G"))


@pytest.mark.parametrize("path", TABLES, ids=table_of)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_order_of_the_paper_is_found_and_so_is_its_opposite(path: Path, sign: int) -> None:
    printed = printed_of(path)
    table = report_of(path, lambda label, figure, seed: sign * printed.get(label, {}).get(figure, 0.0) / 100)
    for figure in table.figures:
        found, other = table.orders[figure].alike, table.orders[figure].opposite
        if sign < 0:
            found, other = other, found
        assert other == table.orders[figure].unclear == []
        assert all(printed[better][figure] > printed[worse][figure] for better, worse in found)
    compared = {name: len(order.alike) + len(order.opposite) for name, order in table.orders.items()}
    assert compared["ap75"] == NUM_PAIRS[table_of(path)]
    assert (compared["ap"] < compared["ap75"]) == (table_of(path) in ("table6", "table7"))


NUM_PAIRS = {"table3": 6, "table4": 0, "table5": 6 + 1, "table6": 6, "table7": 3, "table8": 3}


def test_a_difference_within_the_spread_of_the_seeds_ranks_nothing() -> None:
    base, aux, partial = "base (v7-E6E)", "aux", "partial aux"
    means = {base: 0.20, aux: 0.21, partial: 0.30}
    noise = (-0.02, 0.0, 0.02)
    table = report_of(TABLES[-1], lambda label, figure, seed: means[label] + noise[seed], seeds=3)
    order = table.orders["ap"]
    assert order.unclear == [(aux, base)]
    assert set(order.alike) == {(partial, base), (partial, aux)}
    lines = paper_lines(table)
    assert lines_below(lines, base)["±"] == ["2.0"] * 3
    text = " ".join(" ".join(lines).split())
    assert "Here 2 of them are ranked alike, 0 the other way, and 1 not distinguished" in text
    assert "Means of 3 seeds" in text
    assert "30.0 ± 2.0" in paper_section(table).body


def test_placements_without_a_letter_are_listed_beside_the_papers_letters() -> None:
    above = {"base (3-S ELAN)": 0.2, "inside each stack": 0.21}
    table = report_of(TABLES[1], lambda label, figure, seed: above.get(label, 0.19))
    lines = paper_lines(table)
    assert sum(variant.row is None for variant in table.variants) == 5
    assert lines_below(lines, "inside each stack")["here"][0] == "21.00"
    assert lines_below(lines, "Figure 6 (c)") == {
        "paper": ["52.33", "70.56", "56.91", "35.90", "57.06", "67.50", "-", "-"]
    }
    text = " ".join(" ".join(lines).split())
    assert "above base (3-S ELAN) by AP: in the paper 2 of 5, here 1 of 5" in text
    assert "The base is inferred" in text
    section = paper_section(table).body
    chart = section[section.index("<svg") : section.index("</svg>")]
    assert chart.count("<line") == 1  # the base: no other row is in both orders
    assert len(re.findall("<text", chart)) == 2 + 6 + 6
