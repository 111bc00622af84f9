"""``yolofleet cluster doctor``: whether a cluster, or this machine, is fit for work, and what to do where it is not."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from yolofleet.cluster.doctor.line import Report
    from yolofleet.specs.job import JobSpec


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
    from yolofleet.cli.doctor_page import printed
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
        from yolofleet.cluster.doctor.afar import bundle_for, examine_afar

        return examine_afar(address, bundle_for(document), _told)
    from yolofleet.cluster.doctor.near import examine_near

    return examine_near(address, None if document is None else job_of(document), _told)


def job_of(document: dict[str, object]) -> JobSpec:
    """Return the job that a bundle's document describes; of a search, the one that it varies."""
    from yolofleet.specs.job import JobSpec

    return JobSpec.parse(document["job"] if "parameters" in document else document, source="the job")


def _told(line: str) -> None:
    typer.echo(f"  {line}", err=True)
