"""``yolofleet jobs``: what was sent to a cluster.

``yolofleet submit``: a job or a search, sent to a cluster.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from yolofleet.cluster.service import JobService, SentJob
import time

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
        typer.echo(json.dumps(format_job(job)))
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


def format_job(job: SentJob) -> dict[str, object]:
    """Return a job as plain JSON values."""
    from dataclasses import asdict

    return asdict(job)


app = typer.Typer(help="Jobs on a cluster: how they stand, what they print, stopping them.", no_args_is_help=True)

JobArgument = Annotated[str, typer.Argument(help="The job's id, or the name of its run.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.command("list")
def list_jobs(address: AddressOption = None, json_output: JsonOption = False) -> int:
    """List the jobs that the cluster knows, the oldest first."""
    from yolofleet.cluster.service import JobService

    service = JobService(address)
    jobs = service.jobs()
    if json_output:
        typer.echo(json.dumps([format_job(job) for job in jobs], indent=1))
        return 0
    if not jobs:
        typer.echo(f"no job was sent to {service.address} yet")
    for job in jobs:
        typer.echo(f"{job.status:<10} {_moment(job.began):<20} {job.name or '-':<24} {job.id}")
    return 0


@app.command()
def show(job: JobArgument, address: AddressOption = None, json_output: JsonOption = False) -> int:
    """Show how a job stands."""
    from yolofleet.cluster.service import JobService

    found = JobService(address).job(job)
    if json_output:
        typer.echo(json.dumps(format_job(found), indent=1))
        return 0
    lines = {
        "job": found.id,
        "run": found.name or "-",
        "status": found.status.lower() + ("" if found.exit_code is None else f", exit code {found.exit_code}"),
        "began": _moment(found.began),
        "ended": _moment(found.ended),
        "message": found.message,
    }
    for name, text in lines.items():
        typer.echo(f"{name:<9} {text}")
    return 0


@app.command()
def logs(
    job: JobArgument,
    address: AddressOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it has ended.")] = False,
) -> int:
    """Print what a job has printed; with --follow its exit code becomes this command's."""
    from yolofleet.cluster.service import JobService

    service = JobService(address)
    found = service.job(job)
    if follow:
        return followed(service, found)
    pass_on(service.logs(found))
    return 0


@app.command()
def stop(
    job: JobArgument,
    address: AddressOption = None,
    wait_seconds: Annotated[float, typer.Option(help="How long to wait for it to end.")] = 150.0,
) -> int:
    """Tell a job to save its state and end. The same spec sent again goes on from there."""
    from yolofleet.cluster.service import STOP_SECONDS, JobService
    from yolofleet.core.errors import WorkError

    service = JobService(address)
    found = service.job(job)
    if found.has_ended:
        typer.echo(f"{found.id}: has ended already ({found.status.lower()})")
        return 0
    service.stop(found)
    typer.echo(f"{found.id}: told to stop; it has {STOP_SECONDS} s to save its state", err=True)
    end = time.monotonic() + wait_seconds
    while not (found := service.job(found.id)).has_ended:
        if time.monotonic() > end:
            raise WorkError(f"{found.id}: is still {found.status.lower()} after {wait_seconds:g} s")
        time.sleep(1.0)
    typer.echo(f"{found.id}: {found.status.lower()}")
    return 0


def _moment(seconds: float | None) -> str:
    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
