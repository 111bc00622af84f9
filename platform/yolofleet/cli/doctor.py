"""``yolofleet cluster doctor``: checks whether a cluster, or this machine, is fit for work, and names each cure.

On a terminal the report is a table by node with the cures below it, each once with the nodes that it is for.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from yolofleet.cli.options import JsonOption, print_result
from yolofleet.cluster.doctor.finding import CLUSTER, Finding, Report
from yolofleet.core.terminal import note
from yolofleet.core.text import and_more, plural

if TYPE_CHECKING:
    from yolofleet.specs.job import JobSpec

COLOURS = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}
MOST_SOUND_NODES = 8
"""With more nodes, those without a warning or failure are only counted."""
NARROWEST, WIDEST = 60, 140


def doctor(
    job: Annotated[
        str | None,
        typer.Argument(
            metavar="SPEC",
            help="The job spec or search space that is to run there, path or s3:// URL.",
            show_default=False,
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Fields to change, e.g. storage=s3://runs.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="The cluster's dashboard (http://HOST:8265), its Ray client server (ray://HOST:10001), or HOST:6379 "
            "on one of its nodes; by default RAY_API_SERVER_ADDRESS or RAY_ADDRESS, otherwise only this machine."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Check every node of a cluster: what works, what does not, and how to fix it. Leaves nothing behind."""
    from yolofleet.cluster.bundle import read_bundle
    from yolofleet.storage import open_file

    named = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    bundle = None if job is None else read_bundle(open_file(job), overrides or [])
    began = time.monotonic()
    report = _examine(None if named == "local" else named, None if bundle is None else bundle.document)
    print_result(report.document(), [format_report(report, is_terminal=sys.stdout.isatty())], as_json=as_json)
    note(f"took {time.monotonic() - began:.0f} s")
    return report.exit_code


def _examine(named: str | None, document: dict[str, object] | None) -> Report:
    from yolofleet.cluster.doctor.access import examine_by_connection, examine_by_jobs_api, make_bundle
    from yolofleet.cluster.doctor.authentication import Address

    def notify(step: str) -> None:
        note(f"  {step}")

    address = None if named is None else Address.parse(named)
    if address is not None and address.scheme in ("http", "https"):
        return examine_by_jobs_api(address, make_bundle(document), notify)
    return examine_by_connection(address, None if document is None else job_of(document), notify)


def job_of(document: dict[str, object]) -> JobSpec:
    """Return the job that a bundle's document describes; of a search, its base job."""
    from yolofleet.specs.job import JobSpec

    return JobSpec.parse(document["job"] if "parameters" in document else document, source="the job")


def format_report(report: Report, *, is_terminal: bool, width: int | None = None) -> str:
    """Return the report as text.

    Args:
        report: What was found.
        is_terminal: Whether verdicts may have colours.
        width: Columns; those of the terminal unless given.
    """
    columns = min(max(width or shutil.get_terminal_size((100, 24)).columns, NARROWEST), WIDEST)
    return "\n".join([*_table(report, columns, is_terminal), *_cures(report, columns), *_summary(report, columns)])


def _table(report: Report, columns: int, is_terminal: bool) -> Iterator[str]:
    subject_width = max(len(finding.subject) for finding in report.findings)
    findings = {node: [finding for finding in report.findings if finding.node == node] for node in report.nodes}
    sound = [node for node in findings if node != CLUSTER and all(entry.verdict == "ok" for entry in findings[node])]
    hidden = set(sound) if len(findings.keys() - {CLUSTER}) > MOST_SOUND_NODES else set()
    for node in [node for node in findings if node not in hidden]:
        yield node if node == CLUSTER else f"node {node}"
        for finding in findings[node]:
            yield from _row(finding, subject_width, columns, is_terminal)
    if hidden:
        yield f"{plural(len(hidden), 'more node')} without problems"


def _row(finding: Finding, subject_width: int, columns: int, is_terminal: bool) -> Iterator[str]:
    mark = _mark(finding.verdict)
    head = f"  {mark}  {finding.subject:<{subject_width}}  "
    first, *rest = textwrap.wrap(finding.seen, columns - len(head), break_on_hyphens=False) or [""]
    coloured = typer.style(mark, fg=COLOURS[finding.verdict]) if is_terminal else mark
    yield f"{head.replace(mark, coloured, 1)}{first}"
    yield from (f"{'':<{len(head)}}{text}" for text in rest)


def _cures(report: Report, columns: int) -> Iterator[str]:
    """Yield each cure once, with the nodes that it is for; those of failures first."""
    nodes: dict[tuple[str, str, str], list[str]] = {}
    for verdict in ("fail", "warn"):
        for finding in report.findings:
            if finding.verdict == verdict and finding.cure is not None:
                nodes.setdefault((verdict, finding.subject, finding.cure), []).append(finding.node)
    if nodes:
        yield from ("", "What to do")
    for (verdict, subject, cure), names in nodes.items():
        text = f"{_mark(verdict)}  {subject} ({and_more(names, 3)}): {cure}"
        yield from textwrap.wrap(text, columns, initial_indent="  ", subsequent_indent=" " * 8, break_on_hyphens=False)


def _summary(report: Report, columns: int) -> Iterator[str]:
    counts = (
        f"{report.count('ok')} ok",
        plural(report.count("warn"), "warning"),
        plural(report.count("fail"), "failure"),
    )
    yield from ("", ", ".join(counts))
    for text in report.left_out:
        yield from textwrap.wrap(f"not checked: {text}", columns, subsequent_indent="  ", break_on_hyphens=False)


def _mark(verdict: str) -> str:
    return f"{verdict.upper() if verdict == 'fail' else verdict:<4}"
