"""``yolofleet submit``: a job or a search, sent to a cluster."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from yolofleet.cluster.service import JobService, SentJob

AddressOption = Annotated[
    str | None,
    typer.Option(
        help="The cluster's dashboard, http://HOST:8265; by default RAY_API_SERVER_ADDRESS, else this machine."
    ),
]


def submit(
    spec: Annotated[Path, typer.Argument(help="A job spec or a search space (YAML).", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Fields to change, e.g. epochs=5.")
    ] = None,
    address: AddressOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show what it prints until it has ended.")] = False,
    any_version: Annotated[
        bool, typer.Option("--any-version", help="Run it even if the cluster has other versions than this machine.")
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the job as JSON on stdout.")] = False,
) -> int:
    """Send a job or a search to a cluster. The same spec again goes on with it, or finds it running."""
    from yolofleet.cluster.bundle import read_bundle
    from yolofleet.cluster.service import JobService

    bundle = read_bundle(spec, overrides or [])
    service = JobService(address)
    job, is_new = service.send(bundle, any_version=any_version)
    typer.echo(f"{'sent' if is_new else 'is there already, ' + job.status.lower()}: {job.id}", err=True)
    if json_output:
        typer.echo(json.dumps(described(job)))
    if follow:
        return followed(service, job)
    if not json_output:
        where = f"{job.id} --address {service.address}"
        typer.echo(f"  yolofleet jobs logs {where} --follow\n  yolofleet jobs stop {where}", err=True)
    return 0


def followed(service: JobService, job: SentJob) -> int:
    """Show what a job prints until it has ended, and return its exit code as ours."""
    from yolofleet.cluster.follow import follow

    try:
        ended = follow(service, job, pass_on, lambda line: typer.echo(line, err=True))
    except KeyboardInterrupt:
        typer.echo(
            f"\nno longer followed; the job goes on: yolofleet jobs logs {job.id} --follow --address {service.address}",
            err=True,
        )
        return 130
    took = "" if ended.began is None or ended.ended is None else f" after {ended.ended - ended.began:.0f} s"
    typer.echo(f"{ended.id}: {ended.status.lower()}{took}", err=True)
    return exit_code(ended)


def pass_on(text: str) -> None:
    """Pass on what a job has printed as it is, colours of Ray's among it."""
    sys.stdout.write(text)
    sys.stdout.flush()


def exit_code(job: SentJob) -> int:
    """Return the exit code of a job that has ended; 1 for one that was stopped or never ran."""
    if job.status == "SUCCEEDED":
        return 0
    return job.exit_code if job.exit_code not in (None, 0) else 1


def described(job: SentJob) -> dict[str, object]:
    """Return a job as plain JSON values."""
    from dataclasses import asdict

    return asdict(job)
