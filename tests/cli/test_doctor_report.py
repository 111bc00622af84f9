"""The doctor's report on a terminal: every failure is seen, every cure once, no line too long."""

from __future__ import annotations

import pytest

from yolofleet.cli.doctor import format_report
from yolofleet.cluster.doctor.finding import CLUSTER, Finding, Report

LONG = "s3://a-bucket-with-a-long-name/runs/of/a/project: was refused by https://s3.example (AccessDenied) " * 2


def report_of(num_nodes: int) -> Report:
    lines = [Finding(CLUSTER, "Ray", "ok", f"2.60.0, {num_nodes} nodes")]
    for number in range(num_nodes):
        lines.append(Finding(f"10.0.0.{number}", "clock", "ok", "within 0.002 s"))
    lines.append(Finding("10.0.0.1", "storage of runs", "fail", LONG, "give the node its credentials"))
    lines.append(Finding("10.0.0.2", "storage of runs", "fail", LONG, "give the node its credentials"))
    lines.append(Finding("10.0.0.2", "open files", "warn", "1,024", "raise the limit"))
    return Report(tuple(lines), ("MLflow: name the JOB",))


@pytest.mark.parametrize("width", [80, 120])
def test_the_page_fits_and_shows_what_fails_with_one_cure(width: int) -> None:
    text = format_report(report_of(4), is_terminal=False, width=width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0] == CLUSTER and "node 10.0.0.3" in lines
    assert sum(line.strip().startswith("FAIL  storage of runs") for line in lines) == 3, "two rows and one cure"
    assert text.count("give the node its credentials") == 1 and "10.0.0.1, 10.0.0.2" in text
    assert text.index("FAIL  storage of runs (") < text.index("warn  open files (")
    assert "5 ok, 1 warning, 2 failures" in text and "not checked: MLflow" in text
    assert "\x1b" not in text and "\x1b" in format_report(report_of(4), is_terminal=True, width=width)


def test_of_many_nodes_only_those_with_a_word_to_say_are_listed() -> None:
    text = format_report(report_of(100), is_terminal=False, width=100)
    assert "node 10.0.0.1" in text and "node 10.0.0.2" in text and "node 10.0.0.50" not in text
    assert "98 more nodes without problems" in text
