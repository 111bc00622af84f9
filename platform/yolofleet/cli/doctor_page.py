"""A doctor's report for a terminal: a table by node, and the cures below it."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator

import typer

from yolofleet.cluster.doctor.line import CLUSTER, Line, Report

COLOURS = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}
MOST_SOUND_NODES = 8
"""With more nodes those with nothing to say of them are only counted."""
NARROWEST, WIDEST = 60, 140


def printed(report: Report, *, is_terminal: bool, width: int | None = None) -> str:
    """Return the report as text.

    Args:
        report: What was found.
        is_terminal: Whether verdicts may have colours.
        width: Columns; those of the terminal unless given.
    """
    columns = min(max(width or shutil.get_terminal_size((100, 24)).columns, NARROWEST), WIDEST)
    return "\n".join([*_table(report, columns, is_terminal), *_cures(report, columns), *_summary(report, columns)])


def _table(report: Report, columns: int, is_terminal: bool) -> Iterator[str]:
    subject_width = max(len(line.subject) for line in report.lines)
    lines = {place: [line for line in report.lines if line.place == place] for place in report.places}
    nodes = [place for place in lines if place != CLUSTER]
    sound = [place for place in nodes if all(line.verdict == "ok" for line in lines[place])]
    hidden = set(sound) if len(nodes) > MOST_SOUND_NODES else set()
    for place, found in lines.items():
        if place in hidden:
            continue
        yield place if place == CLUSTER else f"node {place}"
        for line in found:
            yield from _row(line, subject_width, columns, is_terminal)
    if hidden:
        yield f"{len(hidden)} more nodes, on which all is well"


def _row(line: Line, subject_width: int, columns: int, is_terminal: bool) -> Iterator[str]:
    mark = f"{line.verdict.upper() if line.verdict == 'fail' else line.verdict:<4}"
    head = f"  {mark}  {line.subject:<{subject_width}}  "
    first, *rest = textwrap.wrap(line.seen, columns - len(head), break_on_hyphens=False) or [""]
    shown = typer.style(mark, fg=COLOURS[line.verdict]) if is_terminal else mark
    yield f"{head.replace(mark, shown, 1)}{first}"
    yield from (f"{'':<{len(head)}}{text}" for text in rest)


def _cures(report: Report, columns: int) -> Iterator[str]:
    """Yield each cure once, with the places that it is for, what fails first."""
    places: dict[tuple[str, str, str], list[str]] = {}
    for verdict in ("fail", "warn"):
        for line in report.lines:
            if line.verdict == verdict and line.cure is not None:
                places.setdefault((verdict, line.subject, line.cure), []).append(line.place)
    if places:
        yield from ("", "What to do")
    for (verdict, subject, cure), found in places.items():
        named = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        mark = verdict.upper() if verdict == "fail" else verdict
        yield from textwrap.wrap(
            f"{mark:<4}  {subject} ({named}): {cure}",
            columns,
            initial_indent="  ",
            subsequent_indent=" " * 8,
            break_on_hyphens=False,
        )


def _summary(report: Report, columns: int) -> Iterator[str]:
    counted = (_counted(report.count("warn"), "warning"), _counted(report.count("fail"), "failure"))
    yield ""
    yield f"{report.count('ok')} ok, {', '.join(counted)}"
    for text in report.left_out:
        yield from textwrap.wrap(f"not looked at: {text}", columns, subsequent_indent="  ", break_on_hyphens=False)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
