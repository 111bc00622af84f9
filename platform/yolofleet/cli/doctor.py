"""``yolofleet cluster doctor``: whether a cluster, or this machine, is fit for work, and what to do where it is not.

A doctor's report for a terminal: a table by node, and the cures below it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yolofleet.cluster.doctor.finding import CLUSTER, Line, Report

if TYPE_CHECKING:
    from yolofleet.cluster.doctor.finding import Report
    from yolofleet.specs.job import JobSpec

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


def doctor(
    job: Annotated[
        Path | None, typer.Argument(help="The job spec or search space that is to run there.", show_default=False)
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Fields to change, e.g. storage=s3://runs.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="The cluster's dashboard (http://HOST:8265), its Ray client server (ray://HOST:10001), or HOST:6379 "
            "on one of its nodes; by default RAY_API_SERVER_ADDRESS or RAY_ADDRESS, else this machine alone."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")] = False,
) -> int:
    """Look at every node of a cluster: what works, what does not, and the cure. Nothing is left behind."""
    from yolofleet.cluster.bundle import read_bundle

    named = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    bundle = None if job is None else read_bundle(job, overrides or [])
    began = time.monotonic()
    report = _report(None if named == "local" else named, None if bundle is None else bundle.document)
    if as_json:
        typer.echo(json.dumps(report.document(), indent=1))
    else:
        typer.echo(printed(report, is_terminal=sys.stdout.isatty()))
        typer.echo(f"took {time.monotonic() - began:.0f} s", err=True)
    return report.exit_code


def _report(named: str | None, document: dict[str, object] | None) -> Report:
    from yolofleet.cluster.doctor.authentication import Address

    address = None if named is None else Address.parse(named)
    if address is not None and address.scheme in ("http", "https"):
        from yolofleet.cluster.doctor.entry import bundle_for, examine_afar

        return examine_afar(address, bundle_for(document), _told)
    from yolofleet.cluster.doctor.entry import examine_near

    return examine_near(address, None if document is None else job_of(document), _told)


def job_of(document: dict[str, object]) -> JobSpec:
    """Return the job that a bundle's document describes; of a search, the one that it varies."""
    from yolofleet.specs.job import JobSpec

    return JobSpec.parse(document["job"] if "parameters" in document else document, source="the job")


def _told(line: str) -> None:
    typer.echo(f"  {line}", err=True)
